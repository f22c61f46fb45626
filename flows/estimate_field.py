"""How good the deployed model was in the field, from the round's audited random-arm captures and all that stands by."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from prefect import flow, get_run_logger

from curate.catalog.models import Sample, SelectedRow, SelectionRole
from curate.catalog.splits import assign_groups
from curate.catalog.verdicts import score_prediction
from curate.contracts.telemetry import ReportedState
from curate.metrics.evidence import Evidence, Float64Array
from curate.metrics.kinds import judge_predictions
from curate.selection.estimate.captures import Captures, read_captures
from curate.selection.estimate.report import Audits, Taught, report_field
from curate.selection.estimate.weighting import FramesTold, frames_between
from flows._labels import agreed_labels
from flows._stage import stage_task
from flows._wiring import Services, services


@flow(name="estimate-field")
def estimate_field(round_number: int) -> dict[str, Any] | None:
    """Estimate how good the model is that made the round's predictions; None when nothing was audited."""
    estimate = estimate_from_audits(round_number)
    get_run_logger().info("in the field: %s", estimate)
    return estimate


@dataclass(frozen=True)
class Books:
    """What people have said so far, and what has been asked."""

    agreed: dict[str, dict[str, Any]]
    """What people settled on, by sample; without those nobody answered."""
    asked: dict[str, SelectedRow]
    """Every selected sample of this round and those before."""
    objected: frozenset[str] = frozenset()
    """Samples whose answer a person called wrong."""


@stage_task("estimate from audits")
def estimate_from_audits(round_number: int) -> dict[str, Any] | None:
    """Estimate from what the catalog holds."""
    return estimate_round(services(), round_number)


def estimate_round(wired: Services, round_number: int) -> dict[str, Any] | None:
    """Join audits, answers and the devices' own predictions; skipped ones are left out."""
    books = _open_books(wired, round_number)
    audits = [row for row in wired.catalog.selection(round_number) if row.role is SelectionRole.AUDIT]
    told = [sample for sample in wired.catalog.samples(ids=[row.sample_id for row in audits]) if _tells(sample, books)]
    if not told or (release := told[0].release_id) is None:
        return None
    until = _selected_at(wired, round_number, told)
    arm = [each for each in _predicted(wired, release, until) if _was_open(each, books, round_number, until)]
    taught = _predicted(wired, release, until, [each for each in books.agreed if not _audits(books, each)])
    books = replace(books, objected=_objected(wired, [*arm, *taught]))
    probability = np.array([sample.random_probability for sample in arm], np.float64)
    row_of = {sample.sample_id: row for row, sample in enumerate(arm)}
    rows = np.array([row_of[sample.sample_id] for sample in told], np.int64)
    inclusion = np.array([books.asked[sample.sample_id].inclusion_probability for sample in told], np.float64)
    bursts = assign_groups([*arm, *taught], {}, wired.settings.split.block_s)
    report = report_field(
        _read(wired, books, arm, bursts),
        probability,
        Audits(rows, _judge(wired, books, told), np.minimum(inclusion / probability[rows], 1.0)),
        Taught(_read(wired, books, taught, bursts), _score(wired, books, taught)),
        _frames_seen(wired, release, until),
        seed=wired.settings.round.seed + round_number,
    )
    return None if report is None else report.to_json() | {"release": release}


def _open_books(wired: Services, round_number: int) -> Books:
    rounds = [each.number for each in wired.catalog.rounds() if each.number <= round_number]
    return Books(
        agreed=agreed_labels(wired),
        asked={row.sample_id: row for number in rounds for row in wired.catalog.selection(number)},
    )


def _predicted(wired: Services, release: str, until: datetime, ids: Collection[str] | None = None) -> list[Sample]:
    """What the release answered until then: the named samples, or by default what the random arm kept."""
    found = wired.catalog.samples(release_id=release, until=until, ids=ids, random_arm_only=ids is None)
    return [sample for sample in found if sample.prediction is not None]


def _objected(wired: Services, samples: Sequence[Sample]) -> frozenset[str]:
    rows = wired.catalog.feedback(sample_ids={sample.sample_id for sample in samples})
    return frozenset(row.sample_id for row in rows if row.sample_id and row.says_wrong)


def _tells(sample: Sample, books: Books) -> bool:
    chosen = books.asked[sample.sample_id]
    drawn = sample.random_probability is not None and chosen.inclusion_probability is not None
    return drawn and sample.prediction is not None and sample.sample_id in books.agreed


def _audits(books: Books, sample_id: str) -> bool:
    row = books.asked.get(sample_id)
    return row is not None and row.role is SelectionRole.AUDIT


def _was_open(sample: Sample, books: Books, round_number: int, until: datetime) -> bool:
    """Whether the round's audit could have drawn it."""
    row = books.asked.get(sample.sample_id)
    if row is not None and row.round_number == round_number and row.role is SelectionRole.AUDIT:
        return True
    admitted = sample.ingested_at is not None and sample.ingested_at <= until
    return sample.random_probability is not None and admitted and (row is None or row.round_number == round_number)


def _selected_at(wired: Services, round_number: int, told: Sequence[Sample]) -> datetime:
    """The end of the period: what came later was not in the draw."""
    current = wired.catalog.round(round_number)
    noted = current.facts.get("selected_at") if current else None
    newest = max(sample.captured_at for sample in told) + timedelta.resolution
    return newest if noted is None else max(newest, datetime.fromisoformat(noted))


def _frames_seen(wired: Services, release: str, until: datetime) -> dict[str, float | None]:
    """How many frames each device answered with the release up to `until`, by its own word."""
    since = wired.catalog.first_captures(release, until)
    beats = {device.device_id: device.reported for device in wired.catalog.devices()}
    return {name: _frames_of(wired, name, beats.get(name), start, until) for name, start in since.items()}


def _frames_of(
    wired: Services, device_id: str, beat: ReportedState | None, since: datetime, until: datetime
) -> float | None:
    told = [
        FramesTold.of(batch.created_at, batch.counters)
        for batch in wired.catalog.batches_around(device_id, since, until)
        if batch.created_at is not None and batch.counters is not None
    ]
    told += [] if beat is None else [FramesTold.of(beat.reported_at, beat.counters)]
    return frames_between(told, since, until)


def _read(wired: Services, books: Books, samples: Sequence[Sample], bursts: dict[str, str]) -> Captures:
    labels = wired.settings.labels
    return read_captures(samples, bursts, books.objected, labels.kind, labels.class_names)


def _judge(wired: Services, books: Books, samples: Sequence[Sample]) -> Evidence:
    labels = wired.settings.labels
    predictions = [sample.prediction for sample in samples if sample.prediction is not None]
    return judge_predictions(labels.kind, predictions, [books.agreed[s.sample_id] for s in samples], labels.class_names)


def _score(wired: Services, books: Books, samples: Sequence[Sample]) -> Float64Array:
    names = wired.settings.labels.class_names
    return np.array(
        [score_prediction(s.prediction, books.agreed[s.sample_id], names) for s in samples if s.prediction], np.float64
    )
