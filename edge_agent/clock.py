"""What time it is on a device whose own clock may be wrong: cameras boot in 1970 and learn better from the bucket.

Order never depends on this clock: boot id, sequence and monotonic time give it.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

DATE_RESOLUTION_S: Final = 1.0
"""An HTTP date is cut to a whole second."""
DRIFT_PER_S: Final = 200e-6
"""How much a camera's quartz may run wrong; bounds learned long ago widen by it."""
TRUSTED_ERROR_S: Final = 30.0
"""A system clock this close to the bucket's is taken as it is: whoever sets it knows better than an HTTP date."""
EARLIEST_S: Final = datetime(2024, 1, 1, tzinfo=UTC).timestamp()
LATEST_S: Final = datetime(2200, 1, 1, tzinfo=UTC).timestamp()
"""An answer dated before or after is no word about the time. Near the year 9999 the calendar itself would give out."""
_TIME_ERROR: Final = 5
"""adjtimex(2): the clock is not synchronised."""
_TIMEX_BYTES: Final = 512


@dataclass(frozen=True)
class ClockState:
    """How well the time is known."""

    offset_s: float = 0.0
    """What is added to the system's clock; 0 while nothing is known and when the system's clock is right."""
    uncertainty_s: float | None = None
    """How far the time may be off, as the bucket tells it; None while nothing is known."""
    system_epoch_s: float = 0.0
    """What the system's clock shows now, less the monotonic time: changes only when somebody sets the clock."""

    @property
    def synchronised(self) -> bool:
        """Whether the bucket has ever told its time."""
        return self.uncertainty_s is not None


@dataclass(frozen=True)
class Bounds:
    """What server time minus monotonic time must lie between, as of `at_s` (monotonic)."""

    low_s: float
    high_s: float
    at_s: float

    def widened(self, now_s: float) -> Bounds:
        """Return what is still certain after the quartz has drifted."""
        drift_s = max(0.0, now_s - self.at_s) * DRIFT_PER_S
        return Bounds(self.low_s - drift_s, self.high_s + drift_s, now_s)

    @property
    def middle_s(self) -> float:
        """The best guess."""
        return (self.low_s + self.high_s) / 2


def narrow(known: Bounds | None, server_s: float, *, sent_s: float, received_s: float) -> Bounds:
    """Return the bounds after an answer dated `server_s` (a whole second). Pure.

    The date was taken between sending and receiving (F. Cristian, "Probabilistic clock synchronization", 1989), and
    within the second after it. Bounds that exclude each other mean that one clock was set: the newest holds.
    """
    fresh = Bounds(server_s - received_s, server_s + DATE_RESOLUTION_S - sent_s, received_s)
    if known is None:
        return fresh
    old = known.widened(received_s)
    both = replace(fresh, low_s=max(old.low_s, fresh.low_s), high_s=min(old.high_s, fresh.high_s))
    return both if both.low_s <= both.high_s else fresh


def is_kept_in_time() -> bool | None:
    """Ask the kernel whether somebody keeps this machine's clock in time; None where it does not tell."""
    try:
        adjtimex = ctypes.CDLL(None).adjtimex
    except (OSError, AttributeError):
        return None
    state = int(adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES)))  # no mode is set, so nothing changes
    return None if state < 0 else state != _TIME_ERROR


class Clock:
    """Thread-safe. Implements `curate.storage.ports.ServerClock`."""

    def __init__(
        self,
        *,
        system: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        is_kept: Callable[[], bool | None] = is_kept_in_time,
    ) -> None:
        """`system` returns the machine's own time as seconds since 1970, wrong or right; `is_kept` whether somebody
        keeps it right."""
        self._system = system
        self._monotonic = monotonic
        self._is_kept = is_kept
        self._lock = threading.Lock()
        self._bounds: Bounds | None = None

    def now(self) -> datetime:
        """Return the time: the system's if the bucket agrees with it or has not been heard, else the bucket's."""
        return datetime.fromtimestamp(min(self._system() + self.state().offset_s, LATEST_S), UTC)

    def is_known(self) -> bool:
        """Say whether the time is more than a guess: the bucket has told it since the start, or a time service does.

        A clock that merely runs on a battery, or from where it stood when the power went, is not believed.
        """
        with self._lock:
            is_told = self._bounds is not None
        return is_told or self._is_kept() is True

    def monotonic(self) -> float:
        """Return seconds that only grow, whatever happens to the clock."""
        return self._monotonic()

    def state(self) -> ClockState:
        """Return how well the time is known at this moment."""
        with self._lock:
            bounds = self._bounds
        epoch_s = self._system() - self._monotonic()
        if bounds is None:
            return ClockState(system_epoch_s=epoch_s)
        bounds = bounds.widened(self._monotonic())
        offset_s = bounds.middle_s - epoch_s
        uncertainty_s = (bounds.high_s - bounds.low_s) / 2
        if abs(offset_s) <= uncertainty_s + TRUSTED_ERROR_S:
            return ClockState(0.0, abs(offset_s) + uncertainty_s, epoch_s)
        return ClockState(offset_s, uncertainty_s, epoch_s)

    def learn(self, server_time: datetime, *, sent_s: float, received_s: float) -> None:
        """Take note of an answer's date; the times are this clock's `monotonic`. One that cannot be is ignored."""
        server_s = server_time.timestamp()
        if EARLIEST_S <= server_s < LATEST_S:
            with self._lock:
                self._bounds = narrow(self._bounds, server_s, sent_s=sent_s, received_s=received_s)
