"""Strategies that draw: candidates race, and the better ones run faster (BADGE, PowerMargin)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curate.errors import SelectionError
from curate.selection.base import Float32Array, Float64Array
from curate.selection.query import FixedUtilities, QueryProblem, Utilities
from curate.selection.uncertainty import UncertaintyKind, raise_by_evidence, rate_uncertainty

MIN_NOISE = 1e-16
RESOLUTION = 1e-6
"""Squared distances below this share of the squared lengths are rounding of float32."""


@dataclass(frozen=True, eq=False)
class Gradients:
    """Outer products errorᵢ ⊗ featuresᵢ of C candidates, never formed: `errors` float32 [C, K], `features` [C, D].

    The inner product of two is (errorᵢ · errorⱼ)(featuresᵢ · featuresⱼ), so distances need K + D numbers a row
    instead of K · D.
    """

    errors: Float32Array
    features: Float32Array

    @property
    def squared_lengths(self) -> Float64Array:
        """‖errorᵢ‖² ‖featuresᵢ‖², float64 [C]."""
        lengths = [np.einsum("ij,ij->i", part, part) for part in (self.errors, self.features)]
        return np.asarray(lengths[0] * lengths[1], np.float64)

    def inner_products(self, row: int) -> Float64Array:
        """Return the inner products of all gradients with one of them, float64 [C]."""
        return np.asarray((self.errors @ self.errors[row]) * (self.features @ self.features[row]), np.float64)


class RaceUtilities:
    """k-means++ seeding (Arthur & Vassilvitskii 2007) with utilities that only fall.

    Every candidate runs towards its arrival: it has an exponential way to go and runs it at the rate D², its squared
    distance to the nearest pick. Whoever arrives first is picked; what the others have run by then is kept, and their
    rates fall. An exponential does not remember how much of it is gone, so the next to arrive is candidate i with
    probability D²ᵢ / Σ D², whatever happened before: exactly the draw of k-means++. Rates only fall, hence arrivals are
    only put off, and the utility is one over the arrival. The first pick is uniform: all start at one rate, above any
    that follows. Who arrives while a quota bars it runs again from the start, which leaves the draw among the others as
    it is.
    """

    def __init__(self, gradients: Gradients, rng: np.random.Generator) -> None:
        self._gradients, self._rng = gradients, rng
        self._lengths = gradients.squared_lengths
        self._rate = np.full(len(self._lengths), 4.0 * self._lengths.max(initial=0.0))
        self._left = draw_exponentials(rng, len(self._lengths))
        self._now = 0.0
        self.initial: Float64Array = self._rate / self._left

    def current(self, candidate: int) -> float:
        """Return one over the candidate's arrival as it looks now; 0 if it equals a pick and so never arrives."""
        rate = self._rate[candidate]
        return float(rate / (self._now * rate + self._left[candidate]))

    def add(self, candidate: int) -> None:
        """Let time pass until the candidate arrives, then slow down what is like it."""
        if self._rate[candidate] > 0:
            passed = self._left[candidate] / self._rate[candidate]
            self._now += passed
            self._left -= self._rate * passed
        arrived = np.flatnonzero(self._left <= 0)
        self._left[arrived] = draw_exponentials(self._rng, len(arrived))
        both = self._lengths + self._lengths[candidate]
        squared = both - 2.0 * self._gradients.inner_products(candidate)
        self._rate = np.minimum(self._rate, np.where(squared > RESOLUTION * both, squared, 0.0))
        self._rate[candidate] = 0.0


@dataclass(frozen=True)
class BadgeStrategy:
    """Draw gradients that are long, where the model is unsure, and unlike each other (BADGE, arXiv:1906.03671).

    A candidate's gradient is the one of the cross-entropy in the last layer if its prediction were its label:
    (p - onehot(argmax p)) ⊗ embedding. Embeddings have length 1 here. Feedback against a prediction moves probability
    from it to the other classes. Labels so far play no part, as in the paper.
    """

    def utilities(self, problem: QueryProblem, rng: np.random.Generator) -> Utilities:
        """Open the race of the candidates.

        Raises:
            SelectionError: the problem has neither probabilities nor uncertainties.
        """
        rows = problem.candidates
        errors = expected_errors(_distributions(problem), problem.evidence[rows])
        return RaceUtilities(Gradients(errors, problem.embeddings[rows]), rng)


@dataclass(frozen=True)
class PowerStrategy:
    """Draw in proportion to a power of the uncertainty (stochastic batch acquisition, arXiv:2106.12059, "power").

    The most uncertain of a batch tell much the same; a draw spreads over the uncertain ones without looking at who is
    like whom.
    """

    kind: UncertaintyKind = "margin"
    power: float = 1.0

    def utilities(self, problem: QueryProblem, rng: np.random.Generator) -> Utilities:
        """Return uncertainty to the power over standard exponentials: falling, they are a draw without replacement.

        The paper adds Gumbel noise to the logarithm of the score, which puts candidates in the same order.
        """
        said = rate_uncertainty(self.kind, problem.probabilities, problem.uncertainty)
        unsure = raise_by_evidence(said, problem.evidence)[problem.candidates]
        return FixedUtilities(unsure**self.power / draw_exponentials(rng, len(unsure)))


def expected_errors(probabilities: Float32Array, evidence: Float64Array) -> Float32Array:
    """Return p - onehot(argmax p), float32 [C, K], where `evidence` [C] that the argmax is wrong has raised its doubt.

    Without evidence that is all. With it, the classes beside the argmax share what it loses as they stand, or evenly if
    they have nothing.
    """
    count, classes = probabilities.shape
    rows = np.arange(count)
    top = probabilities.argmax(axis=1)
    if classes < 2:
        return np.zeros((count, classes), np.float32)
    others = probabilities.astype(np.float64)
    others[rows, top] = 0.0
    doubt = others.sum(axis=1)
    others[doubt <= 0] = 1.0
    others[rows, top] = 0.0
    raised = raise_by_evidence(doubt, evidence)
    others *= (raised / others.sum(axis=1))[:, None]
    others[rows, top] = -raised
    return np.asarray(others, np.float32)


def _distributions(problem: QueryProblem) -> Float32Array:
    """Return the candidates' probabilities; a given uncertainty stands for two classes that far from certain."""
    if problem.uncertainty is not None:
        second = problem.uncertainty[problem.candidates] / 2.0
        return np.column_stack([1.0 - second, second]).astype(np.float32)
    if problem.probabilities is None:
        raise SelectionError("badge needs the model's probabilities, or uncertainties in their place")
    return np.asarray(problem.probabilities[problem.candidates])


def draw_exponentials(rng: np.random.Generator, count: int) -> Float64Array:
    """Draw standard exponentials, float64 [count], none of them 0."""
    return np.maximum(rng.standard_exponential(count), MIN_NOISE)
