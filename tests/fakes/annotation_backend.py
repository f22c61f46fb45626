"""An annotation backend in memory, with people who answer and answers that get lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from curate.annotation.models import AnnotationTask, BackendAnnotation, CollectedAnnotations, SentTask
from curate.errors import AnnotationUnavailableError

_START = datetime(2026, 3, 1, tzinfo=UTC)


@dataclass
class _Held:
    task: AnnotationTask
    backend_task_id: str
    updated_at: datetime
    annotations: list[BackendAnnotation] = field(default_factory=list)


class MemoryAnnotationBackend:
    """Obeys the port's law. Its clock moves a second with every change.

    `lose_answers` of the next sends take place, but their answers never arrive.
    """

    def __init__(self) -> None:
        self.lose_answers = 0
        self._held: dict[str, _Held] = {}
        self._changes = 0
        self._last_id = 0

    def ensure_project(self) -> str:
        """There is always one."""
        return "memory://project"

    def find_tasks(self, sample_ids: Sequence[str]) -> list[SentTask]:
        """Look through all tasks."""
        return [
            SentTask(held.task.sample_id, held.backend_task_id, bool(held.annotations))
            for held in self._held.values()
            if held.task.sample_id in sample_ids
        ]

    def send_tasks(self, tasks: Sequence[AnnotationTask]) -> list[SentTask]:
        """Keep the tasks, then answer, unless the answer gets lost."""
        sent = [self._keep(task) for task in tasks]
        if self.lose_answers:
            self.lose_answers -= 1
            raise AnnotationUnavailableError("the answer got lost")
        return sent

    def delete_tasks(self, backend_task_ids: Sequence[str]) -> None:
        """Forget the tasks."""
        for task_id in backend_task_ids:
            self._held.pop(task_id, None)

    def collect(self, since: datetime | None) -> CollectedAnnotations:
        """Return what changed since."""
        changed = [held for held in self._held.values() if since is None or held.updated_at >= since]
        newest = max((held.updated_at for held in self._held.values()), default=since or _START)
        return CollectedAnnotations(tuple(a for held in changed for a in held.annotations), newest)

    def count_tasks(self) -> int:
        """Return how many tasks are kept."""
        return len(self._held)

    def answer(self, backend_task_id: str, label: dict[str, Any] | None) -> None:
        """A person answers, None skips; the same person's second answer replaces the first."""
        held = self._held[backend_task_id]
        held.updated_at = now = self._tick()
        if held.annotations:
            held.annotations = [replace(held.annotations[0], label=label, was_cancelled=label is None, updated_at=now)]
            return
        held.annotations.append(
            BackendAnnotation(
                annotation_id=self._next_id(),
                backend_task_id=backend_task_id,
                sample_id=held.task.sample_id,
                annotator="1",
                label=label,
                was_cancelled=label is None,
                created_at=now,
                updated_at=now,
            )
        )

    def _keep(self, task: AnnotationTask) -> SentTask:
        held = _Held(task, self._next_id(), self._tick())
        self._held[held.backend_task_id] = held
        return SentTask(task.sample_id, held.backend_task_id)

    def _next_id(self) -> str:
        self._last_id += 1
        return str(self._last_id)

    def _tick(self) -> datetime:
        self._changes += 1
        return _START + timedelta(seconds=self._changes)
