"""How fast the spool takes captures beside what the disk can do, and how long a big one takes to open."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edge_agent.bench.report import Bar, Figure, Section
from edge_agent.spool.measure import PutRate, RecoveryTime, measure_put_rate, measure_recovery

RATE_BAR: Final = Bar(0.8, at_least=True)


def measure_spool(folder: Path, *, captures: int) -> Section:
    """Return the spool's rate as a share of the disk's, and the time to open one of so many captures.

    Args:
        folder: an empty folder on the disk to be measured.
        captures: of the big spool.

    Raises:
        OSError: the disk refused.
    """
    room = measure_put_rate(folder / "room")
    full = measure_put_rate(folder / "full", full=True)
    return summarise(room, full, measure_recovery(folder / "big", captures))


def summarise(room: PutRate, full: PutRate, recovery: RecoveryTime) -> Section:
    """Return the figures. Pure."""
    return Section(
        "spool",
        (
            _figure("spool rate / the disk's own", room),
            _figure("the same while the spool is full", full),
            Figure(
                "time to open a big spool",
                recovery.cold_s,
                "s",
                detail=(
                    f"{recovery.captures} captures, from the disk; {recovery.warm_s:.2f} s from memory, of which "
                    f"{recovery.cpu_s:.2f} s of processor time"
                ),
            ),
        ),
    )


def _figure(name: str, rate: PutRate) -> Figure:
    detail = (
        f"{rate.spool_per_s:.0f} captures of {rate.capture_bytes // 1000} kB a second beside {rate.disk_per_s:.0f} "
        "of a bare loop of write, fsync, rename, fsync of the folder; rounds in turns"
    )
    return Figure(name, rate.share, "", RATE_BAR, detail)
