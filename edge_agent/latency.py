"""How long inferences took, in buckets that a monitoring system can add up over devices."""

from __future__ import annotations

import threading
from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


@dataclass(frozen=True, slots=True)
class Latencies:
    """The histogram of one moment."""

    counts: tuple[int, ...]
    """How many fell into each bucket: up to each of `BOUNDS_S`, and beyond the last."""
    sum_s: float


class LatencyHistogram:
    """Thread-safe; one observation is one addition under a lock that nobody holds for long."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one inference."""
        bucket = bisect_left(BOUNDS_S, seconds)
        with self._lock:
            self._counts[bucket] += 1
            self._sum_s += seconds

    def snapshot(self) -> Latencies:
        """Return the counts of this moment."""
        with self._lock:
            return Latencies(tuple(self._counts), self._sum_s)
