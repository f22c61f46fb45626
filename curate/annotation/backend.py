"""The annotation backend port."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from curate.annotation.models import AnnotationTask, CollectedAnnotations, SentTask


class AnnotationBackend(Protocol):
    """A queue of questions that people answer. Methods may raise `AnnotationUnavailableError` (try again)
    or `AnnotationError` (a person must act)."""

    def ensure_project(self) -> str:
        """Create or find the project, its label configuration and image storage; return its address for a person."""

    def find_tasks(self, sample_ids: Sequence[str]) -> list[SentTask]:
        """Return the tasks the backend already holds for these samples: the truth after a send in doubt.

        Oldest first. A sample sent twice by accident appears twice.
        """

    def send_tasks(self, tasks: Sequence[AnnotationTask]) -> list[SentTask]:
        """Send the tasks in queue order, once: never retried here, because a retry may duplicate."""

    def delete_tasks(self, backend_task_ids: Sequence[str]) -> None:
        """Remove tasks, for example duplicates found by `find_tasks`."""

    def collect(self, since: datetime | None) -> CollectedAnnotations:
        """Return every annotation of tasks updated at or after `since` (None: all), skips included."""

    def count_tasks(self) -> int:
        """Return how many tasks the project holds."""
