"""BADGE and PowerMargin: what a race of candidates draws, and what the gradients of BADGE are."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.errors import SelectionError
from curate.selection.balance import Quota, pick_greedily
from curate.selection.query import QueryProblem
from curate.selection.races import BadgeStrategy, Gradients, PowerStrategy, RaceUtilities, expected_errors
from curate.selection.rows import unit_rows

RUNS = 6000


def make_problem(n: int, classes: int = 3, *, seed: int = 0) -> QueryProblem:
    rng = np.random.default_rng(seed)
    return QueryProblem(
        embeddings=unit_rows(rng.normal(size=(n, 5))),
        probabilities=rng.dirichlet(np.ones(classes), size=n).astype(np.float32),
        weights=np.ones(n),
        evidence=np.zeros(n),
        candidates=np.arange(n),
    )


def make_gradients(n: int, *, seed: int = 0) -> Gradients:
    problem = make_problem(n, seed=seed)
    return Gradients(expected_errors(problem.probabilities, problem.evidence), problem.embeddings[:])


def squared_distances(gradients: Gradients) -> np.ndarray:
    """The distances by the book: outer products, subtracted."""
    rows = np.einsum("ik,id->ikd", gradients.errors, gradients.features).reshape(len(gradients.errors), -1)
    return ((rows[:, None] - rows[None]) ** 2).sum(axis=2)


def chance_of(order: tuple[int, ...], squared: np.ndarray, barred: frozenset[int] = frozenset()) -> float:
    """The probability that k-means++ seeding, which may not take the barred, takes these in this order."""
    nearest, chance, taken = np.ones(len(squared)), 1.0, set(barred)
    for pick in order:
        weights = [0.0 if i in taken else nearest[i] for i in range(len(squared))]
        chance *= weights[pick] / sum(weights)
        nearest = squared[pick].copy() if len(taken) == len(barred) else np.minimum(nearest, squared[pick])
        taken.add(pick)
    return chance


def assert_drawn_as(counts: Counter[tuple[int, ...]], chances: dict[tuple[int, ...], float]) -> None:
    """Pearson's chi-square against the stated chances, at six standard deviations of its distribution."""
    runs = sum(counts.values())
    excess = sum((counts[order] - runs * chance) ** 2 / (runs * chance) for order, chance in chances.items())
    freedom = len(chances) - 1
    assert excess < freedom + 6 * np.sqrt(2 * freedom)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(0, 2**16))
def test_distances_need_no_outer_products(n: int, seed: int) -> None:
    """Lengths and inner products of errors and features give the distances of the gradients themselves."""
    gradients = make_gradients(n, seed=seed)
    lengths = gradients.squared_lengths
    for row in range(n):
        found = lengths + lengths[row] - 2 * gradients.inner_products(row)
        assert found == pytest.approx(squared_distances(gradients)[row], abs=1e-5)


def test_the_race_draws_as_k_means_plus_plus() -> None:
    """Each order of three picks comes as often as k-means++ seeding draws it."""
    gradients = make_gradients(5)
    squared = squared_distances(gradients)
    chances = {order: chance_of(order, squared) for order in itertools.permutations(range(5), 3)}
    assert sum(chances.values()) == pytest.approx(1)
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in range(RUNS):
        picks = pick_greedily(RaceUtilities(gradients, np.random.default_rng(seed)), (), 3, np.arange(5))
        counts[tuple(pick.candidate for pick in picks)] += 1
    assert_drawn_as(counts, chances)


def test_a_quota_leaves_the_draw_among_the_others_as_it_is() -> None:
    """Who is barred changes nothing for the rest, and when the bar lifts everybody is drawn by distance again."""
    gradients = make_gradients(5)
    squared = squared_distances(gradients)
    quota = Quota("device", ["a", "a", "b", "b", "b"], 1)
    chances: dict[tuple[int, ...], float] = {}
    for first, second, third in itertools.permutations(range(5), 3):
        if (first < 2) != (second < 2):  # one of each device; then the quota gives way
            barred = frozenset({0, 1}) if first < 2 else frozenset({2, 3, 4})
            start = chance_of((first,), squared)
            then = [0.0 if i in barred else squared[first][i] for i in range(5)]
            left = np.minimum(squared[first], squared[second])
            left[[first, second]] = 0.0
            chances[first, second, third] = start * then[second] / sum(then) * left[third] / left.sum()
    assert sum(chances.values()) == pytest.approx(1)
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in range(RUNS):
        picks = pick_greedily(RaceUtilities(gradients, np.random.default_rng(seed)), [quota], 3, np.arange(5))
        counts[tuple(pick.candidate for pick in picks)] += 1
    assert_drawn_as(counts, chances)


