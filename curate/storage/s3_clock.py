"""Asking S3 at the bucket's time: S3 refuses what is signed 15 minutes off, and every answer's `Date` tells better."""

from __future__ import annotations

import contextlib
import ssl
import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

from curate.storage.ports import ServerClock

SOFTWARE_DATE: Final = datetime(2026, 11, 1, tzinfo=UTC)
"""Nobody ran this software earlier: a clock that says so is wrong."""
_NO_CHECK_TIME: Final = ssl.VerifyFlags(0x200000)
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which the ssl module has no name for."""
MAX_SKEW: Final = timedelta(minutes=5)
"""A clock that was wrong by more when a request was refused may be why. S3 bears 15 minutes, others less."""


class MachineClock:
    """A `ServerClock` that is right and has nothing to learn."""

    def now(self) -> datetime:
        """Return the machine's own time."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds that only grow."""
        return time.monotonic()

    def learn(self, server_time: datetime, *, sent_s: float, received_s: float) -> None:
        """Take no note."""


def learn_time(clock: ServerClock, date: str | None, *, sent_s: float) -> None:
    """Teach the clock an answer's `Date`, whose request was sent then (monotonic). An unreadable one says nothing."""
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        server_time = parsedate_to_datetime(date or "").replace(tzinfo=UTC)  # HTTP dates are in UTC
        clock.learn(server_time, sent_s=sent_s, received_s=clock.monotonic())


def leave_dates_if_lost(context: ssl.SSLContext, now: datetime) -> None:
    """Where the time cannot be right, let TLS prove the server's chain and name and leave the certificate's dates: in
    1970 none is valid yet.

    Until the process ends, which a camera whose clock was set meanwhile need not mind.
    """
    if now < SOFTWARE_DATE:
        context.verify_flags |= _NO_CHECK_TIME


class SkewWatch:
    """Whether the clock was put right since this was made: what was refused before it deserves another try."""

    def __init__(self, clock: ServerClock) -> None:
        self._clock = clock
        self._now, self._monotonic_s = clock.now(), clock.monotonic()

    def was_corrected(self) -> bool:
        """Return whether the clock has moved by more than a request may be off."""
        passed = timedelta(seconds=self._clock.monotonic() - self._monotonic_s)
        return abs(self._clock.now() - self._now - passed) > MAX_SKEW
