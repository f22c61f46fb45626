"""Admit what devices have uploaded: plan, apply, acknowledge. Running it again changes nothing."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

from prefect import flow, get_run_logger

from curate.catalog.admissions import AdmissionResult
from curate.catalog.ingest import image_keys, inspect_image, plan_admission
from curate.contracts.paths import INBOX, ack_key, quarantine_key
from curate.errors import BlobNotFoundError
from curate.storage.ports import BlobInfo
from flows._blobs import fetch_images_if_there
from flows._stage import stage_task
from flows._wiring import Services, services

MAX_RECORD_BYTES = 16 * 1024 * 1024


@flow(name="ingest-captures")
def ingest_captures() -> dict[str, int]:
    """Take everything outstanding in the inbox and return what was admitted, repeated and refused."""
    counts = ingest_inbox()
    get_run_logger().info("inbox: %s", counts)
    return counts


@stage_task("ingest inbox")
def ingest_inbox() -> dict[str, int]:
    """Admit every outstanding batch in order, acknowledge it to its device, and clear it from the inbox.

    The record is removed last: a crash anywhere before that only means admitting the same batch again.
    """
    wired = services()
    outstanding = list(wired.store.list(INBOX))
    counts: Counter[str] = Counter(batches=len(outstanding))
    devices = set()
    for blob in outstanding:
        try:
            device, result = _admit(wired, blob)
        except BlobNotFoundError:  # another run took it between our listing and our look
            continue
        counts.update(samples=result.samples, feedback=result.feedback, quarantined=result.quarantined)
        if device is not None:
            devices.add(device)
    for device in devices:
        _acknowledge(wired, device)
    for blob in outstanding:
        wired.store.delete(blob.key)
    counts["joined"] = wired.catalog.join_feedback().joined
    return dict(counts)


def _admit(wired: Services, blob: BlobInfo) -> tuple[str | None, AdmissionResult]:
    """Admit one batch; return the device to acknowledge it to, None when the key names none."""
    # An oversized record is refused unread; refusing it still lets its boot's later batches be acknowledged.
    raw = wired.store.get(blob.key) if blob.size_bytes <= MAX_RECORD_BYTES else b""
    images = fetch_images_if_there(wired, image_keys(blob.key, raw))
    plan = plan_admission(
        blob.key,
        raw,
        {name: inspect_image(data) for name, data in images.items()},
        now=datetime.now(UTC),
        embedding_dims=wired.catalog.embedding_dims(),
    )
    result = wired.catalog.admit_batch(plan)
    if plan.is_bad_record or result.conflict:
        wired.store.put(quarantine_key(blob.key), raw, content_type="application/json")
    return plan.batch.device_id if plan.batch else None, result


def _acknowledge(wired: Services, device_id: str) -> None:
    ack = wired.catalog.acknowledgement(device_id, now=datetime.now(UTC))
    wired.store.put(ack_key(device_id), ack.to_bytes(), content_type="application/json")
