"""The sync loop over bad links and bad servers, in front of a real S3 server (P1)."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from curate.contracts.paths import INBOX, ack_key, capture_key
from curate.errors import StorageError
from curate.storage.s3 import S3BlobStore, ensure_bucket
from curate.storage.s3_lean import LeanS3BlobStore
from curate.storage.s3_settings import S3Settings
from edge_agent.clock import Clock
from edge_agent.ledger import Ledger
from edge_agent.report import DeviceReport
from edge_agent.spool.spool import Spool, SpoolLimits
from edge_agent.sync.loop import SyncLoop, SyncPolicy
from tests.conftest import S3Server
from tests.fakes import fault_proxy
from tests.fakes.captures import broken_laws, make_capture, make_feedback, make_jpeg
from tests.fakes.catalog_view import CatalogView
from tests.fakes.fault_proxy import Fault, FaultProxy, WrongClock

LIMITS = SpoolLimits(min_free_bytes=0, batch_max_captures=3, batch_max_age_s=0.0)
POLICY = SyncPolicy(heartbeat_s=60.0, resend_after_s=10_000.0)
CAPTURES = 6


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> S3Settings:
    """One bucket for all faults; each has a device of its own."""
    settings = s3_server.settings("behind-a-bad-link")
    ensure_bucket(settings)
    return settings


@pytest.fixture
def proxy(bucket: S3Settings) -> Iterator[FaultProxy]:
    """A proxy before the real server."""
    with FaultProxy(str(bucket.endpoint_url)) as made:
        yield made


@pytest.fixture(scope="module")
def direct(bucket: S3Settings) -> S3BlobStore:
    """The cloud's own way to the bucket."""
    return S3BlobStore(bucket)


@pytest.fixture
def link(bucket: S3Settings, proxy: FaultProxy) -> S3Settings:
    """The device's way to the bucket."""
    return bucket.model_copy(update={"endpoint_url": proxy.url, "read_timeout_s": 15.0, "max_attempts": 1})


class World:
    """A device behind the proxy, and the cloud on the good side of it."""

    def __init__(
        self, folder: Path, direct: S3BlobStore, link: S3Settings, device_id: str, clock: Clock | None = None
    ) -> None:
        self.device_id = device_id
        self.direct = direct
        self.catalog = CatalogView()
        self.now_s = 1000.0
        self.told: set[str] = set()
        self.spool = Spool.open(
            folder / "spool", LIMITS, Ledger(), device_id=device_id, boot_id="boot", monotonic=lambda: self.now_s
        )
        report = DeviceReport(folder / "updates.json", agent_version="0")
        store, rng = LeanS3BlobStore(link, clock), random.Random(6)
        self.loop = SyncLoop(self.spool, store, report, POLICY, monotonic=lambda: self.now_s, rng=rng)

    def keep(self, first: int, count: int) -> None:
        """Captures come, each second one with a verdict."""
        for number in range(first, first + count):
            jpeg = make_jpeg(number, 400)
            assert self.spool.put(make_capture(number, jpeg), jpeg)
            if number % 2:
                self.spool.put_feedback(make_feedback(number))
                self.told.add(f"feedback-{number}")

    def turn(self, count: int = 1) -> None:
        """Let more time pass than any pause, and sync; the cloud ingests in between."""
        for _ in range(count):
            self.now_s += 4000.0
            self.loop.turn(datetime.now(UTC))
            self.ingest()

    def ingest(self) -> None:
        """Take what is visible, check its images, acknowledge."""
        for blob in self.direct.list(f"{INBOX}{self.device_id}/"):
            record = self.catalog.take(self.direct.get(blob.key))
            for capture in record.captures:
                image = self.direct.get(capture_key(self.device_id, capture.image.sha256))
                assert hashlib.sha256(image).hexdigest() == capture.image.sha256
        acknowledgement = self.catalog.acknowledgement(self.device_id)
        self.direct.put(ack_key(self.device_id), acknowledgement)

    def verify(self, captures: int) -> None:
        """Everything has arrived, once; the ledger closes on it."""
        counters = self.spool.snapshot()
        assert set(self.catalog.captures) == {f"capture-{number}" for number in range(captures)}
        assert (self.catalog.twice, self.catalog.changed) == ([], [])
        assert self.catalog.feedback == self.told
        assert broken_laws(counters) == []
        assert (counters.pending, counters.feedback_pending, counters.evicted) == (0, 0, 0)
        assert counters.acknowledged == counters.uploaded == captures


