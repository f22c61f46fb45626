"""Query strategies behind one interface: some look at single sights, some at what the whole batch covers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from curate.selection.base import (
    Float32Array,
    Float64Array,
    SelectionPolicy,
)
from curate.selection.cells import CellIndex
from curate.selection.committee import BaldStrategy
from curate.selection.diversity import coverage_radius
from curate.selection.kernel import CoverageKernel, build_kernel
from curate.selection.query import FixedUtilities, QueryProblem, QueryStrategy, Utilities
from curate.selection.races import BadgeStrategy, PowerStrategy
from curate.selection.rows import blocks
from curate.selection.turns import ClusterMarginStrategy, TypiClustStrategy
from curate.selection.uncertainty import UncertaintyKind, raise_by_evidence, rate_uncertainty

CHUNK_CANDIDATES = 1024


class CoverageUtilities:
    """Marginal gains of the weighted coverage Σ_n w_n · max_{s ∈ S} k(x_n, s), which is submodular.

    `kernel` of C candidates and N points, which is taken over: its values are weighed in place; `weights` float32 [N],
    `covered` float32 [N] (by what is labelled already).
    """

    def __init__(self, kernel: CoverageKernel, weights: Float32Array, covered: Float32Array) -> None:
        self._starts, self._columns, self._values = kernel.starts, kernel.columns, kernel.values
        self._covered = covered * weights  # w · max(k - c, 0) = max(w · k - w · c, 0): one lookup a point, not two
        self.initial: Float64Array = np.zeros(len(self._starts) - 1)
        for block in blocks(len(self.initial), CHUNK_CANDIDATES):
            first, last = self._starts[block.start], self._starts[block.stop]
            here = self._columns[first:last]
            self._values[first:last] *= weights[here]
            gains = np.maximum(self._values[first:last] - self._covered[here], 0)
            self.initial[block] = np.add.reduceat(gains, self._starts[block] - first)

    def current(self, candidate: int) -> float:
        """Return the coverage that the candidate would still add."""
        row = slice(self._starts[candidate], self._starts[candidate + 1])
        return float(np.maximum(self._values[row] - self._covered[self._columns[row]], 0).sum())

    def add(self, candidate: int) -> None:
        """Cover what the candidate covers."""
        row = slice(self._starts[candidate], self._starts[candidate + 1])
        here = self._columns[row]
        self._covered[here] = np.maximum(self._covered[here], self._values[row])


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
        cells = problem.cells or CellIndex.whole(len(problem.embeddings))
        kernel = build_kernel(problem.embeddings, problem.candidates, cells, radius, max_entries=problem.max_entries)
        covered: Float32Array = np.zeros(len(problem.embeddings), np.float32)
        if len(problem.labelled):
            distance = _distance(problem.nearest_labelled)
            covered = np.exp(-((distance / radius) ** 2)).astype(np.float32)
        return CoverageUtilities(kernel, weights.astype(np.float32), covered)


@dataclass(frozen=True)
class KCenterStrategy:
    """Ask for the sight farthest from everything taken (greedy k-center, arXiv:1708.00489)."""

    def utilities(self, problem: QueryProblem, rng: np.random.Generator) -> Utilities:  # noqa: ARG002 (the protocol's)
        """Return distances on the unit sphere to the nearest sight taken."""
        candidates = problem.embeddings[problem.candidates]
        return DistanceUtilities(candidates, problem.nearest_labelled[problem.candidates])


STRATEGIES: dict[str, Callable[[SelectionPolicy], QueryStrategy]] = {
    "uherding": lambda policy: UHerdingStrategy(policy.uncertainty, policy.min_radius, policy.max_radius),
    "k_center": lambda _: KCenterStrategy(),
    "typiclust": lambda _: TypiClustStrategy(),
    "badge": lambda _: BadgeStrategy(),
    "cluster_margin": lambda _: ClusterMarginStrategy(),
    "bald": lambda _: BaldStrategy(),
    "power_margin": lambda _: PowerStrategy("margin"),
    "margin": lambda _: UncertaintyStrategy("margin"),
    "entropy": lambda _: UncertaintyStrategy("entropy"),
    "least_confidence": lambda _: UncertaintyStrategy("least_confidence"),
    "random": lambda _: RandomStrategy(),
}
BLIND = frozenset({"random"})
"""Strategies that look at nothing: a short list of the promising would bias them."""
UNPRICED = frozenset({"random", "badge", "power_margin", "cluster_margin", "typiclust"})
"""Strategies whose utilities say who comes first but not by how much: weighing them against cost would only prefer
what is cheap.
"""


def _distance(cosine: Float64Array) -> Float64Array:
    """Return the Euclidean distance between unit vectors of that cosine."""
    return np.asarray(np.sqrt(np.clip(2.0 - 2.0 * cosine, 0.0, None)))
