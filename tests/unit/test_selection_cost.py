"""Budgets of boxes and minutes: what a person spends, not how many images."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from curate.errors import SelectionError
from curate.selection.audit import draw_audit, size_audit
from curate.selection.balance import Quota, pick_greedily, pick_within_budget
from curate.selection.base import CandidatePool, LabelledSet, SelectionPolicy, annotation_cost
from curate.selection.batch import select_batch
from curate.selection.kernel import CoverageKernel
from curate.selection.strategies import CoverageUtilities, FixedUtilities

DIM = 8


def make_pool(n: int, seed: int = 0, unit: str = "boxes") -> CandidatePool:
    """A detector's pool: no probabilities, uncertainties instead, and a few to many boxes a frame."""
    rng = np.random.default_rng(seed)
    policy = SelectionPolicy.model_validate({"budget_unit": unit})
    return CandidatePool(
        ids=tuple(f"s{i:04d}" for i in range(n)),
        embeddings=rng.normal(size=(n, DIM)).astype(np.float32),
        probabilities=None,
        devices=tuple(f"cam-{i % 3}" for i in range(n)),
        cameras=tuple(f"cam-{i % 3}" for i in range(n)),
        groups=tuple(f"burst-{i // 2}" for i in range(n)),
        random_probability=np.where(rng.random(n) < 0.5, 0.1, np.nan),
        uncertainty=rng.random(n),
        cost=annotation_cost(rng.integers(0, 15, n).astype(np.float64), policy),
    )


def test_costs_in_each_unit() -> None:
    """Images cost alike, boxes count with one at least, minutes add the look to the boxes."""
    boxes = np.array([0.0, 3.0])
    assert annotation_cost(boxes, SelectionPolicy()) is None
    assert annotation_cost(boxes, SelectionPolicy(budget_unit="boxes")) == pytest.approx([1, 3])
    minutes = SelectionPolicy(budget_unit="minutes", seconds_per_image=6, seconds_per_box=8)
    assert annotation_cost(boxes, minutes) == pytest.approx([0.1, 0.5])
    with pytest.raises(ValidationError):
        SelectionPolicy(budget_unit="minutes", seconds_per_image=0)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1000),
    st.integers(1, 150),
    st.sampled_from(["boxes", "minutes"]),
    st.sampled_from(["uherding", "entropy", "random"]),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_a_budget_is_never_overspent(
    seed: int, budget: int, unit: str, strategy: str, audit_share: float, explore_share: float
) -> None:
    """What is spent is the sum of the items' costs, within the budget, and no distinct permitted sight would fit."""
    pool = make_pool(60, seed, unit)
    values = {"budget_unit": unit, "strategy": strategy, "audit_share": audit_share, "explore_share": explore_share}
    selection = select_batch(pool, LabelledSet.empty(DIM), SelectionPolicy.model_validate(values), budget, seed)
    costs = dict(zip(pool.ids, pool.cost.tolist(), strict=True))
    assert selection.spent == pytest.approx(sum(costs[item.sample_id] for item in selection.items))
    assert selection.spent == pytest.approx(sum(item.cost for item in selection.items))
    assert selection.spent <= budget + 1e-6
    assert selection.items
    order = np.random.default_rng(seed).permutation(60)
    shuffled = select_batch(
        pool.take(order), LabelledSet.empty(DIM), SelectionPolicy.model_validate(values), budget, seed
    )
    assert [i.sample_id for i in shuffled.items] == [i.sample_id for i in selection.items]
    if audit_share == 0:
        left = [cost for name, cost in costs.items() if name not in {i.sample_id for i in selection.items}]
        assert selection.spent + min(left, default=np.inf) > budget


def test_equal_costs_are_images() -> None:
    """When every frame has one box, a budget of boxes buys exactly what the same budget of images does."""
    pool = replace(make_pool(60), cost=np.ones(60))
    in_boxes = select_batch(pool, LabelledSet.empty(DIM), SelectionPolicy(budget_unit="boxes"), 20, 3)
    in_images = select_batch(pool, LabelledSet.empty(DIM), SelectionPolicy(), 20, 3)
    assert in_boxes.items == in_images.items
    assert (in_boxes.unit, in_images.unit, in_images.spent) == ("boxes", "images", 20)


