from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.contracts.device_settings import BandwidthSpec, MeteredPolicy, TimeWindow
from edge_agent.sync.bandwidth import METERED, WINDOW, Passage, allows, decide_passage, fill
from edge_agent.token_bucket import TokenBucket

NOON = datetime(2026, 11, 2, 12, 0, tzinfo=UTC)
NIGHT = (TimeWindow(start="22:00", end="06:00"),)
KIB = 1024
SPEC = BandwidthSpec(max_bytes_per_hour=360 * KIB, burst_bytes=100 * KIB)


@given(steps=st.lists(st.tuples(st.floats(0, 4000), st.integers(0, 500 * KIB)), max_size=40))
def test_no_hour_carries_more_than_its_allowance_a_burst_and_one_object(steps: list[tuple[float, int]]) -> None:
    """Whatever is offered whenever, what goes out in any stretch of time is bounded by what was gained in it."""
    bucket, now_s = TokenBucket(0.0), 0.0
    sent: list[tuple[float, int]] = []
    for pause_s, size_bytes in steps:
        now_s += pause_s
        bucket = fill(bucket, SPEC, now_s)
        if allows(bucket, SPEC, size_bytes):
            bucket = bucket.charged(size_bytes)
            sent.append((now_s, size_bytes))
    for first, (start_s, _) in enumerate(sent):
        for last in range(first, len(sent)):
            gained = (sent[last][0] - start_s) * 0.1 * KIB
            assert sum(size for _, size in sent[first : last + 1]) <= gained + 100 * KIB + sent[last][1] + 1


def test_a_restart_grants_nothing() -> None:
    """A process that dies again and again starts empty each time, and gains only with time."""
    fresh = fill(TokenBucket(1000.0), SPEC, 1000.0)
    assert not allows(fresh, SPEC, 1)
    assert allows(fill(fresh, SPEC, 1010.0), SPEC, KIB)
    assert not allows(fill(fresh, SPEC, 1010.0), SPEC, KIB + 1)


def test_an_object_larger_than_a_burst_goes_when_the_bucket_is_full_and_is_paid_afterwards() -> None:
    """Nothing is too large for ever; what follows waits until the debt is paid."""
    full = fill(TokenBucket(0.0), SPEC, 10_000.0)
    assert allows(full, SPEC, 300 * KIB)
    owing = full.charged(300 * KIB)
    assert not allows(fill(owing, SPEC, 10_000.0 + 1999.0), SPEC, 1)
    assert allows(fill(owing, SPEC, 10_000.0 + 2001.0), SPEC, 1)


def test_without_a_limit_everything_goes() -> None:
    """No limit, no waiting, from the first moment and after any amount."""
    spec = BandwidthSpec()
    bucket = TokenBucket(0.0).charged(10**12)
    assert allows(bucket, spec, 10**9)
    assert allows(fill(bucket, spec, 0.0), SPEC, KIB)


@pytest.mark.parametrize(
    ("spec", "metered", "expected"),
    [
        (BandwidthSpec(), False, Passage()),
        (BandwidthSpec(windows=NIGHT), False, Passage(captures=False, held_by=WINDOW)),
        (BandwidthSpec(), True, Passage(captures=False, held_by=METERED)),
        (BandwidthSpec(metered=MeteredPolicy.EVERYTHING), True, Passage()),
        (
            BandwidthSpec(metered=MeteredPolicy.EVERYTHING, windows=NIGHT),
            True,
            Passage(captures=False, held_by=WINDOW),
        ),
        (
            BandwidthSpec(metered=MeteredPolicy.NOTHING, windows=NIGHT),
            True,
            Passage(captures=False, feedback=False, held_by=METERED),
        ),
    ],
)
def test_the_switch_decides_before_the_windows(spec: BandwidthSpec, metered: bool, expected: Passage) -> None:
    """A closed window holds back captures only; a metered link what its policy says; the reason is named."""
    assert decide_passage(spec, metered=metered, now=NOON) == expected
    assert decide_passage(spec, metered=False, now=NOON + timedelta(hours=11)) == Passage()
