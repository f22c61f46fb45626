"""The race: label, retrain, choose again; and what the curves of many seeds say together."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression

from label_choosers import Chooser, Turn, predict, verify_choice
from label_worlds import Matrix, Rows, World

Curves = NDArray[np.float64]
"""Accuracy [seeds, budgets]."""

BUDGETS: Final = (*range(10, 101, 10), *range(120, 301, 20))
"""Labels in all at which a model is trained and judged: rounds of 10 up to 100, then of 20."""
RESAMPLES: Final = 2000
DISMISSED_WRONG, DISMISSED_RIGHT = 0.30, 0.03
"""How often people object to a wrong and to a right prediction."""


@dataclass(frozen=True, eq=False)
class Race:
    """One method on one seed of a world: accuracy at each budget, and the median seconds of a choice."""

    accuracy: tuple[float, ...]
    seconds_a_choice: float


def run_race(world: World, choose: Chooser, seed: int, budgets: Sequence[int] = BUDGETS) -> Race:
    """Spend the budgets one after another. Labels that only test are spent, too, but teach nothing."""
    taught, held_out = world.start, world.start[:0]
    people = np.random.default_rng([seed, 1]).random(len(world))
    model = fit(world, taught)
    accuracy, seconds = [], []
    for round_number, budget in enumerate(budgets):
        short = budget - len(taught) - len(held_out)
        if short > 0:
            said = predict(model, world.embeddings)
            objected = _object(said, world, people)
            turn = Turn(world, taught, held_out, model, said, objected, short, seed * 1000 + round_number)
            begun = time.perf_counter()
            choice = choose(turn)
            seconds.append(time.perf_counter() - begun)
            verify_choice(choice, turn.free, turn.budget)
            taught, held_out = np.concatenate([taught, choice.teach]), np.concatenate([held_out, choice.test])
            model = fit(world, taught)
        accuracy.append(float(model.score(world.test_embeddings, world.test_labels)))
    return Race(tuple(accuracy), float(np.median(seconds)) if seconds else 0.0)


def fit(world: World, rows: Rows) -> LogisticRegression:
    """Train the one learner that all methods have, from scratch."""
    model = LogisticRegression(C=1.0, max_iter=500, tol=1e-3)
    return model.fit(world.embeddings[rows], world.labels[rows])


def _object(said: Matrix, world: World, people: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which predictions people dismiss: a person who objects to the right answer objects to a wrong one."""
    wrong = said.argmax(axis=1) != world.labels
    return np.asarray(people < np.where(wrong, DISMISSED_WRONG, DISMISSED_RIGHT))


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


def resample(seeds: int, rng: np.random.Generator) -> Rows:
    """Draw seeds with return, int64 [2000, seeds]; all methods of a world are drawn alike, which pairs them."""
    return rng.integers(0, seeds, (RESAMPLES, seeds))


def share_of_labels(curves: Curves, random: Curves, budgets: Sequence[int], draws: Rows) -> Estimate:
    """Return the labels that a method needs for what random has at the last budget, as a share of that.

    From the mean curves: the first budget at which the method's is as high as random's last, linear between budgets;
    infinite if it never is. The interval is of seeds drawn with return.
    """
    spent = np.array(budgets, np.float64)

    def measure(seeds: Rows) -> float:
        return first_reach(curves[seeds].mean(axis=0), spent, float(random[seeds, -1].mean())) / budgets[-1]

    return _interval(measure(np.arange(len(curves))), [measure(seeds) for seeds in draws])


def first_reach(curve: NDArray[np.float64], spent: NDArray[np.float64], target: float) -> float:
    """Return where a curve first reaches the target, linear between its points; infinite where it never does."""
    reached = np.flatnonzero(curve >= target)
    if not len(reached):
        return float("inf")
    end = int(reached[0])
    if end == 0:
        return float(spent[0])
    part = (target - curve[end - 1]) / (curve[end] - curve[end - 1])
    return float(spent[end - 1] + part * (spent[end] - spent[end - 1]))


def mean_gain(curves: Curves, random: Curves, budgets: Sequence[int], draws: Rows) -> Estimate:
    """Return by how much accuracy is above random's on average over the labels spent: the area between the curves."""
    spent = np.array(budgets, np.float64)
    gain = np.trapezoid(curves - random, spent, axis=1) / (spent[-1] - spent[0])
    return _interval(float(gain.mean()), gain[draws].mean(axis=1))


def paired_mean(differences: NDArray[np.float64]) -> Estimate:
    """Return the mean of paired differences [seeds], with Student's interval: resamples of a handful are too narrow.

    Infinite on both sides for one seed.
    """
    seeds, mean = len(differences), float(differences.mean())
    if seeds == 1:
        return Estimate(mean, float("-inf"), float("inf"))
    half = float(student.ppf(0.975, seeds - 1) * differences.std(ddof=1) / np.sqrt(seeds))
    return Estimate(mean, mean - half, mean + half)


@dataclass(frozen=True)
class Worst:
    """The budget at which a method does worst against random: the mean difference, and whether noise explains it."""

    budget: int
    difference: float
    beyond_noise: bool


def worst_against_random(curves: Curves, random: Curves, budgets: Sequence[int], draws: Rows) -> Worst:
    """Find the smallest paired difference, and ask whether any budget is below random with 95 % confidence in all.

    One band over all budgets at once, from the largest studentised deviation in the resamples: with twenty budgets,
    one by itself would be below its own 95 % interval by chance now and then.
    """
    difference = curves - random
    mean = difference.mean(axis=0)
    spread = difference.std(axis=0, ddof=1) / np.sqrt(len(curves)) if len(curves) > 1 else np.full(len(mean), np.inf)
    spread = np.maximum(spread, 1e-12)
    deviation = ((difference[draws].mean(axis=1) - mean) / spread).max(axis=1)
    below = mean + np.quantile(deviation, 0.95) * spread < -1e-9
    worst = int(mean.argmin())
    return Worst(budgets[worst], float(mean[worst]), bool(below.any()))


def mean_ranks(areas: Mapping[str, Mapping[str, Curves]]) -> dict[str, float]:
    """Return each method's rank by area, 1 the best, averaged over seeds and then over worlds; ties share a rank.

    `areas` holds for every world and method an area for each seed, [seeds].
    """
    ranks: dict[str, list[float]] = {}
    for of_world in areas.values():
        names = list(of_world)
        table = np.array([of_world[name] for name in names])
        above = (table[:, None] < table[None]).sum(axis=1) + ((table[:, None] == table[None]).sum(axis=1) - 1) / 2
        for name, place in zip(names, (1 + above).mean(axis=1), strict=True):
            ranks.setdefault(name, []).append(float(place))
    return {name: float(np.mean(places)) for name, places in ranks.items()}


def _interval(value: float, resampled: Sequence[float] | NDArray[np.float64]) -> Estimate:
    low, high = np.quantile(np.asarray(resampled), [0.025, 0.975], method="closest_observation")
    return Estimate(value, float(low), float(high))
