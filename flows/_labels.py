"""What people settled on."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from curate.annotation.agreement import consensus_of
from curate.catalog.models import AnnotationRow
from flows._wiring import Services


def agreed_labels(wired: Services, sample_ids: Collection[str] | None = None) -> dict[str, dict[str, Any]]:
    """Return the label of each sample, of those named if any are; without those nobody has answered."""
    consensus = consensus_of(wired.settings.labels)
    answers: dict[str, list[AnnotationRow]] = {}
    for answer in wired.catalog.annotations(sample_ids=sample_ids):
        answers.setdefault(answer.sample_id, []).append(answer)
    held = {sample_id: consensus(given) for sample_id, given in answers.items()}
    return {sample_id: agreed.label for sample_id, agreed in held.items() if agreed is not None}
