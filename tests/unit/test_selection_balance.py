"""Shares, quotas, the greedy engine and the audit draw."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.selection.audit import draw_audit
from curate.selection.balance import Quota, allocate, pick_greedily, trim_evenly
from curate.selection.kernel import CoverageKernel
from curate.selection.strategies import CoverageUtilities, FixedUtilities

STRATA = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d"]), st.tuples(st.floats(0.1, 100), st.integers(0, 30)), min_size=1
)


@given(st.integers(0, 120), STRATA)
def test_allocation_spends_the_budget_within_capacities(budget: int, strata: dict[str, tuple[float, int]]) -> None:
    """Shares add up to min(budget, capacity), never exceed a capacity, and miss no stratum the budget can reach."""
    weights = {name: weight for name, (weight, _) in strata.items()}
    capacities = {name: capacity for name, (_, capacity) in strata.items()}
    shares = allocate(budget, weights, capacities)
    assert sum(shares.values()) == min(budget, sum(capacities.values()))
    assert all(0 <= shares[name] <= capacities[name] for name in strata)
    reachable = [name for name in strata if capacities[name]]
    if budget >= len(reachable):
        assert all(shares[name] >= 1 for name in reachable)


def test_allocation_is_proportional() -> None:
    """Without tight capacities shares follow the weights."""
    assert allocate(60, {"a": 3, "b": 2, "c": 1}, {"a": 99, "b": 99, "c": 99}) == {"a": 30, "b": 20, "c": 10}


def coverage(kernel: np.ndarray, weights: np.ndarray, picks: list[int]) -> float:
    return float(weights @ kernel[picks].max(axis=0)) if picks else 0.0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.integers(1, 12))
def test_lazy_greedy_equals_plain_greedy(seed: int, n: int, budget: int, quota: int) -> None:
    """The lazy engine takes exactly what a greedy that recomputes every gain takes, quota included."""
    rng = np.random.default_rng(seed)
    kernel, weights = rng.random((n, n)).astype(np.float32), rng.random(n).astype(np.float32)
    devices = [str(device) for device in rng.integers(0, 3, n)]
    utilities = CoverageUtilities(CoverageKernel.dense(kernel), weights, np.zeros(n, np.float32))
    picks = [
        pick.candidate for pick in pick_greedily(utilities, [Quota("device", devices, quota)], budget, np.arange(n))
    ]
    plain: list[int] = []
    for limit in (quota, budget):
        while len(plain) < min(budget, n):
            taken = Counter(devices[i] for i in plain)
            open_rows = [i for i in range(n) if i not in plain and taken[devices[i]] < limit]
            if not open_rows:
                break
            plain.append(max(open_rows, key=lambda i: coverage(kernel, weights, [*plain, i])))
    assert len(picks) == len(set(picks)) == min(budget, n)
    assert coverage(kernel, weights, picks) == pytest.approx(coverage(kernel, weights, plain), rel=1e-4)


def test_ties_follow_the_given_order() -> None:
    """Equal utilities are settled by the tie order alone."""
    picks = pick_greedily(FixedUtilities(np.zeros(4)), (), 4, np.array([2, 0, 3, 1]))
    assert [pick.candidate for pick in picks] == [1, 3, 0, 2]


def test_trimming_keeps_every_device() -> None:
    """A device with the hundred best scores cannot push a quiet one out of the candidates."""
    scores = np.array([1.0] * 100 + [0.1] * 5)
    kept = trim_evenly(scores, np.array([0] * 100 + [1] * 5), 20)
    assert len(kept) == 20
    assert set(range(100, 105)) <= set(kept.tolist())


def test_recorded_inclusion_probability_is_the_real_one() -> None:
    """Over many draws each capture is audited as often as its recorded probability says."""
    devices = ["a"] * 10 + ["b"] * 30
    arm = np.where(np.arange(40) % 2 == 0, 0.5, 0.25)
    runs, hits, recorded = 3000, np.zeros(40), np.zeros(40)
    for seed in range(runs):
        for draw in draw_audit(arm, devices, 12, np.random.default_rng(seed)):
            hits[draw.row] += 1
            recorded[draw.row] = draw.inclusion_probability / arm[draw.row]
    assert np.abs(hits / runs - recorded).max() < 0.04
    assert hits.sum() == 12 * runs


def test_audit_takes_random_arm_captures_only() -> None:
    """A capture without a random-arm probability is never audited, and every device with one is heard."""
    arm = np.array([np.nan, 0.1, np.nan, 0.1, 0.1, 0.1])
    draws = draw_audit(arm, ["a", "a", "b", "b", "b", "b"], 2, np.random.default_rng(0))
    assert {draw.row for draw in draws} <= {1, 3, 4, 5}
    assert 1 in {draw.row for draw in draws}
    assert len(draw_audit(arm, ["a"] * 6, 50, np.random.default_rng(0))) == 4
    assert draw_audit(np.full(6, np.nan), ["a"] * 6, 5, np.random.default_rng(0)) == []


def test_fewer_draws_than_devices_still_gives_every_capture_a_chance() -> None:
    """With one draw and two devices, every capture keeps a positive, equal probability."""
    seen = {draw_audit(np.full(4, 0.5), list("aabb"), 1, np.random.default_rng(s))[0] for s in range(60)}
    assert {draw.row for draw in seen} == {0, 1, 2, 3}
    assert {draw.inclusion_probability for draw in seen} == {0.125}
