"""Whether a part of the week is now. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from curate.contracts.device_settings import ALL_WEEK, TimeWindow


def is_open(windows: Iterable[TimeWindow], now: datetime) -> bool:
    """Return whether any window holds `now` (an aware time); without windows always.

    Windows follow the clock on the wall of their time zone: on the night the clocks change, a window is an hour
    shorter or longer, as the people there would have it. The start belongs to a window, the end does not.
    """
    windows = tuple(windows)
    return not windows or any(_holds(window, now) for window in windows)


def _holds(window: TimeWindow, now: datetime) -> bool:
    local = now.astimezone(ZoneInfo(window.timezone))
    today, yesterday = _weekday(local), _weekday(local - timedelta(days=1))
    time_of_day = local.strftime("%H:%M")
    if window.start < window.end:
        return today in window.days and window.start <= time_of_day < window.end
    began_today = today in window.days and time_of_day >= window.start
    return began_today or (yesterday in window.days and time_of_day < window.end)


def _weekday(local: datetime) -> str:
    return ALL_WEEK[local.weekday()]
