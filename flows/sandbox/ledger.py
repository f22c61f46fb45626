"""The closing of the books: every frame, capture, task and verdict of the demo is accounted for, or the demo fails."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from curate.contracts.telemetry import DeviceCounters


@dataclass(frozen=True)
class DeviceBook:
    """One device's own totals beside what the cloud holds of it."""

    device_id: str
    counters: DeviceCounters
    cloud_captures: int
    """Captures of its batches that the catalog admitted or quarantined."""
    cloud_feedback: int
    feedback_joined: int
    feedback_explained: int
    """Verdicts whose frame was gone, or whose capture went to quarantine: nothing to join, and why is known."""


@dataclass(frozen=True)
class AnnotationBook:
    """The task ledger beside what Label Studio holds."""

    ledger_tasks: int
    sampled_tasks: int
    """Distinct samples among the backend's tasks."""
    backend_tasks: int
    completed_tasks: int
    annotation_records: int
    """Annotations of completed tasks in the catalog."""


def verify_device(book: DeviceBook) -> Iterator[str]:
    """Yield each law the device's book breaks, in words."""
    c, name = book.counters, book.device_id
    yield from _equal(
        f"{name}: frames seen = inferred + skipped", c.frames_seen, c.frames_inferred + sum(c.frames_skipped.values())
    )
    yield from _equal(f"{name}: selected = spooled + dropped", c.selected, c.spooled + sum(c.dropped.values()))
    yield from _equal(
        f"{name}: spooled = acknowledged + pending + evicted", c.spooled, c.acknowledged + c.pending + c.evicted
    )
    yield from _equal(
        f"{name}: verdicts = acknowledged + pending + given up",
        c.feedback_spooled,
        c.feedback_acknowledged + c.feedback_pending + sum(c.feedback_given_up.values()),
    )
    yield from _equal(f"{name}: ingested = uploaded", book.cloud_captures, c.uploaded)
    yield from _equal(f"{name}: verdicts in the cloud = acknowledged", book.cloud_feedback, c.feedback_acknowledged)
    yield from _equal(
        f"{name}: verdicts joined or explained", book.feedback_joined + book.feedback_explained, book.cloud_feedback
    )


def verify_annotation(book: AnnotationBook) -> Iterator[str]:
    """Yield each law the annotation book breaks, in words."""
    yield from _equal("Label Studio: one task a sample", book.backend_tasks, book.sampled_tasks)
    yield from _equal("Label Studio: tasks = ledger", book.backend_tasks, book.ledger_tasks)
    yield from _equal("one annotation record a completed task", book.annotation_records, book.completed_tasks)


def _equal(law: str, left: int, right: int) -> Iterator[str]:
    if left != right:
        yield f"{law}: {left} against {right}"
