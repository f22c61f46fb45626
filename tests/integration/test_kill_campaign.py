"""kill -9 at random moments, many times: what a put promised is in the bucket, once, or counted as given up (P1)."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from curate.contracts.paths import INBOX, ack_key, capture_key
from curate.contracts.telemetry import DeviceCounters
from curate.errors import BlobNotFoundError
from curate.storage.local import LocalBlobStore
from curate.storage.ports import BlobStore
from curate.storage.s3 import S3BlobStore
from curate.storage.s3_settings import S3Settings
from tests.fakes.captures import DEVICE, broken_laws
from tests.fakes.catalog_view import CatalogView
from tests.fakes.doomed_uploader import Life, request
from tests.fakes.nightly import Tell, cases
from tests.fakes.power_cut import fast_folder

LONGEST_WAIT_S = 30.0
BYTES_PER_PUT = 40
"""In the journal."""


class Cloud(threading.Thread):
    """Ingest, beside the device: takes what is in the inbox, checks its images, acknowledges."""

    def __init__(self, bucket: BlobStore, interval_s: float) -> None:
        super().__init__()
        self.catalog = CatalogView()
        self.damaged: list[str] = []
        self.failure: BaseException | None = None
        self._bucket = bucket
        self._interval_s = interval_s
        self._stop_asked = threading.Event()

    def run(self) -> None:
        """Turn until told to stop."""
        try:
            while not self._stop_asked.wait(self._interval_s):
                self.turn()
        except BaseException as exc:
            self.failure = exc

    def turn(self) -> None:
        """Ingest once. A record stays for a while and is seen again, as when ingest dies before it removes it."""
        found = list(self._bucket.list(f"{INBOX}{DEVICE}/"))
        for blob in found:
            record = self.catalog.take(self._bucket.get(blob.key))
            self.damaged += [
                capture.capture_id for capture in record.captures if not self._is_whole(capture.image.sha256)
            ]
            if len(self.catalog.records) % 2:
                self._bucket.delete(blob.key)
        if found:
            self._bucket.put(ack_key(DEVICE), self.catalog.acknowledgement())

    def _is_whole(self, sha256: str) -> bool:
        try:
            return hashlib.sha256(self._bucket.get(capture_key(DEVICE, sha256))).hexdigest() == sha256
        except BlobNotFoundError:
            return False

    def end(self) -> None:
        """Stop, and tell what went wrong."""
        self._stop_asked.set()
        self.join()
        if self.failure is not None:
            raise self.failure


class Nursery:
    """Where lives come from."""

    def __init__(self, log: Path) -> None:
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fakes.doomed_uploader"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=Path(__file__).parents[2],
            )

    def live(self, life: Life, *, killed_after_bytes: int | None, rng: random.Random) -> None:
        """Let one life run to its end, or kill it at a random moment soon after its journal has grown so much: 0 is
        while it starts. Counted in progress, not in time, so that a busy machine kills no other lives."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        start = life.journal.stat().st_size
        self._process.stdin.write(request(life) + "\n")
        self._process.stdin.flush()
        child = int(self._process.stdout.readline())
        if killed_after_bytes is not None:
            deadline = time.monotonic() + LONGEST_WAIT_S
            while killed_after_bytes and life.journal.stat().st_size < start + killed_after_bytes:
                assert time.monotonic() < deadline, "a life does not get on"
                time.sleep(0.001)
            time.sleep(rng.uniform(0.0, 0.01))
            os.kill(child, signal.SIGKILL)
        assert self._process.stdout.readline() == "gone\n"

    def close(self) -> None:
        """End it; nothing it started is left."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


@dataclass(frozen=True)
class Campaign:
    """What the lives said, and what the cloud has."""

    kept: set[str]
    dropped: set[str]
    tried: set[str]
    told: set[str]
    counters: DeviceCounters
    cloud: Cloud

    def verify(self) -> None:
        """P1."""
        catalog, counters = self.cloud.catalog, self.counters
        arrived = set(catalog.captures)
        assert broken_laws(counters) == []
        assert (counters.pending, counters.feedback_pending) == (0, 0)
        assert (catalog.twice, catalog.changed, self.cloud.damaged) == ([], [], [])
        assert arrived <= self.tried
        # What was evicted is what was kept and did not arrive, but for puts that a kill left without an answer.
        given_up = len(self.kept - arrived)
        assert given_up <= counters.evicted <= given_up + len(self.tried - self.kept - self.dropped - arrived)
        assert counters.acknowledged == len(arrived)
        assert len(self.kept | arrived) <= counters.spooled <= len(self.tried)
        assert self.told <= catalog.feedback

    def __str__(self) -> str:
        counters = self.counters
        return (
            f"{len(self.kept)} puts returned, {counters.acknowledged} captures and {len(self.cloud.catalog.feedback)} "
            f"verdicts arrived in {len(self.cloud.catalog.records)} batches, {counters.evicted} counted as evicted, "
            f"0 lost, 0 twice"
        )


def wage(folder: Path, bucket: str, store: BlobStore, *, kills: int, seed: int, puts: int) -> Campaign:
    """Kill as often as asked, each after up to so many puts, then let one last life finish."""
    rng = random.Random(seed)
    cloud = Cloud(store, interval_s=0.02)
    (folder / "journal").touch()
    nursery = Nursery(folder / "nursery.log")
    cloud.start()
    try:
        for number in range(kills):
            life = Life(str(folder), f"boot{number}", number * 10_000, bucket)
            growth = rng.choice((0, rng.randrange(BYTES_PER_PUT * puts), rng.randrange(BYTES_PER_PUT * puts)))
            nursery.live(life, killed_after_bytes=growth, rng=rng)
        nursery.live(Life(str(folder), "last", 0, bucket, last=True), killed_after_bytes=None, rng=rng)
    finally:
        nursery.close()
        cloud.end()
    lines = [line.split(" ", 1) for line in (folder / "journal").read_text().splitlines()]
    said = {verb: {what for word, what in lines if word == verb} for verb in ("kept", "dropped", "tries", "told")}
    assert lines[-1][0] == "ends", (folder / "nursery.log").read_text()[-3000:]
    counters = DeviceCounters.from_bytes(lines[-1][1].encode())
    return Campaign(said["kept"], said["dropped"], said["tries"], said["told"], counters, cloud)


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder on a fast disk: a kill does not ask what lies below the kernel."""
    with fast_folder() as name:
        yield Path(name)


