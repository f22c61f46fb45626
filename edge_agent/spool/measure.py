"""How fast this disk takes captures, against what it can do at all, and how long a big spool takes to open."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from curate.contracts.capture import Arm, ArmOutcome, CaptureRecord, ImageRef
from curate.contracts.prediction import ClassificationPrediction
from curate.errors import AgentError
from edge_agent.durable import seal, write_durably
from edge_agent.ledger import Ledger, Totals
from edge_agent.spool.files import CaptureHeader, SpoolFolder
from edge_agent.spool.limits import SpoolLimits
from edge_agent.spool.spool import Spool

_CLASSES = 100
_ARMS = (Arm.RANDOM, Arm.DISMISSED, Arm.UNCERTAIN, Arm.UNCERTAIN)
_DIGEST = "0" * 64


@dataclass(frozen=True)
class PutRate:
    """Durable writes a second, medians over rounds that took turns."""

    capture_bytes: int
    spool_per_s: float
    disk_per_s: float
    """A bare loop of the same files: write, fsync, rename, fsync of the folder."""
    share: float
    """Median of the rounds' shares: spool over disk."""


@dataclass(frozen=True)
class RecoveryTime:
    """Seconds until a spool of so many captures is open."""

    captures: int
    cold_s: float
    """With the files' pages dropped from the system's cache, as far as it obeys."""
    warm_s: float
    cpu_s: float
    """Processor time of the warm one: what it costs where nothing else runs and the disk is quick."""


def measure_put_rate(
    folder: Path, *, capture_bytes: int = 40_000, rounds: int = 7, captures_a_round: int = 30, full: bool = False
) -> PutRate:
    """Let `Spool.put` and a bare loop write files of the same size in turns, below `folder` (empty, left filled).

    With `full` the spool holds only one round, so that every put makes another capture give way.

    Raises:
        AgentError: the disk refused.
    """
    spool = _open(folder / "spool", captures_a_round * capture_bytes if full else 2**62)
    bare = folder / "bare"
    bare.mkdir(parents=True)
    _time(range(captures_a_round), lambda n: _put(spool, n, capture_bytes))
    raw = bytes(max(path.stat().st_size for path in (folder / "spool" / "captures").iterdir()))
    shares, spool_rates, disk_rates = [], [], []
    for first in range(captures_a_round, (rounds + 1) * captures_a_round, captures_a_round):
        numbers = range(first, first + captures_a_round)
        spool_s = _time(numbers, lambda n: _put(spool, n, capture_bytes))
        disk_s = _time(numbers, lambda n: write_durably(bare / str(n), raw))
        shares.append(disk_s / spool_s)
        spool_rates.append(captures_a_round / spool_s)
        disk_rates.append(captures_a_round / disk_s)
    return PutRate(
        capture_bytes=capture_bytes,
        spool_per_s=statistics.median(spool_rates),
        disk_per_s=statistics.median(disk_rates),
        share=statistics.median(shares),
    )


def measure_recovery(folder: Path, captures: int = 50_000, *, capture_bytes: int = 8_000) -> RecoveryTime:
    """Fill a spool below `folder` (empty, left filled) and open it twice.

    The pictures are holes in their files: opening reads headers only, and the disk is spared.
    """
    root = folder / "spool"
    _fill(SpoolFolder(root), captures, capture_bytes)
    os.sync()
    _drop_cached(root / "captures")
    cold_s = _time([1], lambda _: _open(root, 2**62))
    before_s = time.process_time()
    warm_s = _time([1], lambda _: _open(root, 2**62))
    return RecoveryTime(captures, cold_s, warm_s, time.process_time() - before_s)


def _time(numbers: Iterable[int], work: Callable[[int], object]) -> float:
    started_s = time.perf_counter()
    for number in numbers:
        work(number)
    return time.perf_counter() - started_s


def _open(root: Path, max_bytes: int) -> Spool:
    limits = SpoolLimits(max_bytes=max_bytes, min_free_bytes=0)
    return Spool.open(root, limits, Ledger(), device_id="bench", boot_id=f"b{time.monotonic_ns()}")


def _put(spool: Spool, number: int, capture_bytes: int) -> None:
    # Of the random arm: one that is always let in, for the oldest of its like.
    if not spool.put(_record(number, capture_bytes, Arm.RANDOM), bytes(capture_bytes)):
        raise AgentError("the spool refused a capture while it was measured", hint="is the disk full?")


def _record(number: int, capture_bytes: int, arm: Arm) -> CaptureRecord:
    return CaptureRecord(
        capture_id=f"capture-{number}",
        camera_id="bench",
        frame_index=number,
        captured_at=datetime.now(UTC),
        boot_id="bench",
        monotonic_s=time.monotonic(),
        image=ImageRef(sha256=_DIGEST, size_bytes=capture_bytes, width=640, height=480),
        prediction=ClassificationPrediction(
            prediction_id=f"prediction-{number}",
            release_id="bench",
            scores={"margin": (number * 7919 % 1000) / 1000},
            probabilities=[1 / _CLASSES] * _CLASSES,
        ),
        arms=[ArmOutcome(arm=other, probability=0.5, kept=other is arm) for other in Arm],
        inclusion_probability=0.5,
    )


def _fill(folder: SpoolFolder, captures: int, capture_bytes: int) -> None:
    """Write what so many puts leave behind, without their fsyncs."""
    folder.create()
    for number in range(1, captures + 1):
        header = CaptureHeader(
            revision=number,
            totals=Totals(selected=number, spooled=number),
            record=_record(number, capture_bytes, _ARMS[number % len(_ARMS)]),
        ).to_bytes()
        start = seal(header, bytes(capture_bytes))[:-capture_bytes]
        with folder.capture_path(number).open("wb") as file:
            file.write(start)
            file.truncate(len(start) + capture_bytes)


def _drop_cached(folder: Path) -> None:
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
