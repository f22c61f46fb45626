"""Strategies that let clusters take turns, one sight of each and then another: Cluster-Margin and TypiClust."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from curate.selection.base import Float32Array, Float64Array, IntArray
from curate.selection.cells import CellIndex, Cells, find_cells
from curate.selection.query import QueryProblem, Utilities
from curate.selection.rows import Rows, blocks
from curate.selection.uncertainty import raise_by_evidence, rate_uncertainty

BLOCK_COSINES = 2**22
MAX_COMPARED = 16_384


class TurnUtilities:
    """A pick puts the rest of its cluster one turn back; within a turn candidates come in a fixed order.

    `cluster` int64 [C] numbers each candidate's cluster from 0; `order` int64 [C] names the candidates, first to last;
    `taken` float64 [clusters] are the turns that each cluster has had.
    """

    def __init__(self, cluster: IntArray, order: IntArray, taken: Float64Array) -> None:
        self._cluster, self._taken = cluster, np.array(taken, np.float64)
        self._standing = np.empty(len(order))
        self._standing[order] = 1.0 - np.arange(len(order)) / max(1, len(order))
        self.initial: Float64Array = self._standing - self._taken[cluster]

    def current(self, candidate: int) -> float:
        """Return the candidate's place in its turn, in (0, 1], less the turns that its cluster has had."""
        return float(self._standing[candidate] - self._taken[self._cluster[candidate]])

    def add(self, candidate: int) -> None:
        """Take the turn of the candidate's cluster."""
        self._taken[self._cluster[candidate]] += 1.0


@dataclass(frozen=True)
class ClusterMarginStrategy:
    """Of the smallest margins ask one of each cluster, smallest cluster first (Cluster-Margin, arXiv:2107.14263).

    `margin_factor` times the batch are the small margins. They are clustered by average linkage; the paper cuts the
    tree at a distance that somebody has to find, here it is cut into as many clusters as the batch has places. In a
    large pool linkage goes cell by cell, which bounds its memory to that of a coverage kernel. Beyond the small margins
    candidates come by their margin.
    """

    margin_factor: int = 10

    def utilities(self, problem: QueryProblem, rng: np.random.Generator) -> Utilities:
        """Return turns of the clusters, within each at random."""
        said = rate_uncertainty("margin", problem.probabilities, problem.uncertainty)
        unsure = raise_by_evidence(said, problem.evidence)[problem.candidates]
        by_margin = np.lexsort((rng.permutation(len(unsure)), -unsure))
        small, rest = np.split(by_margin, [min(len(unsure), self.margin_factor * problem.batch)])
        cluster = np.arange(len(unsure))
        cluster[small] = link_by_cell(problem, problem.candidates[small])
        first_free = cluster[small].max(initial=-1) + 1
        cluster[rest] = first_free + np.arange(len(rest))  # each by itself, after every turn of the others
        size = np.bincount(cluster[small])
        turn = np.lexsort((rng.permutation(len(small)), cluster[small], size[cluster[small]]))
        taken = np.concatenate([np.zeros(first_free), np.full(len(rest), float(len(small)))])
        return TurnUtilities(cluster, np.concatenate([small[turn], rest]), taken)


@dataclass(frozen=True)
class TypiClustStrategy:
    """Ask for the most typical sight of each large cluster that has no label yet (TypiClust, arXiv:2202.02794).

    There are as many clusters as labels and places in the batch together, at most `max_clusters`; beyond, the clusters
    with the fewest labels are asked again. Typical is who is near to its `neighbours` nearest in the cluster. It needs
    no probabilities, and is made for the first few labels. k-means runs over the sights, in a large pool over a sample
    of them, and labels join its clusters. A cluster is as large as the weights of its sights.
    """

    neighbours: int = 20
    max_clusters: int = 500

    def utilities(self, problem: QueryProblem, rng: np.random.Generator) -> Utilities:
        """Return turns of the clusters, largest first, within each the most typical first."""
        rows = problem.embeddings
        wanted = min(len(problem.labelled) + problem.batch, self.max_clusters, len(rows))
        cells = find_cells(rows, wanted, rng)
        of = _place(rows, cells)
        size = np.bincount(of, weights=problem.weights, minlength=len(cells.centroids))
        labels = np.zeros(len(size))
        if len(problem.labelled):
            labels += np.bincount(_place(problem.labelled, cells), minlength=len(size))
        spread = neighbour_distance(rows, CellIndex.build(of, cells), problem.candidates, self.neighbours)
        cluster = of[problem.candidates]
        return TurnUtilities(cluster, np.lexsort((spread, cluster, -size[cluster])), labels)


