"""Laws that every query strategy obeys, alone and inside a batch; a new strategy is tested as soon as it exists."""

from __future__ import annotations

import gc
import tracemalloc
from collections import Counter
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.errors import SelectionError
from curate.selection.balance import pick_greedily
from curate.selection.base import (
    CandidatePool,
    LabelledSet,
    Selection,
    SelectionPolicy,
)
from curate.selection.batch import select_batch
from curate.selection.query import QueryProblem, QueryStrategy, Utilities
from curate.selection.rows import unit_rows
from curate.selection.strategies import STRATEGIES

pytestmark = pytest.mark.parametrize("strategy", sorted(STRATEGIES))

DIM, CLASSES, MODELS = 8, 4, 3


def make_pool(n: int, *, seed: int = 0, devices: tuple[str, ...] = ("cam-1", "cam-2", "cam-3")) -> CandidatePool:
    rng = np.random.default_rng(seed)
    return CandidatePool(
        ids=tuple(f"s{i:04d}" for i in range(n)),
        embeddings=rng.normal(size=(n, DIM)).astype(np.float32),
        probabilities=rng.dirichlet(np.ones(CLASSES), size=n).astype(np.float32),
        devices=tuple(devices[i % len(devices)] for i in range(n)),
        cameras=tuple(devices[i % len(devices)] for i in range(n)),
        groups=tuple(f"burst-{i // 2}" for i in range(n)),
        random_probability=np.full(n, np.nan),
        members=rng.dirichlet(np.ones(CLASSES), size=(n, MODELS)).astype(np.float32),
    )


def show_again(pool: CandidatePool, rows: np.ndarray, groups: tuple[str, ...], noise: float = 0.0) -> CandidatePool:
    """The given captures, some of them many times, each time under another id and up to noise the same."""
    shift = np.random.default_rng(4).normal(scale=noise, size=(len(rows), DIM))
    return CandidatePool(
        ids=tuple(f"s{i:04d}" for i in range(len(rows))),
        embeddings=(pool.embeddings[rows] + shift).astype(np.float32),
        probabilities=pool.probabilities[rows],
        devices=tuple(pool.devices[row] for row in rows),
        cameras=("cam",) * len(rows),
        groups=groups,
        random_probability=np.full(len(rows), np.nan),
        members=pool.members[rows],
    )


def make_detection_pool(n: int) -> CandidatePool:
    """What a detector's pool looks like: no distribution a frame, an uncertainty instead, and costs in boxes."""
    pool, rng = make_pool(n), np.random.default_rng(7)
    return replace(pool, probabilities=None, uncertainty=rng.random(n), cost=rng.integers(1, 12, n).astype(np.float64))


def make_labelled(m: int) -> LabelledSet:
    rows = np.random.default_rng(99).normal(size=(m, DIM)).astype(np.float32)
    return LabelledSet(tuple(f"known-{i}" for i in range(m)), rows, tuple(f"known-{i}" for i in range(m)))


def select(
    strategy: str, pool: CandidatePool, budget: int, *, labels: int = 3, seed: int = 0, **policy: object
) -> Selection:
    values = {"strategy": strategy, "audit_share": 0.0, **policy}
    return select_batch(pool, make_labelled(labels), SelectionPolicy.model_validate(values), budget, seed)


def ids_of(selection: Selection) -> list[str]:
    return [item.sample_id for item in selection.items]


