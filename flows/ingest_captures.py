"""Admit what devices have uploaded: plan, apply, acknowledge. Running it again changes nothing."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

from prefect import flow, get_run_logger

from curate.catalog.ingest import AdmissionPlan, image_keys, inspect_image, plan_admission
from curate.contracts.paths import INBOX, ack_key, quarantine_key
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
    outstanding = sorted(blob.key for blob in wired.store.list(INBOX) if blob.size_bytes <= MAX_RECORD_BYTES)
    dims = wired.catalog.embedding_dims()
    counts: Counter[str] = Counter(batches=len(outstanding))
    devices: dict[str, list[str]] = {}
    for key in outstanding:
        plan = _plan(wired, key, dims)
        result = wired.catalog.admit_batch(plan)
        counts.update(samples=result.samples, feedback=result.feedback, quarantined=result.quarantined)
        devices.setdefault(plan.batch.device_id if plan.batch else "", []).append(key)
    for device, keys in devices.items():
        if device:
            _acknowledge(wired, device)
        for key in keys:
            wired.store.delete(key)
    counts["joined"] = wired.catalog.join_feedback().joined
    return dict(counts)


def _plan(wired: Services, key: str, dims: dict[str, int]) -> AdmissionPlan:
    raw = wired.store.get(key, max_bytes=MAX_RECORD_BYTES)
    images = fetch_images_if_there(wired.store, image_keys(key, raw))
    facts = {name: inspect_image(data) for name, data in images.items()}
    plan = plan_admission(key, raw, facts, now=datetime.now(UTC), embedding_dims=dims)
    if plan.is_bad_record:
        wired.store.put(quarantine_key(key), raw, content_type="application/json")
    return plan


def _acknowledge(wired: Services, device_id: str) -> None:
    ack = wired.catalog.acknowledgement(device_id, now=datetime.now(UTC))
    wired.store.put(ack_key(device_id), ack.to_bytes(), content_type="application/json")
