"""Query strategies behind one interface: some look at single sights, some at what the whole batch covers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from curate.selection.base import (
    Float32Array,
    Float64Array,
    QueryProblem,
    QueryStrategy,
    SelectionPolicy,
    Utilities,
)
from curate.selection.diversity import CHUNK_ROWS, coverage_radius, nearest_similarity, rbf_kernel
from curate.selection.uncertainty import UncertaintyKind, raise_by_evidence, rate_uncertainty


@dataclass(frozen=True)
class FixedUtilities:
    """Utilities that the rest of the batch does not change."""

    initial: Float64Array

    def current(self, candidate: int) -> float:
        """Return the candidate's utility."""
        return float(self.initial[candidate])

    def add(self, candidate: int) -> None:
        """Do nothing: points do not influence each other."""


class CoverageUtilities:
    """Marginal gains of the weighted coverage Σ_n w_n · max_{s ∈ S} k(x_n, s), which is submodular.

    `kernel` float32 [C, N], `weights` float32 [N], `covered` float32 [N] (by what is labelled already).
    """

    def __init__(self, kernel: Float32Array, weights: Float32Array, covered: Float32Array) -> None:
        self._kernel, self._weights, self._covered = kernel, weights, covered.copy()
        self.initial: Float64Array = np.zeros(len(kernel))
        for start in range(0, len(kernel), CHUNK_ROWS):
            block = slice(start, start + CHUNK_ROWS)
            self.initial[block] = self._gains(kernel[block])

    def current(self, candidate: int) -> float:
        """Return the coverage that the candidate would still add."""
        return float(self._gains(self._kernel[candidate]))

    def add(self, candidate: int) -> None:
        """Cover what the candidate covers."""
        np.maximum(self._covered, self._kernel[candidate], out=self._covered)

    def _gains(self, rows: Float32Array) -> Float32Array:
        return np.asarray(np.maximum(rows - self._covered, 0) @ self._weights)


class DistanceUtilities:
    """Distance of each candidate to the nearest labelled or picked sight."""

    def __init__(self, candidates: Float32Array, nearest: Float64Array) -> None:
        self._candidates, self._nearest = candidates, nearest
        self.initial: Float64Array = _distance(nearest)

    def current(self, candidate: int) -> float:
        """Return the candidate's distance to the nearest sight taken so far."""
        return float(_distance(self._nearest[candidate]))

    def add(self, candidate: int) -> None:
        """Let the candidate be near its neighbours."""
        np.maximum(self._nearest, self._candidates @ self._candidates[candidate], out=self._nearest)


@dataclass(frozen=True)
class RandomStrategy:
    """The baseline that every other strategy has to beat."""

    def utilities(self, problem: QueryProblem, rng: np.random.Generator) -> Utilities:
        """Return independent uniform utilities."""
        return FixedUtilities(rng.random(len(problem.candidates)))


@dataclass(frozen=True)
class UncertaintyStrategy:
    """Ask where the model is least sure."""

    kind: UncertaintyKind

    def utilities(self, problem: QueryProblem, rng: np.random.Generator) -> Utilities:  # noqa: ARG002 (the protocol's)
        """Return each candidate's uncertainty, raised by feedback against its prediction."""
        uncertainty = rate_uncertainty(self.kind, problem.probabilities, problem.uncertainty)
        return FixedUtilities(raise_by_evidence(uncertainty, problem.evidence)[problem.candidates])


@dataclass(frozen=True)
class UHerdingStrategy:
    """Cover the uncertain part of the pool: uncertainty-weighted generalised coverage (UHerding, arXiv:2412.20644)."""

    kind: UncertaintyKind = "margin"
    min_radius: float = 0.5
    max_radius: float = 1.0

    def utilities(self, problem: QueryProblem, rng: np.random.Generator) -> Utilities:  # noqa: ARG002 (the protocol's)
        """Return marginal gains of 1/W Σ_n w_n U(x_n) max_{s ∈ L or S} k(x_n, s), L the labelled set, W = Σ w_n."""
        radius = coverage_radius(problem.labelled, floor=self.min_radius, ceiling=self.max_radius)
        uncertainty = raise_by_evidence(
            rate_uncertainty(self.kind, problem.probabilities, problem.uncertainty), problem.evidence
        )
        weights = problem.weights * uncertainty / problem.weights.sum()
        kernel = rbf_kernel(problem.embeddings[problem.candidates], problem.embeddings, radius)
        covered: Float32Array = np.zeros(len(problem.embeddings), np.float32)
        if len(problem.labelled):
            distance = _distance(nearest_similarity(problem.embeddings, problem.labelled))
            covered = np.exp(-((distance / radius) ** 2)).astype(np.float32)
        return CoverageUtilities(kernel, weights.astype(np.float32), covered)


@dataclass(frozen=True)
class KCenterStrategy:
    """Ask for the sight farthest from everything taken (greedy k-center, arXiv:1708.00489)."""

    def utilities(self, problem: QueryProblem, rng: np.random.Generator) -> Utilities:  # noqa: ARG002 (the protocol's)
        """Return distances on the unit sphere to the nearest sight taken."""
        candidates = problem.embeddings[problem.candidates]
        return DistanceUtilities(candidates, nearest_similarity(candidates, problem.labelled))


STRATEGIES: dict[str, Callable[[SelectionPolicy], QueryStrategy]] = {
    "uherding": lambda policy: UHerdingStrategy(policy.uncertainty, policy.min_radius, policy.max_radius),
    "k_center": lambda _: KCenterStrategy(),
    "margin": lambda _: UncertaintyStrategy("margin"),
    "entropy": lambda _: UncertaintyStrategy("entropy"),
    "least_confidence": lambda _: UncertaintyStrategy("least_confidence"),
    "random": lambda _: RandomStrategy(),
}
BLIND = frozenset({"random"})
"""Strategies whose utilities are no benefit: weighing them against cost would only prefer what is cheap."""


def _distance(cosine: Float64Array) -> Float64Array:
    """Return the Euclidean distance between unit vectors of that cosine."""
    return np.asarray(np.sqrt(np.clip(2.0 - 2.0 * cosine, 0.0, None)))
