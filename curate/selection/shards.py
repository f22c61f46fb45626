"""Which rows belong to which shard: neighbourhoods of the embedding space of about one size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curate.selection.base import EmbeddingArray, Float32Array, Float64Array, IntArray
from curate.selection.cells import ONE_CELL, Cells, find_cells
from curate.selection.rows import FingerprintArray, UnitRows, scan_rows, unit_rows

CELLS_PER_SHARD = 16
SKETCH_ROWS = 32_768


@dataclass(frozen=True, eq=False)
class Sketch:
    """A sample of a part: `count` sound rows in all; `rows` float32 [n, D] of length 1, `fingerprints` uint64 [n]."""

    count: int
    rows: Float32Array
    fingerprints: FingerprintArray


@dataclass(frozen=True, eq=False)
class ShardMap:
    """Where rows go: each cell of `cells` belongs to the shard `of_cell` int64 [K]."""

    cells: Cells
    of_cell: IntArray

    @property
    def count(self) -> int:
        """How many shards there are."""
        return int(self.of_cell.max()) + 1

    def place(self, unit: Float32Array) -> IntArray:
        """Return the shard of each unit row, int64."""
        return np.asarray(self.of_cell[self.cells.place(unit)])


def sketch_rows(embeddings: EmbeddingArray, limit: int) -> Sketch:
    """Draw at most `limit` distinct rows by their fingerprints: the same rows in whatever order they are read."""
    scan = scan_rows(embeddings)
    sound = np.flatnonzero(scan.finite & scan.directed)
    fingerprints, first = np.unique(scan.fingerprint[sound], return_index=True)
    # In place of the fingerprints' own order, which follows the first numbers of a row.
    drawn = np.argsort(fingerprints * np.uint64(0x9E3779B97F4A7C15), kind="stable")[:limit]
    return Sketch(len(sound), unit_rows(embeddings[sound[first[drawn]]]), fingerprints[drawn])


def map_shards(sketches: list[Sketch], rows_per_shard: int, rng: np.random.Generator) -> ShardMap:
    """Cut the space that the sketches show into shards of about so many rows; there has to be a row."""
    total = sum(sketch.count for sketch in sketches)
    shards = -(-total // rows_per_shard)
    if shards <= 1:
        return ShardMap(ONE_CELL, np.zeros(1, np.int64))
    fingerprints = np.concatenate([sketch.fingerprints for sketch in sketches])
    order = np.argsort(fingerprints, kind="stable")
    rows = np.concatenate([sketch.rows for sketch in sketches])[order]
    # A row of a part that was sketched more thinly stands for more rows.
    stands_for = np.concatenate([np.full(len(each.rows), each.count / max(1, len(each.rows))) for each in sketches])
    cells = find_cells(UnitRows(rows), CELLS_PER_SHARD * shards, rng)
    held = np.bincount(cells.place(rows), weights=stands_for[order], minlength=len(cells.centroids))
    return ShardMap(cells, pack_cells(cells.centroids, held.astype(np.float64), rows_per_shard))


def pack_cells(centroids: Float32Array, held: Float64Array, limit: float) -> IntArray:
    """Return the shard of each of K cells, int64: neighbours together, at most `limit` rows unless one cell has more.

    `held` float64 [K] is how many rows each cell holds. A set of cells that is too large is halved across its longest
    axis (the first principal component), as a k-d tree would do, until it is not.
    """
    shard_of = np.zeros(len(centroids), np.int64)
    count = 0
    waiting: list[IntArray] = [np.arange(len(centroids))]
    while waiting:
        cells = waiting.pop()
        if len(cells) == 1 or held[cells].sum() <= limit:
            shard_of[cells] = count
            count += 1
            continue
        order = cells[np.argsort(_along_longest_axis(centroids[cells]), kind="stable")]
        filled = np.cumsum(held[order])
        cut = int(np.clip(np.searchsorted(filled, filled[-1] / 2) + 1, 1, len(order) - 1))
        waiting += [order[cut:], order[:cut]]
    return shard_of


def _along_longest_axis(points: Float32Array) -> Float64Array:
    centred = points.astype(np.float64) - points.mean(axis=0, dtype=np.float64)
    axis = np.linalg.svd(centred, full_matrices=False)[2][0]
    return np.asarray(centred @ (axis * np.sign(axis[np.abs(axis).argmax()])))