def coverage(kernel: np.ndarray, weights: np.ndarray, picks: tuple[int, ...]) -> float:
    return float(weights @ kernel[list(picks)].max(axis=0)) if picks else 0.0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 20))
def test_the_better_greedy_keeps_its_guarantee(seed: int, n: int, budget: int) -> None:
    """On every small budgeted coverage the batch is worth at least (1 - 1/e) / 2 of the best there is."""
    rng = np.random.default_rng(seed)
    kernel, weights = (rng.random((n, n)) ** 3).astype(np.float32), rng.random(n).astype(np.float32)
    costs = rng.integers(1, 8, n).astype(np.float64)
    picks = pick_within_budget(
        lambda: CoverageUtilities(CoverageKernel.dense(kernel), weights, np.zeros(n, np.float32)),
        (),
        budget,
        lambda: np.arange(n),
        costs,
        weigh_cost=True,
    )
    subsets = itertools.chain.from_iterable(itertools.combinations(range(n), k) for k in range(n + 1))
    best = max(coverage(kernel, weights, each) for each in subsets if costs[list(each)].sum() <= budget)
    worth = coverage(kernel, weights, tuple(pick.candidate for pick in picks))
    assert worth >= (1 - 1 / np.e) / 2 * best - 1e-5


def test_neither_greedy_alone_is_enough() -> None:
    """Many cheap frames beat one dear one a little better, and one dear frame beats a cheap one of poor worth."""

    def picked(utilities: list[float], costs: list[float], budget: float) -> list[int]:
        picks = pick_within_budget(
            lambda: FixedUtilities(np.array(utilities)),
            (),
            budget,
            lambda: np.arange(len(costs)),
            np.array(costs),
            weigh_cost=True,
        )
        return [pick.candidate for pick in picks]

    assert picked([0.5] + [0.4] * 10, [10.0] + [1.0] * 10, 10) == list(range(1, 11))
    assert picked([0.9, 0.1], [10.0, 1.0], 10) == [0]


def test_quota_counts_cost() -> None:
    """A device's quota is in the budget's unit, and a pick beyond it is marked."""
    utilities = FixedUtilities(np.array([0.9, 0.8, 0.2, 0.1]))
    quota = Quota("device", ["a", "a", "b", "a"], 5)
    picks = pick_greedily(utilities, [quota], 10, np.arange(4), costs=np.array([4.0, 3.0, 2.0, 1.0]))
    assert [(pick.candidate, pick.over_quota) for pick in picks] == [(0, ()), (2, ()), (3, ()), (1, ("device",))]


def test_audits_stay_a_probability_sample_of_every_cost() -> None:
    """The audit's size is fixed before the draw, so dear frames are audited as often as their probability says."""
    costs = np.array([1.0] * 30 + [10.0] * 10)
    size = size_audit(0.3, 100, costs)
    assert size == 9  # 30 boxes at 3.25 each
    hits = np.zeros(40)
    for seed in range(2000):
        draws = draw_audit(np.full(40, 0.5), ["a"] * 40, size, np.random.default_rng(seed))
        hits[[draw.row for draw in draws]] += 1
        assert {draw.inclusion_probability for draw in draws} == {0.5 * 9 / 40}
    assert np.abs(hits / 2000 - 9 / 40).max() < 0.04
    assert size_audit(1.0, 25, costs) == 2
    assert size_audit(0.3, 20, np.empty(0)) == 6


def test_missing_or_broken_costs_are_said() -> None:
    """A budget of boxes without costs, a pool without any uncertainty, and broken rows are told."""
    pool = make_pool(20)
    boxes = SelectionPolicy(budget_unit="boxes")
    with pytest.raises(SelectionError, match="cost"):
        select_batch(replace(pool, cost=None), LabelledSet.empty(DIM), boxes, 10, 0)
    with pytest.raises(SelectionError, match="neither"):
        replace(pool, uncertainty=None)
    pool.cost[3], pool.uncertainty[5] = 0.0, 1.5
    selection = select_batch(pool, LabelledSet.empty(DIM), boxes, 10, 0)
    assert [(each.sample_id, each.reason) for each in selection.rejected] == [
        ("s0003", "cost is not a positive number"),
        ("s0005", "uncertainty is outside [0, 1]"),
    ]
