"""Exactly one question per sample, decided from what the ledger planned and what the backend holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from curate.annotation.models import SentTask


@dataclass(frozen=True)
class DispatchPlan:
    """What to do before and after sending."""

    adopt: dict[str, str]
    """Sample id to the backend's task id: sent already, only the ledger does not know."""
    send: list[str]
    """Samples the backend does not hold, in queue order."""
    delete_duplicates: list[str]
    """Backend ids of unanswered tasks that ask again what another task asks."""


def plan_dispatch(planned_sample_ids: Sequence[str], found: Sequence[SentTask]) -> DispatchPlan:
    """Compare the planned samples with the tasks found at the backend, oldest first.

    Of several tasks for one sample the first answered one stays, else the oldest. An answered duplicate stays
    too: nobody's work is deleted. Tasks of samples that are not planned are left alone.
    """
    by_sample: dict[str, list[SentTask]] = {sample_id: [] for sample_id in planned_sample_ids}
    for task in found:
        if task.sample_id in by_sample:
            by_sample[task.sample_id].append(task)
    kept = {sample_id: _best(tasks) for sample_id, tasks in by_sample.items() if tasks}
    return DispatchPlan(
        adopt={sample_id: task.backend_task_id for sample_id, task in kept.items()},
        send=[sample_id for sample_id, tasks in by_sample.items() if not tasks],
        delete_duplicates=[
            task.backend_task_id
            for sample_id, tasks in by_sample.items()
            for task in tasks
            if task is not kept[sample_id] and not task.is_answered
        ],
    )


def _best(tasks: Iterable[SentTask]) -> SentTask:
    return min(tasks, key=lambda task: not task.is_answered)
