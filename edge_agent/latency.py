"""How long inferences took, in buckets that a monitoring system can add up over devices."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from typing import Final

BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_MANY: Final = 1024


@dataclass(frozen=True, slots=True)
class Latencies:
    """The histogram of one moment."""

    counts: tuple[int, ...]
    """How many fell into each bucket: up to each of `BOUNDS_S`, and beyond the last."""
    sum_s: float


class LatencyHistogram:
    """Thread-safe. An observation is put aside, and sorted into its bucket when somebody asks or many wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._sum_s = 0.0
        self._waiting: deque[float] = deque()
        """Appending and popping are atomic, so whoever observes takes no lock."""

    def observe(self, seconds: float) -> None:
        """Count one inference."""
        self._waiting.append(seconds)
        if len(self._waiting) >= _MANY:
            self.snapshot()

    def snapshot(self) -> Latencies:
        """Return the counts of this moment."""
        with self._lock:
            while self._waiting:
                seconds = self._waiting.popleft()
                self._counts[bisect_left(BOUNDS_S, seconds)] += 1
                self._sum_s += seconds
            return Latencies(tuple(self._counts), self._sum_s)
