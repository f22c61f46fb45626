"""A nursery of short lives: a process that has imported the spool and the sync loop once and forks one agent after
another, each to be killed by whoever asked for it.

Run as `python -m tests.fakes.doomed_uploader`. Each line on its standard input is a life, as JSON; it answers with the
process id, and with `gone` when that process has ended. A life writes what it tries and what it is sure of to its
journal, one line a system call (O_APPEND), so that the journal outlives the kill.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from curate.contracts.capture import Arm
from curate.errors import Error
from curate.storage.local import LocalBlobStore
from curate.storage.ports import BlobStore
from curate.storage.s3_lean import LeanS3BlobStore
from curate.storage.s3_settings import S3Settings
from edge_agent.backoff import BackoffPolicy
from edge_agent.ledger import Ledger
from edge_agent.report import DeviceReport
from edge_agent.spool.spool import Spool, SpoolLimits
from edge_agent.sync.loop import SyncLoop, SyncPolicy
from tests.fakes.captures import DEVICE, make_capture, make_feedback, make_jpeg

LIMITS = SpoolLimits(max_bytes=400_000, min_free_bytes=0, batch_max_captures=8, batch_max_age_s=0.01, max_batches=8)
POLICY = SyncPolicy(
    interval_s=0.002,
    persist_s=0.02,
    heartbeat_s=0.05,
    resend_after_s=5.0,
    backoff=BackoffPolicy(base_s=0.001, cap_s=0.01, refused_s=0.02),
)


@dataclass(frozen=True)
class Life:
    """One life: where, under which boot id, from which number on; with `last`, until all has been acknowledged."""

    state: str
    boot_id: str
    first_number: int
    bucket: str
    """A folder, or the S3 settings as JSON."""
    last: bool = False

    @property
    def journal(self) -> Path:
        """What it tried and what it was sure of."""
        return Path(self.state) / "journal"


class Journal:
    """Lines that are in the kernel's hands when `say` returns."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def say(self, line: str) -> None:
        """Write one line."""
        os.write(self._handle, f"{line}\n".encode())


def open_bucket(where: str) -> BlobStore:
    """The bucket that `Life.bucket` names."""
    if not where.startswith("{"):
        return LocalBlobStore(Path(where))
    return LeanS3BlobStore(S3Settings.model_validate_json(where))


def live(life: Life) -> None:
    """Put, tell and sync until somebody ends it."""
    journal = Journal(life.journal)
    ledger = Ledger()
    spool = Spool.open(Path(life.state) / "spool", LIMITS, ledger, device_id=DEVICE, boot_id=life.boot_id)
    report = DeviceReport(Path(life.state) / "updates.json", agent_version="0")
    loop = SyncLoop(spool, open_bucket(life.bucket), report, POLICY)
    stop = threading.Event()
    syncing = threading.Thread(target=loop.run, args=(stop,))
    syncing.start()
    journal.say(f"lives {life.boot_id}")
    if life.last:
        wait_until_empty(spool, stop)
    else:
        keep_for_ever(spool, ledger, journal, life.first_number)
    stop.set()
    syncing.join()
    journal.say(f"ends {spool.snapshot().to_bytes().decode()}")


def keep_for_ever(spool: Spool, ledger: Ledger, journal: Journal, number: int) -> None:
    """Captures of changing size and worth, and a verdict now and then, as fast as the disk takes them."""
    rng = random.Random(number)
    while True:
        number += 1
        ledger.frame_inferred(1000)
        jpeg = make_jpeg(number, rng.randrange(100, 2500))
        arms = rng.choice([(Arm.UNCERTAIN,), (Arm.RANDOM,), (Arm.DISMISSED, Arm.UNCERTAIN)])
        journal.say(f"tries capture-{number}")
        kept = spool.put(make_capture(number, jpeg, arms), jpeg)
        journal.say(f"{'kept' if kept else 'dropped'} capture-{number}")
        if number % 5 == 0:
            with contextlib.suppress(Error):  # refused in words: nothing was promised
                spool.put_feedback(make_feedback(number))
                journal.say(f"told feedback-{number}")


def wait_until_empty(spool: Spool, stop: threading.Event) -> None:
    """Wait until the cloud has acknowledged everything."""
    while True:
        counters = spool.snapshot()
        if not (counters.pending or counters.feedback_pending or spool.unacknowledged()):
            return
        stop.wait(0.005)


def main() -> None:
    """Fork a life for each line, and tell when it is gone. Single-threaded, so that forking is safe."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                live(Life(**json.loads(line)))
                code = 0
            finally:
                os._exit(code)
        print(child, flush=True)
        os.waitpid(child, 0)
        print("gone", flush=True)


def request(life: Life) -> str:
    """The line that asks for this life."""
    return json.dumps(asdict(life))


if __name__ == "__main__":
    main()
