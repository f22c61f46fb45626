"""How good the deployed model was in the field, from the round's audited random-arm captures."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import flow, get_run_logger

from curate.annotation.agreement import consensus_of
from curate.catalog.models import AnnotationRow, SelectionRole
from curate.catalog.splits import assign_groups
from curate.metrics.kinds import judge_predictions
from curate.selection.estimate import estimate_field as estimate_metric
from flows._stage import stage_task
from flows._wiring import Services, services


@flow(name="estimate-field")
def estimate_field(round_number: int) -> dict[str, Any] | None:
    """Estimate how good the model is that made the round's predictions; None when nothing was audited."""
    estimate = estimate_from_audits(round_number)
    get_run_logger().info("in the field: %s", estimate)
    return estimate


@stage_task("estimate from audits")
def estimate_from_audits(round_number: int) -> dict[str, Any] | None:
    """Join audits, answers and the devices' own predictions; skipped ones are left out."""
    wired = services()
    labels = wired.settings.labels
    audits = {row.sample_id: row for row in wired.catalog.selection(round_number) if row.role is SelectionRole.AUDIT}
    agreed = _settled(wired, round_number)
    told = [
        (sample, sample.prediction, probability)
        for sample in wired.catalog.samples(ids=list(audits))
        if (probability := audits[sample.sample_id].inclusion_probability) is not None
        and sample.prediction is not None
        and sample.sample_id in agreed
    ]
    if not told:
        return None
    samples, predictions, probabilities = zip(*told, strict=True)
    bursts = assign_groups(samples, {}, wired.settings.split.block_s)
    evidence = judge_predictions(
        labels.kind, predictions, [agreed[sample.sample_id] for sample in samples], labels.class_names
    )
    estimate = estimate_metric(evidence, probabilities, [bursts[sample.sample_id] for sample in samples])
    return None if estimate is None else asdict(estimate) | {"release": samples[0].release_id}


def _settled(wired: Services, round_number: int) -> dict[str, dict[str, Any]]:
    """What people settled on, by sample; without those nobody answered."""
    consensus = consensus_of(wired.settings.labels)
    answers: dict[str, list[AnnotationRow]] = {}
    for answer in wired.catalog.annotations(round_number=round_number):
        answers.setdefault(answer.sample_id, []).append(answer)
    held = {sample_id: consensus(given) for sample_id, given in answers.items()}
    return {sample_id: agreed.label for sample_id, agreed in held.items() if agreed is not None}
