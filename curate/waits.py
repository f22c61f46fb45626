"""How long to wait before looking again at what changes ever more rarely. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta


def is_time(begun: datetime, looked: datetime, now: datetime, longest: timedelta) -> bool:
    """Whether to look again: each wait is as long as everything before it, so waits double, up to `longest`."""
    return now - looked >= min(longest, looked - begun)
