"""Laws that every query strategy obeys, alone and inside a batch; a new strategy is tested as soon as it exists."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from curate.errors import SelectionError
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

DIM, CLASSES = 8, 4


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
    )


def make_detection_pool(n: int) -> CandidatePool:
    """What a detector's pool looks like: no distribution a frame, an uncertainty instead, and costs in boxes."""
    pool, rng = make_pool(n), np.random.default_rng(7)
    return replace(pool, probabilities=None, uncertainty=rng.random(n), cost=rng.integers(1, 12, n).astype(np.float64))


def make_labelled(m: int) -> LabelledSet:
    rows = np.random.default_rng(99).normal(size=(m, DIM)).astype(np.float32)
    return LabelledSet(tuple(f"known-{i}" for i in range(m)), rows, tuple(f"known-{i}" for i in range(m)))


def select(strategy: str, pool: CandidatePool, budget: int, *, seed: int = 0, **policy: object) -> Selection:
    values = {"strategy": strategy, "audit_share": 0.0, **policy}
    return select_batch(pool, make_labelled(3), SelectionPolicy.model_validate(values), budget, seed)


def ids_of(selection: Selection) -> list[str]:
    return [item.sample_id for item in selection.items]


def make_problem(n: int = 40) -> QueryProblem:
    pool = make_pool(n)
    return QueryProblem(
        embeddings=unit_rows(pool.embeddings),
        probabilities=pool.probabilities,
        weights=np.ones(n),
        evidence=np.zeros(n),
        candidates=np.arange(0, n, 2),
        labelled=unit_rows(make_labelled(3).embeddings),
    )


def open_utilities(strategy: str, problem: QueryProblem) -> Utilities:
    implementation = STRATEGIES[strategy](SelectionPolicy())
    assert isinstance(implementation, QueryStrategy)
    utilities = implementation.utilities(problem, np.random.default_rng(0))
    assert isinstance(utilities, Utilities)
    return utilities


def test_utilities_are_finite_one_a_candidate(strategy: str) -> None:
    """A strategy gives one finite utility to each candidate."""
    initial = open_utilities(strategy, make_problem()).initial
    assert initial.shape == (20,)
    assert np.isfinite(initial).all()


def test_utilities_never_rise_as_the_batch_grows(strategy: str) -> None:
    """Adding to the batch never raises a utility, which is what makes the lazy greedy engine exact."""
    utilities = open_utilities(strategy, make_problem())
    before = [utilities.current(i) for i in range(20)]
    assert before == pytest.approx(utilities.initial.tolist(), abs=1e-6)
    for picked in (3, 11, 7):
        utilities.add(picked)
        after = [utilities.current(i) for i in range(20)]
        assert all(new <= old + 1e-9 for new, old in zip(after, before, strict=True))
        before = after


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
    one = make_pool(1)
    pool = CandidatePool(
        ids=tuple(f"s{i:03d}" for i in range(25)),
        embeddings=np.repeat(one.embeddings, 25, axis=0),
        probabilities=np.repeat(one.probabilities, 25, axis=0),
        devices=("cam-1",) * 25,
        cameras=("cam-1",) * 25,
        groups=tuple(f"burst-{i}" for i in range(25)),
        random_probability=np.full(25, np.nan),
    )
    selection = select(strategy, pool, 10)
    assert selection.distinct_sights == 1
    assert len(set(ids_of(selection))) == 10
    assert selection.items[0].stands_for == 25
    assert all(np.isfinite(item.utility) for item in selection.items)


@pytest.mark.parametrize("field", ["embeddings", "probabilities"])
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
    pool = make_pool(30)
    single = CandidatePool(
        pool.ids,
        pool.embeddings,
        np.ones((30, 1), np.float32),
        pool.devices,
        pool.cameras,
        pool.groups,
        pool.random_probability,
    )
    selection = select(strategy, single, 10)
    assert len(set(ids_of(selection))) == 10
    assert all(np.isfinite(item.utility) for item in selection.items)


def test_an_empty_pool_is_an_error(strategy: str) -> None:
    """Nothing to select from is a SelectionError, not an empty answer."""
    with pytest.raises(SelectionError, match="empty"):
        select(strategy, make_pool(1).take([]), 5)


def test_near_duplicates_wait_until_every_sight_was_asked(strategy: str) -> None:
    """While distinct sights are left no two picks show the same one."""
    rng = np.random.default_rng(4)
    pool = make_pool(12, seed=3)
    noisy = np.repeat(pool.embeddings, 10, axis=0) + rng.normal(scale=1e-3, size=(120, DIM)).astype(np.float32)
    burst = CandidatePool(
        ids=tuple(f"s{i:04d}" for i in range(120)),
        embeddings=noisy.astype(np.float32),
        probabilities=np.repeat(pool.probabilities, 10, axis=0),
        devices=tuple(itertools.chain.from_iterable([device] * 10 for device in pool.devices)),
        cameras=("cam",) * 120,
        groups=tuple(f"burst-{i // 10}" for i in range(120)),
        random_probability=np.full(120, np.nan),
    )
    selection = select(strategy, burst, 12)
    assert selection.distinct_sights == 12
    assert len({item.cluster for item in selection.items}) == 12


def test_a_pool_without_probabilities_is_chosen_from(strategy: str) -> None:
    """Uncertainties alone are enough: distinct ids, finite utilities, the same answer in any row order."""
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
