"""What uploads may cost, and when. Pure: whoever asks brings the time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from curate.contracts.device_settings import BandwidthSpec, MeteredPolicy
from edge_agent.time_windows import is_open
from edge_agent.token_bucket import TokenBucket

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


def fill(bucket: TokenBucket, spec: BandwidthSpec, now_s: float) -> TokenBucket:
    """Return the bucket of now (monotonic), its tokens being bytes; without a limit it is always full."""
    per_hour = spec.max_bytes_per_hour
    return bucket.filled(now_s, per_s=None if per_hour is None else per_hour / SECONDS_PER_HOUR, burst=spec.burst_bytes)


def allows(bucket: TokenBucket, spec: BandwidthSpec, size_bytes: int) -> bool:
    """Return whether so much may be sent now. What is larger than a burst goes when the bucket is full."""
    return spec.max_bytes_per_hour is None or bucket.tokens >= min(size_bytes, spec.burst_bytes)
