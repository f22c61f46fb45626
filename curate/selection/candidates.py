"""Who gets to compete: of more sights than can be weighed against each other, the most promising of several kinds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curate.selection.balance import trim_evenly
from curate.selection.base import BoolArray, Float32Array, Float64Array, IntArray
from curate.selection.cells import nearest_by_cell
from curate.selection.sights import Sights

PER_LABEL = 4
"""Candidates for each label of the budget."""
MAX_REFERENCES = 4096
"""At most so many dismissed sights look for their neighbours, the best proven first."""


@dataclass(frozen=True, eq=False)
class Source:
    """One reason to consider a sight: `scores` float64 [C], 0 where it does not apply, and its share of the places."""

    scores: Float64Array
    share: float


def gather_candidates(sources: Sequence[Source], devices: IntArray, limit: int) -> IntArray:
    """Return at most `limit` of C sights, ascending: each source's best, evenly over devices; all while they fit.

    What later sources leave open goes to the first.
    """
    chosen: BoolArray = np.zeros(len(devices), np.bool_)
    if len(chosen) <= limit:
        return np.arange(len(chosen))
    for source in sources:
        _choose(chosen, source.scores, (source.scores > 0) & ~chosen, devices, round(source.share * limit))
    _choose(chosen, sources[0].scores, ~chosen, devices, limit - int(chosen.sum()))
    return np.flatnonzero(chosen)[:limit]


def rate_candidates(
    sights: Sights,
    askable: IntArray,
    uncertainty: Float64Array,
    evidence: Float64Array,
    probabilities: Float32Array | Float64Array | None,
    label_counts: IntArray | None,
    rng: np.random.Generator,
) -> list[Source]:
    """Return why each of the C askable sights may be worth asking.

    `askable` int64 [C] are sights; `uncertainty` float64 [C]; `evidence` float64 [S] and `probabilities` [S, K] are of
    all sights, `label_counts` int64 [K] of the labels so far, None where they are not known.
    """
    rarity: Float64Array = np.zeros(len(askable))
    if probabilities is not None:
        rarity = _rarity(np.asarray(probabilities, np.float64), label_counts)[askable]
    return [
        Source(uncertainty + 1e-9, 0.5),
        Source(evidence[askable], 0.1),
        Source(_beside_dismissed(sights, evidence)[askable], 0.1),
        Source(rarity, 0.1),
        Source(rng.random(len(askable)) + 1e-9, 0.2),
    ]


def _choose(chosen: BoolArray, scores: Float64Array, among: BoolArray, devices: IntArray, places: int) -> None:
    rows = np.flatnonzero(among)
    chosen[rows[trim_evenly(scores[rows], devices[rows], places)]] = True


def _beside_dismissed(sights: Sights, evidence: Float64Array) -> Float64Array:
    """Return each sight's cosine to the nearest dismissed sight of its neighbourhood, at least 0: float64 [S]."""
    dismissed = np.flatnonzero(evidence > 0)
    if not len(dismissed):
        return np.zeros(len(evidence))
    strongest = np.sort(dismissed[np.argsort(-evidence[dismissed], kind="stable")[:MAX_REFERENCES]])
    faces = sights.unit.take(sights.first_row)
    near = nearest_by_cell(faces, sights.index, faces[strongest], sights.cells)
    return np.clip(near, 0.0, 1.0)


def _rarity(probabilities: Float64Array, label_counts: IntArray | None) -> Float64Array:
    """Return how much each sight may show a class of few labels, float64 [S] in (0, 1]: Σ_k p_k / (1 + labels of k).

    Where labels have no classes, predictions are counted instead.
    """
    counts = label_counts
    if counts is None:
        counts = np.bincount(probabilities.argmax(axis=1), minlength=probabilities.shape[1])
    return np.asarray(probabilities @ (1.0 / (1.0 + counts[: probabilities.shape[1]])))
