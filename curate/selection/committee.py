"""BALD: several models answer, and what they disagree about while each is sure is worth asking."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curate.errors import SelectionError
from curate.selection.base import Float32Array, Float64Array
from curate.selection.query import FixedUtilities, QueryProblem, Utilities
from curate.selection.rows import blocks
from curate.selection.uncertainty import raise_by_evidence

CHUNK_ROWS = 1024


@dataclass(frozen=True)
class BaldStrategy:
    """Ask where the models' answers tell most about which model is right (BALD: arXiv:1112.5745, arXiv:1703.02910)."""

    def utilities(self, problem: QueryProblem, rng: np.random.Generator) -> Utilities:  # noqa: ARG002 (the protocol's)
        """Return each candidate's mutual information, raised by feedback against its prediction.

        Raises:
            SelectionError: the problem does not hold the answers of at least two models.
        """
        if problem.members is None or problem.members.shape[1] < 2:
            raise SelectionError(
                "bald needs the answers of at least two models, or of one with dropout left on",
                hint="supply the pool's `members`, float32 [captures, models, classes], or choose another"
                " selection.strategy",
            )
        return FixedUtilities(
            raise_by_evidence(mutual_information(problem.members), problem.evidence[problem.candidates])
        )


def mutual_information(members: Float32Array) -> Float64Array:
    """Return H(mean of the members) - mean of H(member) over its maximum log min(T, K), float64 [N] in [0, 1].

    `members` float32 [N, T, K] are the distributions over K classes of T models (arXiv:1703.02910, section 4).
    """
    count, models, classes = members.shape
    found = np.zeros(count)
    most = np.log(min(models, classes))
    for block in blocks(count if most > 0 else 0, CHUNK_ROWS):
        p = members[block].astype(np.float64)
        found[block] = (_entropy(p.mean(axis=1)) - _entropy(p).mean(axis=1)) / most
    return np.clip(found, 0.0, 1.0)


def _entropy(p: Float64Array) -> Float64Array:
    """Return the Shannon entropy over the last axis."""
    return np.asarray(-(p * np.log(np.clip(p, 1e-12, 1.0))).sum(axis=-1))
