"""Admit what devices have uploaded: plan, apply, acknowledge. Running it again changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import PurePosixPath

from prefect import flow, get_run_logger

from curate.catalog.admissions import AdmissionResult
from curate.catalog.ingest import (
    AdmissionPlan,
    ImageFacts,
    Incoming,
    inspect_image,
    oversized_image,
    plan_admission,
    read_incoming,
)
from curate.contracts.paths import INBOX, ack_key, quarantine_key
from curate.errors import BlobNotFoundError, BlobTooLargeError
from curate.storage.ports import BlobInfo
from flows._blobs import fetch_fresh, work_ahead
from flows._stage import stage_task
from flows._wiring import Services, services

MAX_RECORD_BYTES = 16 * 1024 * 1024
BATCHES_AHEAD = 32
"""So many batches are read and their images looked at while others are admitted."""
BATCHES_TOGETHER = 16
"""So many share one commit: the disk's answer to it takes longer than a batch."""

Progress = Callable[[int, int], None]
"""Told how many of how many batches are admitted."""


@dataclass(frozen=True, eq=False)
class Arrival:
    """A record with the facts of the images that lie there; a missing image has no entry."""

    incoming: Incoming
    images: dict[str, ImageFacts]


@flow(name="ingest-captures")
def ingest_captures() -> dict[str, int]:
    """Take everything outstanding in the inbox and return what was admitted, repeated and refused."""
    counts = ingest_inbox()
    get_run_logger().info("inbox: %s", counts)
    return counts


@stage_task("ingest inbox")
def ingest_inbox() -> dict[str, int]:
    """Admit what lies in the inbox, as `admit_inbox` does."""
    return admit_inbox(services())


def admit_inbox(wired: Services, progress: Progress | None = None) -> dict[str, int]:
    """Admit every outstanding batch in order, acknowledge it to its device, and clear it from the inbox.

    The record is removed last: a crash anywhere before that only means admitting the same batch again.
    """
    outstanding = list(wired.store.list(INBOX))
    counts: Counter[str] = Counter(batches=len(outstanding))
    devices: set[str] = set()
    admitted = 0
    for plans, results in _admit_together(wired, _arrivals(wired, outstanding)):
        for plan, result in zip(plans, results, strict=True):
            counts.update(samples=result.samples, feedback=result.feedback, quarantined=result.quarantined)
            if plan.batch is not None:
                devices.add(plan.batch.device_id)
        admitted += len(plans)
        if progress is not None:
            progress(admitted, len(outstanding))
    for device in devices:
        _acknowledge(wired, device)
    for _ in work_ahead(wired.store.delete, [blob.key for blob in outstanding], BATCHES_AHEAD):
        pass
    counts["joined"] = wired.catalog.join_feedback().joined
    return dict(counts)


def _arrivals(wired: Services, outstanding: Sequence[BlobInfo]) -> Iterator[Arrival]:
    for arrival in work_ahead(partial(_look_at, wired), outstanding, BATCHES_AHEAD):
        if arrival is not None:
            yield arrival


def _look_at(wired: Services, blob: BlobInfo) -> Arrival | None:
    """Read one batch and look at its images; None when another run took it since it was listed."""
    # An oversized record is refused unread; refusing it still lets its boot's later batches be acknowledged.
    try:
        raw = wired.store.get(blob.key) if blob.size_bytes <= MAX_RECORD_BYTES else b""
    except BlobNotFoundError:
        return None
    incoming = read_incoming(blob.key, raw)
    facts = {key: _look_at_image(wired, key) for key in incoming.image_keys}
    return Arrival(incoming, {key: known for key, known in facts.items() if known is not None})


def _look_at_image(wired: Services, key: str) -> ImageFacts | None:
    """Return what an image is, without keeping it; None when nothing lies there."""
    try:
        return inspect_image(fetch_fresh(wired, key))
    except BlobNotFoundError:
        return None
    except BlobTooLargeError as exc:  # a device can put it there, and must not stop what others sent
        return oversized_image(PurePosixPath(key).stem, wired.store.size(key) or 0, str(exc))


def _admit_together(
    wired: Services, arrivals: Iterator[Arrival]
) -> Iterator[tuple[list[AdmissionPlan], list[AdmissionResult]]]:
    """Admit batches, several in one transaction, and put aside the records that nobody can use."""
    dims = wired.catalog.embedding_dims()
    while some := list(islice(arrivals, BATCHES_TOGETHER)):
        now = datetime.now(UTC)
        plans = []
        for arrival in some:
            plan = plan_admission(arrival.incoming, arrival.images, now=now, embedding_dims=dims)
            dims |= plan.embedding_dims
            plans.append(plan)
        results = wired.catalog.admit_batches(plans)
        for arrival, plan, result in zip(some, plans, results, strict=True):
            if plan.is_bad_record or result.conflict:
                wired.store.put(quarantine_key(plan.inbox_key), arrival.incoming.raw, content_type="application/json")
        yield plans, results


def _acknowledge(wired: Services, device_id: str) -> None:
    ack = wired.catalog.acknowledgement(device_id, now=datetime.now(UTC))
    wired.store.put(ack_key(device_id), ack.to_bytes(), content_type="application/json")
