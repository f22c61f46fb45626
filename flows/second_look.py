"""Before a candidate is refused that may be better: ask people about captures on which it and the incumbent differ."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from prefect import flow, get_run_logger

from curate.catalog.models import ModelRow, Sample, SampleStatus, SelectedRow, SelectionRole, Split
from curate.errors import CatalogError
from curate.metrics.kinds import DIFFER, tell_apart
from curate.release.second_look import ComparedCapture, SecondLookDraw, draw_questions
from flows._gate import answers_of, decide, draw_key, fetch_draw
from flows._stage import stage_task
from flows._wiring import Services, services
from flows.annotate_batch import annotate_batch
from flows.ingest_captures import ingest_captures
from flows.train_candidate import relate_samples, require_dataset, require_model

MOST_COMPARED = 2000
"""Captures that both models answer: enough for any gate, and pictures that can be fetched in minutes."""


@flow(name="second-look")
def second_look(model_id: str) -> int:
    """Ask what the gate needs to know, if it does, and return how many captures are asked about."""
    if not needs_second_look(model_id):
        return 0
    ingest_captures()  # what came since the round chose is the most telling
    asked = choose_contested(model_id)
    if asked:
        annotate_batch(require_model(services(), model_id).round_number)
    return asked


@stage_task("judge by audits")
def needs_second_look(model_id: str) -> bool:
    """Whether the audits leave open which model is better; once people are asked it stays so."""
    return is_open(services(), model_id)


@stage_task("choose contested captures")
def choose_contested(model_id: str) -> int:
    """Queue what is asked about and return how many captures it is."""
    draw = queue_contested(services(), model_id)
    counts = len(draw.differing), len(draw.captures), len(draw.asked)
    get_run_logger().info("the models differ on %d of %d random-arm captures; %d are asked about", *counts)
    return len(draw.asked)


def is_open(wired: Services, model_id: str) -> bool:
    """Whether more labels could change the decision about a candidate, or are being asked for already."""
    candidate, gate = require_model(wired, model_id), wired.settings.gate
    if fetch_draw(wired, candidate) is not None:
        return True
    possible = gate.second_look_labels > 0 and wired.settings.labels.kind in DIFFER
    return possible and candidate.gate is None and decide(wired, candidate).is_open


def queue_contested(wired: Services, model_id: str) -> SecondLookDraw:
    """Draw what is asked, once, and put it into the round's selection; doing it again changes nothing.

    Raises:
        CatalogError: there is no release that the candidate could differ from.
    """
    candidate, incumbent = require_model(wired, model_id), wired.catalog.released_model()
    if incumbent is None:
        raise CatalogError("there is no release that a candidate could differ from")
    draw = fetch_draw(wired, candidate) or _draw(wired, candidate, incumbent)
    wired.catalog.extend_selection(candidate.round_number, _rows(wired, candidate, draw))
    return draw


def _draw(wired: Services, candidate: ModelRow, incumbent: ModelRow) -> SecondLookDraw:
    rng = np.random.default_rng([wired.settings.round.seed, candidate.round_number, 3])
    audits = wired.catalog.audited()
    arm = _unbiased(wired, candidate, incumbent, audits, rng)
    said = [answers_of(wired, model, [sample for sample, _ in arm]) for model in (candidate, incumbent)]
    captures = _compare(arm, tell_apart(wired.settings.labels.kind, *said), audits)
    draw = draw_questions(captures, wired.settings.gate.second_look_labels, rng)
    wired.store.put(draw_key(candidate), draw.model_dump_json().encode())
    return draw


def _unbiased(
    wired: Services, candidate: ModelRow, incumbent: ModelRow, audits: Collection[str], rng: np.random.Generator
) -> list[tuple[Sample, str]]:
    """Random-arm captures of the incumbent, each with its burst, that show nothing the candidate was taught with."""
    dataset = require_dataset(wired, candidate.dataset_version)
    kept = wired.catalog.samples(release_id=incumbent.release_id, random_arm_only=True)
    arm = [sample for sample in kept if sample.status is SampleStatus.POOL or sample.sample_id in audits]
    arm = [arm[row] for row in sorted(rng.permutation(len(arm))[:MOST_COMPARED].tolist())]
    teaching = {item.sample_id for item in dataset.items if item.split in (Split.TRAIN, Split.VALIDATION)}
    groups, scenes = relate_samples(wired, [*arm, *wired.catalog.samples(ids=teaching)])
    taught = {groups[sample_id] for sample_id in teaching if sample_id in groups}
    seen = {one for pair in scenes for one, other in (pair, pair[::-1]) if other in teaching}
    bursts = [(sample, groups[sample.sample_id]) for sample in arm if sample.sample_id not in seen]
    return [(sample, burst) for sample, burst in bursts if burst not in taught]


def _compare(
    arm: Sequence[tuple[Sample, str]], differ: Sequence[bool], audits: Collection[str]
) -> list[ComparedCapture]:
    return [
        ComparedCapture(
            sample_id=sample.sample_id,
            weight=1.0 / (sample.random_probability or 1.0),
            burst=burst,
            differs=differs,
            audited=sample.sample_id in audits,
        )
        for (sample, burst), differs in zip(arm, differ, strict=True)
    ]


def _rows(wired: Services, candidate: ModelRow, draw: SecondLookDraw) -> list[SelectedRow]:
    """The questions as rows of the round's selection, after what it chose before the candidate was there."""
    number = candidate.round_number
    before = [row.rank for row in wired.catalog.selection(number) if row.role is not SelectionRole.CONTESTED]
    weights = {capture.sample_id: capture.weight for capture in draw.captures}
    doubtful = sum(capture.in_doubt for capture in draw.captures)
    return [
        SelectedRow(
            round_number=number,
            sample_id=sample_id,
            rank=max(before, default=0) + place,
            role=SelectionRole.CONTESTED,
            utility=0.0,
            inclusion_probability=len(draw.asked) / doubtful / weights[sample_id],
            reasons=("the candidate and the present model answer differently",),
        )
        for place, sample_id in enumerate(draw.asked, start=1)
    ]