def test_killed_many_times_nothing_promised_is_lost_or_doubled(disk: Path, tell: Tell) -> None:
    """100 (nightly 1,000) kills of a process that keeps and uploads at full speed: every capture and verdict that was
    promised arrives, its image whole, in one batch, or is counted as evicted; the ledger closes."""
    kills = cases(thin=100, full=1000)
    bucket = disk / "bucket"
    campaign = wage(disk, str(bucket), LocalBlobStore(bucket), kills=kills, seed=9, puts=20)
    campaign.verify()
    tell(f"{kills} kills -9: {campaign}")
    assert len(campaign.kept) > kills


def test_killed_while_it_talks_to_a_real_server_nothing_is_lost_or_doubled(
    disk: Path, s3_settings: S3Settings, tell: Tell
) -> None:
    """The same against a real S3 server, whose answers a kill leaves unread."""
    kills = cases(thin=15, full=200)
    bucket = s3_settings.model_dump(mode="json") | {
        "access_key": s3_settings.access_key and s3_settings.access_key.get_secret_value(),
        "secret_key": s3_settings.secret_key and s3_settings.secret_key.get_secret_value(),
    }
    campaign = wage(disk, json.dumps(bucket), S3BlobStore(s3_settings), kills=kills, seed=10, puts=60)
    campaign.verify()
    tell(f"{kills} kills -9 against SeaweedFS: {campaign}")
    assert len(campaign.kept) > kills