def test_equal_gradients_are_taken_once() -> None:
    """Copies of a pick arrive never, so every distinct gradient comes before any copy."""
    distinct = make_gradients(4)
    again = np.arange(12) % 4
    gradients = Gradients(distinct.errors[again], distinct.features[again])
    for seed in range(20):
        picks = pick_greedily(RaceUtilities(gradients, np.random.default_rng(seed)), (), 12, np.arange(12))
        assert {int(again[pick.candidate]) for pick in picks[:4]} == {0, 1, 2, 3}
        assert [pick.utility for pick in picks[4:]] == [0.0] * 8


def test_a_model_without_doubt_has_nothing_to_race_for() -> None:
    """With certain predictions all gradients are nothing, and any order is as good: utilities are 0, not NaN."""
    certain = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    problem = replace(make_problem(4), probabilities=certain)
    utilities = BadgeStrategy().utilities(problem, np.random.default_rng(0))
    utilities.add(1)
    assert [utilities.current(i) for i in range(4)] == [0.0] * 4


def test_errors_are_those_of_the_predicted_label() -> None:
    """Without feedback the error is p - onehot(argmax p)."""
    p = np.array([[0.7, 0.2, 0.1], [0.2, 0.3, 0.5], [1.0, 0.0, 0.0]], np.float32)
    expected = np.array([[-0.3, 0.2, 0.1], [0.2, 0.3, -0.5], [0.0, 0.0, 0.0]])
    assert expected_errors(p, np.zeros(3)) == pytest.approx(expected, abs=1e-6)


def test_feedback_lengthens_the_error() -> None:
    """Evidence against a prediction raises its doubt by noisy-or, and the other classes share it as they stand."""
    p = np.array([[0.6, 0.3, 0.1], [1.0, 0.0, 0.0]], np.float32)
    errors = expected_errors(p, np.array([0.5, 1.0]))
    assert errors == pytest.approx(np.array([[-0.7, 0.525, 0.175], [-1.0, 0.5, 0.5]]), abs=1e-6)


@given(st.integers(1, 6), st.integers(0, 2**16))
def test_errors_cancel_out(classes: int, seed: int) -> None:
    """Whatever the feedback, an error's numbers add up to nothing and only the predicted class loses."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(classes), size=4).astype(np.float32)
    errors = expected_errors(p, rng.random(4))
    assert errors.sum(axis=1) == pytest.approx(np.zeros(4), abs=1e-5)
    assert ((errors < 0).sum(axis=1) <= 1).all()


def test_uncertainty_stands_for_two_classes() -> None:
    """A detector's uncertainty is taken for a two-class prediction with that margin."""
    problem = make_problem(6)
    uncertainty = np.random.default_rng(1).random(6)
    two = np.column_stack([1 - uncertainty / 2, uncertainty / 2]).astype(np.float32)
    picks = [
        [pick.candidate for pick in pick_greedily(opened, (), 6, np.arange(6))]
        for opened in (
            BadgeStrategy().utilities(
                replace(problem, probabilities=None, uncertainty=uncertainty), np.random.default_rng(3)
            ),
            BadgeStrategy().utilities(replace(problem, probabilities=two), np.random.default_rng(3)),
        )
    ]
    assert picks[0] == picks[1]


def test_badge_needs_something_to_doubt() -> None:
    """Without probabilities and uncertainties there are no gradients, and the error says what is missing."""
    with pytest.raises(SelectionError, match="badge needs the model's probabilities"):
        BadgeStrategy().utilities(replace(make_problem(3), probabilities=None), np.random.default_rng(0))


@pytest.mark.parametrize("power", [1.0, 3.0])
def test_power_draws_in_proportion_to_the_power(power: float) -> None:
    """Two picks come as often as drawing without replacement in proportion to uncertainty to the power takes them."""
    uncertainty = np.array([0.9, 0.6, 0.3, 0.15])
    problem = replace(make_problem(4), probabilities=None, uncertainty=uncertainty)
    weights = uncertainty**power
    chances = {
        (first, second): weights[first] / weights.sum() * weights[second] / (weights.sum() - weights[first])
        for first, second in itertools.permutations(range(4), 2)
    }
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in range(RUNS):
        utilities = PowerStrategy("margin", power).utilities(problem, np.random.default_rng(seed))
        counts[tuple(np.argsort(-utilities.initial)[:2].tolist())] += 1
    assert_drawn_as(counts, chances)


def test_a_certain_prediction_is_drawn_last() -> None:
    """What has no uncertainty is drawn only when everything else is."""
    problem = replace(make_problem(4), probabilities=None, uncertainty=np.array([0.0, 0.01, 0.01, 0.0]))
    for seed in range(50):
        utilities = PowerStrategy("margin").utilities(problem, np.random.default_rng(seed))
        assert set(np.argsort(-utilities.initial)[:2].tolist()) == {1, 2}
