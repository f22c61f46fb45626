"""Field accuracy from audited captures."""

from __future__ import annotations

import numpy as np
import pytest

from curate.errors import SelectionError
from curate.selection.estimate.field import estimate_field_accuracy


def bursts_of(sizes: list[int]) -> list[str]:
    return [f"burst-{i}" for i, size in enumerate(sizes) for _ in range(size)]


def test_estimate_is_the_weighted_share() -> None:
    """A capture that stands for more frames counts for more: the Hájek ratio."""
    result = estimate_field_accuracy([1, 0, 1], [0.1, 0.2, 0.5], ["a", "b", "c"])
    assert result.estimate == pytest.approx((10 + 2) / (10 + 5 + 2))
    assert (result.n, result.bursts) == (3, 3)


def test_interval_holds_the_estimate_and_stays_within_bounds() -> None:
    """The interval surrounds the estimate inside [0, 1] for every share of right answers."""
    for right in range(21):
        result = estimate_field_accuracy([1] * right + [0] * (20 - right), [0.05] * 20, bursts_of([2] * 10))
        assert 0 <= result.ci95[0] <= result.estimate <= result.ci95[1] <= 1
        assert result.ci95[1] - result.ci95[0] > 0.1


def test_all_right_is_not_certain() -> None:
    """Sixty right answers leave room for error, more when they come from few bursts."""
    spread = estimate_field_accuracy([1] * 60, [0.02] * 60, bursts_of([1] * 60))
    bunched = estimate_field_accuracy([1] * 60, [0.02] * 60, bursts_of([3] * 20))
    assert spread.estimate == 1.0
    assert 0.93 < spread.ci95[0] < 0.96
    assert bunched.ci95[0] < spread.ci95[0]


def test_alike_frames_widen_the_interval() -> None:
    """The same answers tell less when right and wrong come in bursts."""
    answers = [1, 1, 1, 0, 0, 0] * 10
    together = estimate_field_accuracy(answers, [0.02] * 60, bursts_of([3] * 20))
    apart = estimate_field_accuracy(answers, [0.02] * 60, bursts_of([1] * 60))
    assert together.ci95[1] - together.ci95[0] > 1.4 * (apart.ci95[1] - apart.ci95[0])


def test_a_higher_confidence_is_a_wider_interval() -> None:
    """Asking for more confidence costs width."""
    answers = [1] * 45 + [0] * 15
    low, high = (
        estimate_field_accuracy(answers, [0.1] * 60, bursts_of([2] * 30), confidence=c).ci95 for c in (0.8, 0.99)
    )
    assert high[0] < low[0] < low[1] < high[1]


def test_a_single_burst_says_nothing() -> None:
    """One burst is one piece of evidence, which bounds nothing."""
    assert estimate_field_accuracy([1, 1, 0], [0.5] * 3, ["a"] * 3).ci95 == (0.0, 1.0)


@pytest.mark.parametrize(
    ("correct", "probability", "bursts"),
    [([], [], []), ([1], [0.0], ["a"]), ([1], [1.5], ["a"]), ([0.5], [0.5], ["a"]), ([1, 0], [0.5], ["a"])],
)
def test_nonsense_is_refused(correct: list[float], probability: list[float], bursts: list[str]) -> None:
    """No captures, impossible probabilities, half-right verdicts and ragged columns raise SelectionError."""
    with pytest.raises(SelectionError):
        estimate_field_accuracy(correct, probability, bursts)


@pytest.mark.parametrize("accuracy", [0.6, 0.75, 0.9, 0.95])
@pytest.mark.parametrize("alike", [0.0, 0.5, 1.0])
def test_coverage_by_simulation(accuracy: float, alike: float) -> None:
    """With sixty audited captures in bursts of one to three and unequal weights, 95 % intervals cover at least 93 %."""
    rng = np.random.default_rng([int(accuracy * 100), int(alike * 10)])
    runs, hits = 1000, 0
    for _ in range(runs):
        sizes = rng.integers(1, 4, size=30)
        burst = np.repeat(np.arange(30), sizes)
        shared, own = rng.random(30)[burst] < accuracy, rng.random(len(burst)) < accuracy
        correct = np.where(rng.random(30)[burst] < alike, shared, own)
        weight = rng.choice([0.02, 0.05], size=len(burst))
        low, high = estimate_field_accuracy(correct, weight, burst.astype(str).tolist()).ci95
        hits += low <= accuracy <= high
    assert hits / runs >= 0.93