def make_problem(n: int, *, seed: int, labels: int = 3) -> QueryProblem:
    """Every other sight may be asked; if the seed is odd, some look the same."""
    rng = np.random.default_rng(seed)
    pool = show_again(make_pool(n, seed=seed), rng.integers(0, n, n) if seed % 2 else np.arange(n), ("burst",) * n)
    candidates = np.arange(0, n, 2)
    return QueryProblem(
        embeddings=unit_rows(pool.embeddings),
        probabilities=pool.probabilities,
        weights=np.ones(n),
        evidence=rng.choice([0.0, 0.0, 0.5, 1.0], n),
        candidates=candidates,
        labelled=unit_rows(make_labelled(labels).embeddings),
        batch=max(1, n // 8),
        members=pool.members[candidates],
    )


def open_utilities(strategy: str, problem: QueryProblem, seed: int = 0) -> Utilities:
    implementation = STRATEGIES[strategy](SelectionPolicy())
    assert isinstance(implementation, QueryStrategy)
    utilities = implementation.utilities(problem, np.random.default_rng(seed))
    assert isinstance(utilities, Utilities)
    return utilities


def test_the_policy_offers_the_strategy(strategy: str) -> None:
    """Whatever is registered can be chosen in the configuration, and nothing else can."""
    offered = get_args(SelectionPolicy.model_fields["strategy"].annotation)
    assert strategy in offered
    assert sorted(offered) == sorted(STRATEGIES)


@settings(max_examples=12, deadline=None)
@given(n=st.integers(2, 40), seed=st.integers(0, 2**16), labels=st.sampled_from([0, 1, 5]), data=st.data())
def test_utilities_never_rise_as_the_batch_grows(
    strategy: str, n: int, seed: int, labels: int, data: st.DataObject
) -> None:
    """A candidate has one finite utility, and adding to the batch, in whatever order, never raises it."""
    utilities = open_utilities(strategy, make_problem(n, seed=seed, labels=labels), seed)
    count = len(range(0, n, 2))
    assert utilities.initial.shape == (count,)
    before = [utilities.current(i) for i in range(count)]
    assert before == pytest.approx(utilities.initial.tolist(), rel=1e-5, abs=1e-6)
    for picked in data.draw(st.permutations(range(count)))[:6]:
        utilities.add(picked)
        after = [utilities.current(i) for i in range(count)]
        assert np.isfinite(after).all()
        assert all(new <= old * (1 + 1e-9) + 1e-9 for new, old in zip(after, before, strict=True) if old >= 0)
        assert all(new <= old + 1e-9 for new, old in zip(after, before, strict=True) if old < 0)
        before = after


@settings(max_examples=8, deadline=None)
@given(n=st.integers(2, 30), seed=st.integers(0, 2**16))
def test_lazy_picks_are_those_of_looking_at_all(strategy: str, n: int, seed: int) -> None:
    """The engine, which looks at few candidates a pick, picks what it would if it looked at all of them each time."""
    problem = make_problem(n, seed=seed)
    ties = np.random.default_rng(seed).permutation(len(problem.candidates))
    picks = pick_greedily(open_utilities(strategy, problem), (), n, ties)
    utilities, left = open_utilities(strategy, problem), set(range(len(ties)))
    for pick in picks:
        now = {i: (-utilities.current(i), ties[i]) for i in left}
        assert now[pick.candidate][0] == pytest.approx(min(now.values())[0], rel=1e-6, abs=1e-6)
        utilities.add(pick.candidate)
        left.remove(pick.candidate)
    assert not left
    falling = [pick.utility for pick in picks]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize("budget", [1, 7, 40, 400])
def test_exactly_the_budget_in_distinct_ids(strategy: str, budget: int) -> None:
    """A batch holds min(budget, pool) distinct ids, ranked from 1 without a gap."""
    selection = select(strategy, make_pool(60), budget)
    assert len(selection.items) == len(set(ids_of(selection))) == min(budget, 60)
    assert [item.rank for item in selection.items] == list(range(1, len(selection.items) + 1))


def test_labelled_samples_are_never_asked_again(strategy: str) -> None:
    """An id in the labelled set is not selected but reported."""
    pool = make_pool(30)
    known = LabelledSet(pool.ids[:10], pool.embeddings[:10], tuple(f"other-{i}" for i in range(10)))
    policy = SelectionPolicy.model_validate({"strategy": strategy, "audit_share": 0.0})
    selection = select_batch(pool, known, policy, 30, 0)
    assert set(ids_of(selection)) == set(pool.ids[10:])
    assert {reject.sample_id for reject in selection.rejected} == set(pool.ids[:10])


def test_device_quota_holds(strategy: str) -> None:
    """No device gets more than its share while others have candidates."""
    pool = make_pool(90, devices=("noisy", "noisy", "noisy", "noisy", "quiet"))
    selection = select(strategy, pool, 20, max_device_share=0.5)
    assert selection.per_device == {"noisy": 10, "quiet": 10}
    assert not selection.notes


def test_a_quota_that_cannot_be_met_gives_way_aloud(strategy: str) -> None:
    """With one device the budget is still spent, and the selection says that the quota gave way."""
    selection = select(strategy, make_pool(40, devices=("only",)), 20, max_device_share=0.5)
    assert selection.per_device == {"only": 20}
    assert any("quota" in note for note in selection.notes)


def test_same_seed_same_answer(strategy: str) -> None:
    """Selecting again on the same pool with the same seed gives the same items in the same order."""
    assert select(strategy, make_pool(60), 12, seed=5) == select(strategy, make_pool(60), 12, seed=5)


def test_row_order_does_not_matter(strategy: str) -> None:
    """A shuffled pool gives the very same selection."""
    pool = make_pool(60)
    shuffled = pool.take(np.random.default_rng(1).permutation(60))
    assert select(strategy, pool, 12) == select(strategy, shuffled, 12)


def test_an_all_identical_pool_is_one_sight(strategy: str) -> None:
    """Copies of one frame collapse to one sight, and the budget is still filled with finite utilities."""
    pool = show_again(make_pool(1), np.zeros(25, np.int64), tuple(f"burst-{i}" for i in range(25)))
    selection = select(strategy, pool, 10)
    assert selection.distinct_sights == 1
    assert len(set(ids_of(selection))) == 10
    assert selection.items[0].stands_for == 25
    assert all(np.isfinite(item.utility) for item in selection.items)


@pytest.mark.parametrize("field", ["embeddings", "probabilities", "members"])
def test_a_row_of_nan_is_rejected_by_id(strategy: str, field: str) -> None:
    """A row with NaN is reported by id and disturbs nothing else."""
    pool = make_pool(30)
    getattr(pool, field)[4, 1] = np.nan
    selection = select(strategy, pool, 30)
    assert [reject.sample_id for reject in selection.rejected] == ["s0004"]
    assert "s0004" not in ids_of(selection)
    assert len(selection.items) == 29
    assert all(np.isfinite(item.utility) for item in selection.items)


def test_a_single_class_is_enough(strategy: str) -> None:
    """A model that knows one class only can still have a batch chosen."""
    single = replace(make_pool(30), probabilities=np.ones((30, 1), np.float32), members=np.ones((30, 3, 1), np.float32))
    selection = select(strategy, single, 10)
    assert len(set(ids_of(selection))) == 10
    assert all(np.isfinite(item.utility) for item in selection.items)


def test_an_empty_pool_is_an_error(strategy: str) -> None:
    """Nothing to select from is a SelectionError, not an empty answer."""
    with pytest.raises(SelectionError, match="empty"):
        select(strategy, make_pool(1).take([]), 5)


def test_near_duplicates_wait_until_every_sight_was_asked(strategy: str) -> None:
    """While distinct sights are left no two picks show the same one."""
    burst = show_again(
        make_pool(12, seed=3), np.arange(120) // 10, tuple(f"burst-{i // 10}" for i in range(120)), noise=1e-3
    )
    selection = select(strategy, burst, 12)
    assert selection.distinct_sights == 12
    assert len({item.cluster for item in selection.items}) == 12


def test_a_pool_without_probabilities_is_chosen_from(strategy: str) -> None:
    """Uncertainties do for probabilities: distinct ids, finite utilities, the same answer in any row order."""
    pool = make_detection_pool(60)
    selection = select(strategy, pool, 12)
    assert len(set(ids_of(selection))) == 12
    assert all(np.isfinite(item.utility) for item in selection.items)
    assert select(strategy, pool.take(np.random.default_rng(1).permutation(60)), 12) == selection


@pytest.mark.parametrize("budget", [1, 30, 150, 2000])
def test_a_budget_of_boxes_is_kept_and_used(strategy: str, budget: int) -> None:
    """The boxes asked for never exceed the budget, and no capture that was left would still have fitted."""
    pool = make_detection_pool(60)
    selection = select(strategy, pool, budget, budget_unit="boxes")
    costs = dict(zip(pool.ids, pool.cost.tolist(), strict=True))
    spent = sum(costs.pop(name) for name in ids_of(selection))
    assert spent == selection.spent <= budget
    assert not costs or spent + min(costs.values()) > budget
    assert selection == select(strategy, pool, budget, budget_unit="boxes")


def test_given_uncertainty_overrides_the_probabilities(strategy: str) -> None:
    """With uncertainties given, the probabilities beside them change nothing."""
    pool = make_detection_pool(60)
    assert select(strategy, pool, 12) == select(strategy, replace(pool, probabilities=make_pool(60).probabilities), 12)


@settings(max_examples=12, deadline=None)
@given(
    n=st.integers(1, 40),
    looks=st.integers(1, 40),
    budget=st.integers(1, 60),
    devices=st.integers(1, 4),
    share=st.sampled_from([0.3, 0.6, 1.0]),
    labels=st.sampled_from([0, 3]),
    seed=st.integers(0, 2**16),
)
def test_any_pool_of_any_shape(
    strategy: str, n: int, looks: int, budget: int, devices: int, share: float, labels: int, seed: int
) -> None:
    """Whatever the pool: min(budget, pool) distinct ids, quotas that hold or give way aloud, blind to row order."""
    rng = np.random.default_rng(seed)
    pool = replace(
        show_again(make_pool(looks, seed=seed), rng.integers(0, looks, n), tuple(f"burst-{i // 3}" for i in range(n))),
        devices=tuple(f"cam-{i % devices}" for i in range(n)),
        captured_s=rng.integers(0, 3, n) * 3600.0,
    )
    limits = {"max_device_share": share, "max_class_share": share, "max_hour_share": share}
    selection = select(strategy, pool, budget, labels=labels, seed=seed, **limits)
    assert len(selection.items) == len(set(ids_of(selection))) == min(budget, n)
    if not selection.notes:
        rows = [pool.ids.index(name) for name in ids_of(selection)]
        for part in (pool.devices, pool.captured_s.tolist()):
            assert max(Counter(part[row] for row in rows).values()) <= share * budget + 2  # each half rounds up
    shuffled = pool.take(rng.permutation(n))
    assert select(strategy, shuffled, budget, labels=labels, seed=seed, **limits) == selection


def test_memory_is_bounded(strategy: str) -> None:
    """A pool of more sights than may compete needs memory by the row and by the candidate, not by pairs of rows."""
    n, width = 6000, 100
    pool = make_pool(n)
    select(strategy, make_pool(60), 12)  # what is imported on the way is not the pool's
    gc.collect()
    tracemalloc.start()
    try:
        chosen = select(strategy, pool, 20, max_candidates=width, explore_share=0.0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(chosen.items) == 20
    assert peak < 2000 * n + 40 * width * width + 2**22 < n * n