def link(unit: Float32Array, wanted: int) -> IntArray:
    """Cluster unit rows by average linkage of cosine distances into at most `wanted` clusters, int64 [N] from 0.

    Memory: about 10 N² bytes.
    """
    if len(unit) < 2 or wanted < 2:
        return np.zeros(len(unit), np.int64)
    tree = linkage(_cosine_distances(unit), "average")
    return np.asarray(fcluster(tree, min(wanted, len(unit)), "maxclust"), np.int64) - 1


def _cosine_distances(unit: Float32Array) -> Float32Array:
    """Return 1 - cosine of each pair of rows, in the order that scipy's linkage wants: float32 [N (N - 1) / 2]."""
    cosines = unit @ unit.T
    return np.asarray(squareform(np.clip(1.0 - cosines, 0.0, None), checks=False), np.float32)


def link_by_cell(problem: QueryProblem, rows: IntArray) -> IntArray:
    """Cluster the given sights into about `problem.batch` clusters, each within one cell: int64 from 0."""
    room = max(1, isqrt(problem.max_entries))
    cluster = np.empty(len(rows), np.int64)
    index, first = problem.cells or CellIndex.whole(len(problem.embeddings)), 0
    for _, members in _by_cell(index, rows):
        for block in blocks(len(members), room):
            here = members[block]
            share = round(problem.batch * len(here) / len(rows))
            cluster[here] = first + link(problem.embeddings[rows[here]], max(1, share))
            first = int(cluster[here].max()) + 1
    return cluster


def _place(rows: Rows, cells: Cells) -> IntArray:
    """Return the cell of each row, int64 [N]."""
    of = np.empty(len(rows), np.int64)
    for block in blocks(len(rows)):
        of[block] = cells.place(rows[block])
    return of


def neighbour_distance(
    rows: Rows, index: CellIndex, candidates: IntArray, neighbours: int, *, most: int = MAX_COMPARED
) -> Float64Array:
    """Return each candidate's mean distance to its nearest others in its cluster, float64 [C]: 1 / typicality.

    In a cluster of fewer all count, and each sight itself as far away: that changes nothing in their order. Of a larger
    cluster than `most` so many are compared with, evenly spaced.
    """
    spread = np.empty(len(candidates))
    for cell, members in _by_cell(index, candidates):
        around = index.members(cell)
        compared = around[:: -(-len(around) // most)]
        beside = rows[compared]
        farther = max(0, len(beside) - neighbours)
        for block in blocks(len(members), max(1, BLOCK_COSINES // len(beside))):
            here = candidates[members[block]]
            cosines = rows[here] @ beside.T
            cosines[here[:, None] == compared] = -1.0
            nearest = np.partition(cosines, farther, axis=1)[:, farther:]
            spread[members[block]] = np.sqrt(np.clip(2.0 - 2.0 * nearest, 0.0, None)).mean(axis=1)
    return spread


def _by_cell(index: CellIndex, rows: IntArray) -> Iterator[tuple[int, IntArray]]:
    """Yield each cell that holds any of the rows, with the places of these among `rows`."""
    if not len(rows):
        return
    of = index.of[rows]
    order = np.argsort(of, kind="stable")
    cells, starts = np.unique(of[order], return_index=True)
    yield from zip(cells.tolist(), np.split(order, starts[1:]), strict=True)
