"""The whole way to the bucket: a camera in 1970 on a real S3 server, and what an idle device costs."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from curate.contracts import paths
from curate.contracts.capture import BatchRecord
from curate.contracts.telemetry import ReportedState
from curate.storage.s3_lean import LeanS3BlobStore
from curate.storage.s3_settings import S3Settings
from edge_agent.clock import Clock
from edge_agent.ledger import Ledger
from edge_agent.report import DeviceReport
from edge_agent.spool.limits import SpoolLimits
from edge_agent.spool.spool import Spool
from edge_agent.sync.loop import SyncLoop, SyncPolicy
from tests.fakes.captures import DEVICE, make_capture, make_jpeg
from tests.fakes.releases import Device

EAGER = SpoolLimits(min_free_bytes=0, batch_max_age_s=0.0)
REQUESTS_PER_POLL = 4
POLLS = 10


def test_a_camera_that_boots_in_1970_uploads_with_the_right_time(s3_settings: S3Settings, tmp_path: Path) -> None:
    """With a clock that starts in 1970 the first turn delivers a capture that was
    taken before any link, without a single error, with the true time of the capture."""
    started_s = time.time()
    clock = Clock(system=lambda: time.time() - started_s)
    spool = Spool.open(tmp_path, EAGER, Ledger(), device_id=DEVICE, boot_id="boot", clock=clock)
    jpeg = make_jpeg(1)
    record = make_capture(1, jpeg).model_copy(update={"captured_at": clock.now(), "monotonic_s": clock.monotonic()})
    assert record.captured_at.year == 1970
    assert spool.put(record, jpeg)
    store = LeanS3BlobStore(s3_settings, clock)
    report = DeviceReport(tmp_path / "updates.json", agent_version="1")
    loop = SyncLoop(spool, store, report, SyncPolicy(), clock=clock)
    loop.turn(clock.now())
    assert spool.snapshot().uploaded == 1

    bucket = LeanS3BlobStore(s3_settings)
    batch = BatchRecord.from_bytes(bucket.get(paths.inbox_key(DEVICE, "boot", 1)))
    assert bucket.get(paths.capture_key(DEVICE, batch.captures[0].image.sha256)) == jpeg
    heartbeat = ReportedState.from_bytes(bucket.get(paths.reported_key(DEVICE)))
    assert heartbeat.errors == {}
    assert abs(batch.captures[0].captured_at - datetime.now(UTC)) < timedelta(minutes=2)
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(seconds=3)


def test_a_steady_idle_device_costs_at_most_four_requests_a_poll(device: Device, tmp_path: Path) -> None:
    """Updater and sync together: an assignment that has not changed, a heartbeat, nothing to upload and no
    acknowledgement to wait for."""
    now_s = 1000.0
    ledger = Ledger()
    spool = Spool.open(tmp_path / "spool", EAGER, ledger, device_id=DEVICE, boot_id="b", monotonic=lambda: now_s)
    loop = SyncLoop(
        spool,
        device.store,
        device.report,
        SyncPolicy(heartbeat_s=30.0),
        monotonic=lambda: now_s,
        rng=random.Random(1),
    )
    loop.turn(device.now)
    device.store.reset()
    for _ in range(POLLS):
        now_s += 30.0
        ledger.frame_inferred(1000)
        device.turn(after=timedelta(seconds=30))
        loop.turn(device.now)
    assert len(device.store.requests) <= REQUESTS_PER_POLL * POLLS
    assert {key for _, key in device.store.requests} == {paths.desired_key(DEVICE), paths.reported_key(DEVICE)}
