from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.clock import TRUSTED_ERROR_S, Clock, narrow

TRUE_START_S = datetime(2026, 11, 2, 12, 0, tzinfo=UTC).timestamp()


class World:
    """True time, a device whose system clock is off, and a server that tells whole seconds."""

    def __init__(self, error_s: float) -> None:
        self.passed_s = 0.0
        self.error_s = error_s
        self.clock = Clock(
            system=lambda: TRUE_START_S + self.passed_s + self.error_s, monotonic=lambda: 500.0 + self.passed_s
        )

    def ask(self, *, way_s: float = 0.1, back_s: float = 0.1, server_error_s: float = 0.0) -> None:
        sent_s = self.clock.monotonic()
        self.passed_s += way_s
        date = datetime.fromtimestamp(int(TRUE_START_S + self.passed_s + server_error_s), UTC)
        self.passed_s += back_s
        self.clock.learn(date, sent_s=sent_s, received_s=self.clock.monotonic())

    @property
    def error(self) -> float:
        return (self.clock.now() - datetime.fromtimestamp(TRUE_START_S + self.passed_s, UTC)).total_seconds()


@given(
    error_s=st.floats(-1.6e9, 1e9),
    rounds=st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5), st.floats(0, 3600)), min_size=1, max_size=10),
)
def test_the_time_is_never_further_off_than_the_state_says(
    error_s: float, rounds: list[tuple[float, float, float]]
) -> None:
    """Whatever the system's clock says and however slow or lopsided the link, the true time lies within the bound."""
    world = World(error_s)
    for way_s, back_s, pause_s in rounds:
        world.ask(way_s=way_s, back_s=back_s)
        world.passed_s += pause_s
        uncertainty_s = world.clock.state().uncertainty_s
        assert uncertainty_s is not None
        assert abs(world.error) <= uncertainty_s + 1e-3


def test_many_answers_narrow_the_bound() -> None:
    """Whole seconds add up to better than a quarter of one: each answer cuts the interval at another place."""
    world = World(-1e9)
    world.ask(way_s=0.02, back_s=0.02)
    first = world.clock.state().uncertainty_s
    for _ in range(20):
        world.passed_s += 0.37
        world.ask(way_s=0.02, back_s=0.02)
    last = world.clock.state().uncertainty_s
    assert first is not None
    assert last is not None
    assert (first > 0.5, last < 0.25) == (True, True)


def test_an_unheard_bucket_leaves_the_systems_clock() -> None:
    """Nothing is known and nothing is corrected."""
    world = World(-1e9)
    assert not world.clock.state().synchronised
    assert world.error == -1e9


def test_a_good_system_clock_is_left_alone() -> None:
    """What differs by less than an HTTP date is worth stays the system's; beyond it the bucket's time holds."""
    good, bad = World(TRUSTED_ERROR_S / 2), World(TRUSTED_ERROR_S * 2)
    good.ask()
    bad.ask()
    assert (good.clock.state().offset_s, good.error) == (0.0, TRUSTED_ERROR_S / 2)
    assert abs(bad.error) < 1.0


def test_a_system_clock_that_is_set_later_takes_over() -> None:
    """The correction is held against monotonic time: when somebody sets the clock right, nothing jumps twice."""
    world = World(-1e9)
    world.ask()
    world.error_s = 0.0
    assert world.error == 0.0
    world.error_s = 7200.0
    assert abs(world.error) < 1.0


def test_answers_that_exclude_each_other_end_with_the_newest() -> None:
    """A lying answer is believed until the next honest one, and no longer."""
    world = World(-1e9)
    world.ask(server_error_s=-5000.0)
    assert abs(world.error + 5000.0) < 1.0
    world.ask()
    assert abs(world.error) < 1.0


def test_bounds_widen_with_the_drift_of_a_quartz() -> None:
    """After a day without an answer the bound is wider by the drift of a day, not more."""
    fresh = narrow(None, 1000.0, sent_s=0.0, received_s=0.1)
    later = fresh.widened(86_400.1)
    assert later.high_s - later.low_s > fresh.high_s - fresh.low_s + 30.0
    assert later.high_s - later.low_s < fresh.high_s - fresh.low_s + 40.0


def test_the_time_is_aware_utc() -> None:
    """`now` returns aware UTC, as every time of ours."""
    assert World(0.0).clock.now().utcoffset() == timedelta(0)


def test_the_time_is_known_once_somebody_told_it() -> None:
    """A time service, or one answer of the bucket, makes the time known; a clock that nobody keeps, or of which the
    kernel tells nothing, is a guess."""
    assert Clock(is_kept=lambda: True).is_known()
    for told in (False, None):
        clock = Clock(is_kept=lambda told=told: told)  # type: ignore[misc]
        assert not clock.is_known()
        clock.learn(datetime(2026, 11, 2, tzinfo=UTC), sent_s=clock.monotonic(), received_s=clock.monotonic())
        assert clock.is_known()


@pytest.mark.parametrize("year", [1970, 2023, 2200, 9999])
def test_a_date_that_cannot_be_teaches_nothing(year: int) -> None:
    """An answer dated before this software or in a far century moves no clock: near the year 9999 there would soon be
    no date left to tell."""
    clock = Clock(system=lambda: 1_790_000_000.0, monotonic=lambda: 5.0)
    clock.learn(datetime(year, 12, 31, 23, 59, 59, tzinfo=UTC), sent_s=4.0, received_s=5.0)
    assert not clock.state().synchronised
    assert clock.now().year == 2026


def test_a_system_clock_beyond_the_calendar_still_tells_a_time() -> None:
    """Whatever somebody set the machine to, there is a time to write down."""
    assert Clock(system=lambda: 1e15).now().year == 2200
