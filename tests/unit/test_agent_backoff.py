from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.errors import (
    AccessDeniedError,
    BlobRefusedError,
    ClockSkewError,
    ContractError,
    Error,
    StorageError,
    StorageUnavailableError,
)
from edge_agent.backoff import BackoffPolicy, Failure, classify, decide_delay_s, decide_wait_s, jittered_s
from edge_agent.errors import SpoolUnavailableError

POLICY = BackoffPolicy(base_s=0.5, cap_s=60.0, refused_s=300.0)


@given(failures=st.integers(1, 10_000), seed=st.integers())
def test_a_retryable_wait_stays_within_its_exponential_bound_and_the_cap(failures: int, seed: int) -> None:
    """A wait after n failures lies in [0, min(cap, base * 2**(n-1))], however large n is."""
    delay_s = decide_delay_s(POLICY, failures=failures, retryable=True, rng=random.Random(seed))
    assert 0.0 <= delay_s <= min(60.0, 0.5 * 2.0 ** min(failures - 1, 100))


def test_waits_are_spread_over_the_whole_interval() -> None:
    """Jitter is full: devices that failed together come back spread between zero and the bound."""
    rng = random.Random(7)
    delays_s = [decide_delay_s(POLICY, failures=20, retryable=True, rng=rng) for _ in range(400)]
    assert min(delays_s) < 3.0
    assert max(delays_s) > 57.0
    assert 25.0 < sum(delays_s) / len(delays_s) < 35.0


def test_what_trying_again_cannot_cure_waits_long() -> None:
    """A refusal waits nearly the slow time, whatever came before, and not the whole fleet the same."""
    rng = random.Random(1)
    delays_s = [decide_delay_s(POLICY, failures=1, retryable=False, rng=rng) for _ in range(100)]
    assert 225.0 <= min(delays_s) < 240.0
    assert 285.0 < max(delays_s) <= 300.0


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (StorageUnavailableError("reset"), Failure.NETWORK),
        (SpoolUnavailableError("full"), Failure.NETWORK),
        (ClockSkewError("1970"), Failure.CLOCK),
        (AccessDeniedError("no"), Failure.AUTH),
        (BlobRefusedError("413"), Failure.POISON),
        (StorageError("no such bucket"), Failure.OTHER),
        (ContractError("garbage"), Failure.OTHER),
    ],
)
def test_failures_are_told_apart(error: Error, failure: Failure) -> None:
    """What passes by itself, a wrong clock, missing rights and one bad object are four things."""
    assert classify(error) is failure


@given(failures=st.integers(1, 50), seed=st.integers())
def test_every_kind_of_failure_waits_its_own_time(failures: int, seed: int) -> None:
    """A clock just put right is tried as soon as a passing fault, a bad object within a minute, a person's job late."""

    def wait_s(error: Error) -> float:
        return decide_wait_s(POLICY, error, failures=failures, rng=random.Random(seed))

    assert wait_s(ClockSkewError("")) == wait_s(StorageUnavailableError("")) <= 60.0
    assert 30.0 <= wait_s(BlobRefusedError("")) <= 60.0
    assert wait_s(AccessDeniedError("")) == wait_s(StorageError("")) >= 225.0


@given(seed=st.integers())
def test_polls_are_spread_around_their_interval(seed: int) -> None:
    """Devices that started together drift apart within a few polls, at the same mean rate."""
    rng = random.Random(seed)
    intervals_s = [jittered_s(30.0, rng) for _ in range(400)]
    assert all(22.5 <= interval_s <= 37.5 for interval_s in intervals_s)
    assert 29.0 < sum(intervals_s) / 400 < 31.0
