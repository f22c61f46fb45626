"""How fast the spool takes captures beside what the disk can do, and how long a big one takes to open."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from edge_agent.bench.report import Bar, Figure, Section
from edge_agent.spool.measure import PutRate, RecoveryTime, measure_put_rate, measure_recovery

RATE_BAR: Final = Bar(0.8, at_least=True)
BACKLOG: Final = 8
"""Captures that wait together, as many as the keeper hands over at once."""


def measure_spool(folder: Path, *, captures: int) -> Section:
    """Return the spool's rate as a share of the disk's, and the time to open one of so many captures.

    Args:
        folder: an empty folder on the disk to be measured.
        captures: of the big spool.

    Raises:
        OSError: the disk refused.
    """
    rates = {
        "spool rate / the disk's own": measure_put_rate(folder / "room"),
        "the same while the spool is full": measure_put_rate(folder / "full", full=True),
        "spool rate with a backlog / the disk's own": measure_put_rate(folder / "room-backlog", together=BACKLOG),
        "the same while the spool is full, with a backlog": measure_put_rate(
            folder / "full-backlog", full=True, together=BACKLOG
        ),
    }
    return summarise(rates, measure_recovery(folder / "big", captures))


def summarise(rates: Mapping[str, PutRate], recovery: RecoveryTime) -> Section:
    """Return the figures, of rates by what they are of. Pure."""
    return Section(
        "spool",
        (
            *(_figure(name, rate) for name, rate in rates.items()),
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
