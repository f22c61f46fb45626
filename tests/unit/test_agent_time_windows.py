from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.contracts.device_settings import ALL_WEEK, TimeWindow
from edge_agent.time_windows import is_open

MONDAY = datetime(2026, 11, 2, tzinfo=UTC)
NIGHT = TimeWindow(days=("mon",), start="22:00", end="06:00")
OFFICE = TimeWindow(days=("mon", "fri"), start="09:00", end="17:30", timezone="Europe/Berlin")


@pytest.mark.parametrize(
    ("window", "now", "expected"),
    [
        (NIGHT, MONDAY + timedelta(hours=21, minutes=59), False),
        (NIGHT, MONDAY + timedelta(hours=22), True),
        (NIGHT, MONDAY + timedelta(hours=29, minutes=59), True),  # Tuesday, but it began on Monday
        (NIGHT, MONDAY + timedelta(hours=30), False),
        (NIGHT, MONDAY + timedelta(hours=3), False),  # would have begun on Sunday
        (OFFICE, MONDAY + timedelta(hours=8), True),  # nine in Berlin
        (OFFICE, MONDAY + timedelta(hours=7, minutes=59), False),
        (OFFICE, MONDAY + timedelta(hours=16, minutes=30), False),
        (OFFICE, MONDAY + timedelta(days=1, hours=10), False),
        (TimeWindow(days=("mon",)), MONDAY + timedelta(hours=23, minutes=59), True),
        (TimeWindow(days=("mon",)), MONDAY + timedelta(hours=24), False),
    ],
)
def test_a_window_is_open_from_its_start_to_its_end(window: TimeWindow, now: datetime, expected: bool) -> None:
    """Days are those on which a window starts, in its own time zone; one over midnight ends the day after."""
    assert is_open([window], now) is expected


def test_a_window_follows_the_clock_on_the_wall_when_the_clocks_change() -> None:
    """On both sides of the end of summer time a window starts when the wall says so."""
    window = TimeWindow(start="06:00", end="07:00", timezone="Europe/Berlin")
    summer, winter = datetime(2026, 10, 24, 4, 30, tzinfo=UTC), datetime(2026, 10, 26, 5, 30, tzinfo=UTC)
    assert is_open([window], summer)
    assert is_open([window], winter)
    assert not is_open([window], winter - timedelta(hours=1))


@given(now=st.datetimes(timezones=st.just(UTC)), start=st.integers(0, 23), end=st.integers(0, 23))
def test_a_window_and_its_complement_never_agree(now: datetime, start: int, end: int) -> None:
    """At every moment exactly one of a daily window and the one that swaps its ends is open; no windows, always."""
    one = TimeWindow(start=f"{start:02d}:00", end=f"{end:02d}:00")
    other = TimeWindow(start=f"{end:02d}:00", end=f"{start:02d}:00")
    assert is_open([], now)
    assert is_open([TimeWindow(days=ALL_WEEK)], now)
    if start == end:
        assert is_open([one], now)
    elif start and end:
        assert is_open([one], now) != is_open([other], now)
