"""What a query strategy sees and what it gives: the interface behind which all strategies stand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from curate.selection.base import Float32Array, Float64Array, IntArray
from curate.selection.cells import CellIndex
from curate.selection.diversity import nearest_similarity
from curate.selection.rows import Rows


@dataclass(frozen=True, eq=False)
class QueryProblem:
    """What a strategy sees: N distinct sights, of which `candidates` may be asked.

    `embeddings` [N, D] and `labelled` float32 [M, D] have unit rows; `probabilities` float32 [N, K] or None;
    `uncertainty` float64 [N] in [0, 1] or None stands in for what would be computed from the probabilities;
    `weights` float64 [N] is each sight's tempered multiplicity; `evidence` float64 [N] in [0, 1] is feedback that the
    prediction is wrong; `candidates` int64 [C] indexes the N rows, and about `batch` of them will be picked. `cells`
    says which sights are near enough to be compared (None: all are); `nearest` float64 [N] is each sight's cosine to
    the nearest of `labelled`, None where that is to be computed; a kernel over the sights holds about `max_entries`
    numbers. `members` float32 [C, T, K] or None is what each of T models says of the candidates.
    """

    embeddings: Rows
    probabilities: Float32Array | None
    weights: Float64Array
    evidence: Float64Array
    candidates: IntArray
    labelled: Float32Array = field(default_factory=lambda: np.empty((0, 0), np.float32))
    uncertainty: Float64Array | None = None
    cells: CellIndex | None = None
    nearest: Float64Array | None = None
    max_entries: int = 4000**2
    batch: int = 1
    members: Float32Array | None = None

    @property
    def nearest_labelled(self) -> Float64Array:
        """Each sight's cosine to the nearest labelled one, float64 [N]; -1 where none is near."""
        if self.nearest is not None:
            return self.nearest
        return nearest_similarity(self.embeddings[slice(None)], self.labelled)


@runtime_checkable
class Utilities(Protocol):
    """Utilities of C candidates that can only fall while a batch grows (higher = ask sooner).

    That one property lets a single lazy greedy engine serve strategies that look at points and at sets.
    """

    @property
    def initial(self) -> Float64Array:
        """Utilities float64 [C] before anything is picked; finite."""

    def current(self, candidate: int) -> float:
        """Utility of one candidate given what was added; never above an earlier value."""

    def add(self, candidate: int) -> None:
        """Take the candidate into the batch."""


@dataclass(frozen=True)
class FixedUtilities:
    """Utilities that the rest of the batch does not change."""

    initial: Float64Array

    def current(self, candidate: int) -> float:
        """Return the candidate's utility."""
        return float(self.initial[candidate])

    def add(self, candidate: int) -> None:
        """Do nothing: points do not influence each other."""


@runtime_checkable
class QueryStrategy(Protocol):
    """A rule that says which candidates are worth a person's minute."""

    def utilities(self, problem: QueryProblem, rng: np.random.Generator) -> Utilities:
        """Open the utilities of a problem's candidates."""