FAULTS: dict[str, tuple[Fault, int]] = {
    "drops": (fault_proxy.drops, 1),
    "drops-some": (fault_proxy.drops, 3),
    "resets-in-request": (fault_proxy.resets_in_request, 1),
    "resets-in-some-requests": (fault_proxy.resets_in_request, 2),
    "resets-in-answer": (fault_proxy.resets_in_answer, 1),
    "resets-in-some-answers": (fault_proxy.resets_in_answer, 2),
    "storms": (fault_proxy.storms, 1),
    "storms-at-times": (fault_proxy.storms, 4),
    "loses-answers": (fault_proxy.loses_answer, 1),
    "loses-some-answers": (fault_proxy.loses_answer, 3),
}


@pytest.mark.parametrize("name", FAULTS)
def test_over_a_bad_link_everything_arrives_once(
    tmp_path: Path, direct: S3BlobStore, link: S3Settings, proxy: FaultProxy, name: str
) -> None:
    """While the fault lasts and after it, puts go on; when it has ended, everything put is in the bucket, whole and
    once, and the ledger closes. Faults after the server has committed change nothing."""
    world = World(tmp_path, direct, link, name)
    world.keep(0, CAPTURES // 2)
    proxy.fault, proxy.every = FAULTS[name]
    world.turn(5)
    assert proxy.faults >= 3
    world.keep(CAPTURES // 2, CAPTURES // 2)
    proxy.heal()
    world.turn(4)
    world.verify(CAPTURES)


def test_a_link_of_one_kilobyte_a_second_is_slow_and_nothing_else(
    tmp_path: Path, direct: S3BlobStore, link: S3Settings, proxy: FaultProxy
) -> None:
    """What crawls arrives within the link's own time limits: no fault is counted, nothing is sent twice."""
    world = World(tmp_path, direct, link, "crawls")
    world.keep(0, 2)
    proxy.fault = fault_proxy.crawls
    world.turn()
    assert world.spool.snapshot().uploaded == 2
    proxy.heal()
    world.turn(2)
    world.verify(2)
    sent = [path for method, path in proxy.forwarded if method == "PUT" and "reported.json" not in path]
    assert len(sent) == len(set(sent)) == 3  # two images and their record


def test_refused_for_its_wrong_clock_a_device_goes_on_when_the_clocks_agree(
    tmp_path: Path, direct: S3BlobStore, link: S3Settings, proxy: FaultProxy
) -> None:
    """RequestTimeTooSkewed is a passing fault: nothing is lost, and all arrives once it has passed."""
    world = World(tmp_path, direct, link, "skewed")
    world.keep(0, CAPTURES)
    proxy.fault = server_clock(link, timedelta(days=3))
    world.turn(4)
    assert proxy.faults >= 4
    assert world.spool.snapshot().uploaded == 0
    proxy.heal()
    world.turn(4)
    world.verify(CAPTURES)


@pytest.mark.parametrize("years", [-56, 0.5])
def test_a_device_whose_clock_is_years_off_learns_the_buckets_time(
    tmp_path: Path, direct: S3BlobStore, link: S3Settings, proxy: FaultProxy, years: float
) -> None:
    """Booted in 1970, or set half a year ahead: the first refusal teaches the time, and everything arrives while the
    clocks still disagree."""
    offset = timedelta(days=365 * years)
    world = World(tmp_path, direct, link, f"learns-{round(abs(years))}", Clock())
    world.keep(0, CAPTURES)
    proxy.fault = server_clock(link, -offset)
    world.turn(4)
    world.verify(CAPTURES)


def server_clock(link: S3Settings, offset: timedelta) -> WrongClock:
    """A server whose clock is off by that much, as the device sees it."""
    secrets = [secret.get_secret_value() for secret in (link.access_key, link.secret_key) if secret is not None]
    return WrongClock(offset, *secrets)


def test_a_reset_reaches_the_client_as_a_passing_fault(link: S3Settings, proxy: FaultProxy) -> None:
    """Each fault of the proxy is one that the store calls retryable: none hides as a final refusal."""
    store = LeanS3BlobStore(link)
    for fault in {fault for fault, _ in FAULTS.values()}:
        proxy.fault = fault
        with pytest.raises(StorageError) as caught:
            store.put("captures/one/x.jpg", b"x" * 1000)
        assert caught.value.retryable, fault
