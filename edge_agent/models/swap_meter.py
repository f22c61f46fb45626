"""What a change of model cost the stream of answers. Pure: times in, a measurement out."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Final

_WINDOW: Final = 31


@dataclass(frozen=True, slots=True)
class Swap:
    """One change of model, as the stream of answers felt it."""

    old_release_id: str
    new_release_id: str
    gap_ms: float
    """Time between the last answer of the old model and the first of the new, beyond the usual interval."""
    frames_lost: int
    """Frames skipped between those two answers."""


class SwapMeter:
    """Follows the stream of answers. The usual interval is the median of recent ones."""

    def __init__(self) -> None:
        self._intervals_s: deque[float] = deque(maxlen=_WINDOW)
        self._last_s: float | None = None
        self._release_id: str | None = None
        self._skipped = 0

    def note_skipped(self, count: int) -> None:
        """Take note of frames that got no answer."""
        self._skipped += count

    def note_answer(self, release_id: str, monotonic_s: float) -> Swap | None:
        """Take note of one answer; the swap when another model gave it than the one before."""
        old_id, last_s, skipped = self._release_id, self._last_s, self._skipped
        self._release_id, self._last_s, self._skipped = release_id, monotonic_s, 0
        if old_id is None or last_s is None:
            return None
        interval_s = monotonic_s - last_s
        if old_id == release_id:
            self._intervals_s.append(interval_s)
            return None
        usual_s = median(self._intervals_s) if self._intervals_s else 0.0
        return Swap(old_id, release_id, max(0.0, interval_s - usual_s) * 1000.0, skipped)
