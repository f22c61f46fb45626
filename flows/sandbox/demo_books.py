"""Gathering the books: what devices say of themselves beside what the cloud and the annotation tool really hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from curate.annotation.backend import AnnotationBackend
from curate.catalog.models import TaskStatus
from curate.catalog.store import Catalog
from curate.contracts.paths import reported_key
from curate.contracts.telemetry import ReportedState
from curate.errors import BlobNotFoundError
from curate.storage.ports import BlobStore
from flows.sandbox.ledger import AnnotationBook, DeviceBook, verify_annotation, verify_device

_OF_WHOLE_RECORDS = {"bad_key", "bad_schema", "key_mismatch", "batch_conflict"}
"""Quarantine reasons that concern a batch record; all others concern one capture, named first in the detail."""


def fetch_reported(store: BlobStore, device_ids: Iterable[str]) -> dict[str, ReportedState | None]:
    """Fetch each device's last heartbeat, None where there is none.

    Raises:
        StorageError: the bucket cannot be read.
        ContractError: a heartbeat does not follow its schema.
    """
    return {device_id: _reported(store, device_id) for device_id in device_ids}


def gather_device_book(catalog: Catalog, state: ReportedState) -> DeviceBook:
    """Set the device's counters beside the catalog's rows about it, counted one by one and not from batch headers."""
    name = state.device_id
    verdicts = catalog.feedback(device_id=name)
    refused = _refused_captures(catalog, name, {verdict.feedback_id for verdict in verdicts})
    admitted = sum(count.count for count in catalog.sample_counts() if count.device_id == name)
    loose = [verdict for verdict in verdicts if verdict.sample_id is None]
    explained = [v for v in loose if not v.frame_available or f"{name}-{v.prediction_id}" in refused]
    # A frame that was there when the verdict came may have been dropped or evicted since: only the counters know.
    lost_later = state.counters.evicted + sum(state.counters.dropped.values())
    return DeviceBook(
        device_id=name,
        counters=state.counters,
        cloud_captures=admitted + len(refused),
        cloud_feedback=len(verdicts),
        feedback_joined=len(verdicts) - len(loose),
        feedback_explained=len(explained) + min(lost_later, len(loose) - len(explained)),
    )


def gather_annotation_book(catalog: Catalog, backend: AnnotationBackend) -> AnnotationBook:
    """Set the task ledger beside the backend's own list of tasks and answers.

    Raises:
        AnnotationError: the backend cannot be asked.
    """
    tasks = catalog.tasks()
    held = backend.find_tasks([task.sample_id for task in tasks])
    answered = {task.sample_id for task in tasks if task.status is TaskStatus.COMPLETED}
    records = [row for row in catalog.annotations() if row.sample_id in answered and not row.was_cancelled]
    told = {row.sample_id for row in backend.collect(None).annotations if not row.was_cancelled}
    return AnnotationBook(
        ledger_tasks=len(tasks),
        sampled_tasks=len({task.sample_id for task in held}),
        backend_tasks=backend.count_tasks(),
        completed_tasks=len(told),
        annotation_records=len(records),
    )


def find_violations(
    states: Mapping[str, ReportedState | None], devices: Iterable[DeviceBook], annotation: AnnotationBook
) -> list[str]:
    """Every law that is broken, in words; a device that never reported breaks all of its own at once."""
    silent = [f"{name}: it never reported, so nothing about it is known" for name, state in states.items() if not state]
    return [*silent, *(law for book in devices for law in verify_device(book)), *verify_annotation(annotation)]


def _reported(store: BlobStore, device_id: str) -> ReportedState | None:
    try:
        return ReportedState.from_bytes(store.get(reported_key(device_id)))
    except BlobNotFoundError:
        return None


def _refused_captures(catalog: Catalog, device_id: str, feedback_ids: set[str]) -> set[str]:
    """Ids of the device's captures in quarantine; a verdict whose id was taken lies there too and is no capture."""
    rows = (row for row in catalog.quarantine(device_id) if row.reason not in _OF_WHOLE_RECORDS)
    names = {row.detail.partition(" ")[0].rstrip(":") for row in rows}
    return names - feedback_ids
