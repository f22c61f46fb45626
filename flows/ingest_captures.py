"""Admit what devices have uploaded: plan, apply, acknowledge. Running it again changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import PurePosixPath

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact

from curate.catalog.admissions import AdmissionResult
from curate.catalog.deferral import Deferrals
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

DEFERRED = "deferred-batches"
"""Under this name the catalog keeps who waits."""
SHOWN = 200
"""Of the waiting batches so many are in the published table."""

Progress = Callable[[int, int], None]
"""Told how many of how many batches are admitted."""


@dataclass(frozen=True, eq=False)
class Arrival:
    """A record with the facts of the images that lie there; a missing image has no entry."""

    incoming: Incoming
    images: dict[str, ImageFacts]


def _now() -> datetime:
    return datetime.now(UTC)


@flow(name="ingest-captures")
def ingest_captures() -> dict[str, int]:
    """Take everything outstanding in the inbox and return what was admitted, repeated, refused and deferred."""
    counts = ingest_inbox()
    get_run_logger().info("inbox: %s", counts)
    return counts


@stage_task("ingest inbox")
def ingest_inbox() -> dict[str, int]:
    """Admit what lies in the inbox, as `admit_inbox` does, and publish what has to wait."""
    wired = services()
    waited = bool(_load_deferrals(wired, _now()).waiting)
    counts = admit_inbox(wired)
    if waited or counts["deferred"]:
        rows = _load_deferrals(wired, _now()).rows()
        create_table_artifact(
            key="deferred", table=rows[:SHOWN], description=f"{len(rows)} batches wait for images that are missing"
        )
        get_run_logger().warning("%d batches wait for images that are not in the bucket", len(rows))
    return counts


def admit_inbox(
    wired: Services, progress: Progress | None = None, clock: Callable[[], datetime] = _now
) -> dict[str, int]:
    """Admit every outstanding batch in order, acknowledge it to its device, and clear it from the inbox.

    The record is removed last: a crash anywhere before that only means admitting the same batch again. A batch whose
    images are not all there stays for a later run, and holds up no other.
    """
    deferrals = _load_deferrals(wired, clock())
    outstanding = list(wired.store.list(INBOX))
    due = [blob for blob in outstanding if deferrals.is_due(blob.key)]
    counts: Counter[str] = Counter(batches=len(outstanding))
    devices: set[str] = set()
    admitted = 0
    for plans, results in _admit_together(wired, _ready(wired, _arrivals(wired, due), deferrals), clock):
        for plan, result in zip(plans, results, strict=True):
            counts.update(samples=result.samples, feedback=result.feedback, quarantined=result.quarantined)
            if plan.batch is not None:
                devices.add(plan.batch.device_id)
        admitted += len(plans)
        if progress is not None:
            progress(admitted, len(due))
    _save_deferrals(wired, deferrals, {blob.key for blob in outstanding})
    for device in devices:
        _acknowledge(wired, device)
    done = [blob.key for blob in due if blob.key not in deferrals.waiting]
    for _ in work_ahead(wired.store.delete, done, BATCHES_AHEAD):
        pass
    counts["deferred"] = len(outstanding) - len(done)
    counts["joined"] = wired.catalog.join_feedback().joined
    return dict(counts)


def _load_deferrals(wired: Services, now: datetime) -> Deferrals:
    patience = timedelta(seconds=wired.settings.ingest.wait_for_images_s)
    return Deferrals.from_json(wired.catalog.watermark(DEFERRED), patience=patience, now=now)


def _save_deferrals(wired: Services, deferrals: Deferrals, outstanding: Collection[str]) -> None:
    stored = deferrals.to_json(outstanding)
    if stored != (wired.catalog.watermark(DEFERRED) or "{}"):
        wired.catalog.set_watermark(DEFERRED, stored)


def _ready(wired: Services, arrivals: Iterator[Arrival], deferrals: Deferrals) -> Iterator[Arrival]:
    """Pass on what need not wait; a batch that was taken before waits for nothing."""
    for arrival in arrivals:
        missing = len(arrival.incoming.image_keys) - len(arrival.images)
        if not deferrals.decide(arrival.incoming, 0 if missing and _is_taken(wired, arrival) else missing):
            yield arrival


def _is_taken(wired: Services, arrival: Arrival) -> bool:
    record = arrival.incoming.record
    return record is not None and bool(
        wired.catalog.batch_status([(record.device_id, record.boot_id, record.sequence)])
    )


def _arrivals(wired: Services, due: Sequence[BlobInfo]) -> Iterator[Arrival]:
    for arrival in work_ahead(partial(_look_at, wired), due, BATCHES_AHEAD):
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
    wired: Services, arrivals: Iterator[Arrival], clock: Callable[[], datetime]
) -> Iterator[tuple[list[AdmissionPlan], list[AdmissionResult]]]:
    """Admit batches, several in one transaction, and put aside the records that nobody can use."""
    dims = wired.catalog.embedding_dims()
    while some := list(islice(arrivals, BATCHES_TOGETHER)):
        now = clock()
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
