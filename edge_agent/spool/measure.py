"""How fast this disk takes captures, against what it can do at all, and how long a big spool takes to open."""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TypeVar

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
ItemT = TypeVar("ItemT")


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
    folder: Path,
    *,
    capture_bytes: int = 40_000,
    rounds: int = 7,
    captures_a_round: int = 32,
    full: bool = False,
    together: int = 1,
) -> PutRate:
    """Let the spool and a bare loop write files of the same size in turns, below `folder` (empty, left filled).

    With `full` the spool holds only one round, so that every put makes another capture give way. So many as
    `together` says are waiting when the spool turns to them, as behind a slow disk; the bare loop knows no groups.

    Raises:
        AgentError: the disk refused.
    """
    spool = _open(folder / "spool", captures_a_round * capture_bytes if full else 2**62)
    bare = folder / "bare"
    bare.mkdir(parents=True)
    for numbers in _rounds(1, captures_a_round):
        _put(spool, _make_captures(numbers, capture_bytes))
    raw = bytes(max(path.stat().st_size for path in (folder / "spool" / "captures").iterdir()))
    shares, spool_rates, disk_rates = [], [], []
    for numbers in _rounds(rounds + 1, captures_a_round)[1:]:
        captures = _make_captures(numbers, capture_bytes)
        groups = [captures[first : first + together] for first in range(0, len(captures), together)]
        spool_s = _time(groups, lambda group: _put(spool, group))
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


def _rounds(count: int, length: int) -> list[range]:
    return [range(first, first + length) for first in range(0, count * length, length)]


def _time(items: Iterable[ItemT], work: Callable[[ItemT], object]) -> float:
    started_s = time.perf_counter()
    for item in items:
        work(item)
    return time.perf_counter() - started_s


def _open(root: Path, max_bytes: int) -> Spool:
    limits = SpoolLimits(max_bytes=max_bytes, min_free_bytes=0)
    return Spool.open(root, limits, Ledger(), device_id="bench", boot_id=f"b{time.monotonic_ns()}")


def _make_captures(numbers: Iterable[int], capture_bytes: int) -> list[tuple[CaptureRecord, bytes]]:
    """Return captures as the keeper hands them over, which has hashed their pictures."""
    jpeg = bytes(capture_bytes)
    # Of the random arm: one that is always let in, for the oldest of its like.
    return [(_record(number, jpeg, Arm.RANDOM), jpeg) for number in numbers]


def _put(spool: Spool, captures: Sequence[tuple[CaptureRecord, bytes]]) -> None:
    kept = spool.put_all(captures) if len(captures) > 1 else [spool.put(*capture) for capture in captures]
    if not all(kept):
        raise AgentError("the spool refused a capture while it was measured", hint="is the disk full?")


def _record(number: int, jpeg: bytes, arm: Arm) -> CaptureRecord:
    return CaptureRecord(
        capture_id=f"capture-{number}",
        camera_id="bench",
        frame_index=number,
        captured_at=datetime.now(UTC),
        boot_id="bench",
        monotonic_s=time.monotonic(),
        image=ImageRef(sha256=_sha256(jpeg), size_bytes=len(jpeg), width=640, height=480),
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
    jpeg = bytes(capture_bytes)
    for number in range(1, captures + 1):
        header = CaptureHeader(
            revision=number,
            totals=Totals(selected=number, spooled=number),
            record=_record(number, jpeg, _ARMS[number % len(_ARMS)]),
        ).to_bytes()
        start = seal(header, jpeg, payload_sha256=_sha256(jpeg))[:-capture_bytes]
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


@cache
def _sha256(jpeg: bytes) -> str:
    return hashlib.sha256(jpeg).hexdigest()
