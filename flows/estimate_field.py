"""How accurate the deployed model was in the field, from the round's audited random-arm captures."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import flow, get_run_logger

from curate.annotation.agreement import consensus
from curate.catalog.models import AnnotationRow, SelectionRole
from curate.catalog.splits import assign_groups
from curate.catalog.verdicts import is_correct
from curate.selection.estimate import estimate_field_accuracy
from flows._stage import stage_task
from flows._wiring import services


@flow(name="estimate-field")
def estimate_field(round_number: int) -> dict[str, Any] | None:
    """Estimate the field accuracy of the model that made the round's predictions; None when nothing was audited."""
    estimate = estimate_from_audits(round_number)
    get_run_logger().info("field accuracy: %s", estimate)
    return estimate


@stage_task("estimate from audits")
def estimate_from_audits(round_number: int) -> dict[str, Any] | None:
    """Join audits, answers and the devices' own predictions; skipped ones are left out."""
    wired = services()
    audits = {row.sample_id: row for row in wired.catalog.selection(round_number) if row.role is SelectionRole.AUDIT}
    answers: dict[str, list[AnnotationRow]] = {}
    for answer in wired.catalog.annotations(round_number=round_number):
        answers.setdefault(answer.sample_id, []).append(answer)
    samples = wired.catalog.samples(ids=list(audits))
    bursts = assign_groups(samples, {}, wired.settings.split.block_s)
    correct, probabilities, groups = [], [], []
    for sample in samples:
        agreed = consensus(answers.get(sample.sample_id, []))
        probability = audits[sample.sample_id].inclusion_probability
        if agreed is None or sample.prediction is None or probability is None:
            continue
        correct.append(is_correct(sample.prediction, agreed.label, wired.settings.labels.class_names))
        probabilities.append(probability)
        groups.append(bursts[sample.sample_id])
    if not correct:
        return None
    estimate = asdict(estimate_field_accuracy(correct, probabilities, groups))
    return estimate | {"release": samples[0].release_id}
