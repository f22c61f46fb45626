from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.backoff import BackoffPolicy, decide_delay_s

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
    """A refusal waits the slow, fixed time, whatever came before."""
    assert decide_delay_s(POLICY, failures=1, retryable=False, rng=random.Random(1)) == 300.0
