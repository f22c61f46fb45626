"""What uploads may cost, and when. Pure: whoever asks brings the time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from curate.contracts.device_settings import BandwidthSpec, MeteredPolicy
from edge_agent.time_windows import is_open

SECONDS_PER_HOUR: Final = 3600.0
BUDGET: Final = "budget"
WINDOW: Final = "window"
METERED: Final = "metered"
HEARTBEAT_SHARE: Final = 0.2
"""Of the hourly budget, so that what a device says about itself never starves what it has to say."""


@dataclass(frozen=True)
class Passage:
    """What may go out now, and what keeps the rest."""

    captures: bool = True
    feedback: bool = True
    held_by: str | None = None


_METERED: Final = {
    MeteredPolicy.EVERYTHING: Passage(),
    MeteredPolicy.FEEDBACK: Passage(captures=False, held_by=METERED),
    MeteredPolicy.NOTHING: Passage(captures=False, feedback=False, held_by=METERED),
}


def decide_passage(spec: BandwidthSpec, *, metered: bool, now: datetime) -> Passage:
    """Return what may be uploaded: a metered link decides first, then the windows, which hold back captures only."""
    passage = _METERED[spec.metered] if metered else Passage()
    if passage.captures and not is_open(spec.windows, now):
        return Passage(captures=False, held_by=WINDOW)
    return passage


def slow_down_s(spec: BandwidthSpec, interval_s: float, size_bytes: int) -> float:
    """Return how often a heartbeat of that size may go: every `interval_s`, or less often within its share."""
    if spec.max_bytes_per_hour is None:
        return interval_s
    return max(interval_s, size_bytes * SECONDS_PER_HOUR / (HEARTBEAT_SHARE * spec.max_bytes_per_hour))


@dataclass(frozen=True)
class TokenBucket:
    """An allowance in bytes that fills continuously and never beyond a burst.

    It starts empty, so that a process that dies and starts again and again is not given a fresh burst each time.
    """

    at_s: float
    allowance_bytes: float = 0.0

    def filled(self, spec: BandwidthSpec, now_s: float) -> TokenBucket:
        """Return the bucket of now (monotonic); without a limit it is always full."""
        if spec.max_bytes_per_hour is None:
            return TokenBucket(now_s, spec.burst_bytes)
        gained = max(0.0, now_s - self.at_s) * spec.max_bytes_per_hour / SECONDS_PER_HOUR
        return TokenBucket(now_s, min(spec.burst_bytes, self.allowance_bytes + gained))

    def allows(self, spec: BandwidthSpec, size_bytes: int) -> bool:
        """Return whether so much may be sent now. What is larger than a burst goes when the bucket is full."""
        return spec.max_bytes_per_hour is None or self.allowance_bytes >= min(size_bytes, spec.burst_bytes)

    def charged(self, size_bytes: int) -> TokenBucket:
        """Return the bucket after that was sent, whether it arrived or not; it may owe."""
        return replace(self, allowance_bytes=self.allowance_bytes - size_bytes)
