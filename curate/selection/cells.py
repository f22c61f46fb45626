"""Cells of the embedding space: what is compared with what when a pool is too large to compare all with all.

Spherical k-means on a sample (Dhillon & Modha 2001); every row lies in the cell of its most similar centroid. A pool
that fits one cell is compared densely.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from curate.errors import SelectionError
from curate.selection.base import Float32Array, Float64Array, IntArray
from curate.selection.diversity import find_leaders, nearest_similarity
from curate.selection.rows import FingerprintArray, Rows, blocks, unit_rows

CELL_ROWS = 1000
"""A cell holds about so many rows, or √N where that is more: then assigning and comparing cost N^1.5 alike."""
NEAR_CELLS = 4
"""What a cell is compared with: itself and its nearest others."""
REFERENCE_CELLS = 16
"""How many cells a label is compared with."""
SAMPLE_ROWS = 65_536
SAMPLE_PER_CELL = 64
ITERATIONS = 8
SAME_CELL = 0.98
"""Centroids this similar are one cell: k-means would cut a cloud of copies by its noise."""


@dataclass(frozen=True, eq=False)
class Cells:
    """Centroids that outlive a round: float32 [K, D] of length 1.

    `seen` uint64 [M], ascending, are fingerprints of the rows that were assigned last, `seen_cell` int32 [M] their
    cells: a later round computes only new rows.
    """

    centroids: Float32Array
    seen: FingerprintArray = field(default_factory=lambda: np.empty(0, np.uint64))
    seen_cell: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))

    @property
    def version(self) -> str:
        """SHA-256 (hex) of the centroids: two selections with one version speak of the same cells."""
        return hashlib.sha256(np.ascontiguousarray(self.centroids, "<f4").tobytes()).hexdigest()

    @cached_property
    def near(self) -> IntArray:
        """Each cell's nearest ones, itself first: int64 [K, P]."""
        cosines = self.centroids @ self.centroids.T
        np.fill_diagonal(cosines, 2.0)
        return np.argsort(-cosines, axis=1, kind="stable")[:, :NEAR_CELLS]

    def fits(self, wanted: int, dim: int) -> bool:
        """Whether these cells suit a pool that would get `wanted` cells of `dim` numbers: within a factor of 2."""
        return wanted > 1 and self.centroids.shape[1] == dim and wanted / 2 <= len(self.centroids) <= wanted * 2

    def assign(self, rows: Rows, fingerprints: FingerprintArray) -> tuple[IntArray, Self]:
        """Return each row's cell, int64 [N], and the cells that remember these rows and no others."""
        if len(self.centroids) == 1:
            return np.zeros(len(rows), np.int64), self
        place = np.searchsorted(self.seen, fingerprints)
        known = np.zeros(len(rows), np.bool_)
        inside = place < len(self.seen)
        known[inside] = self.seen[place[inside]] == fingerprints[inside]
        cell = np.empty(len(rows), np.int64)
        cell[known] = self.seen_cell[place[known]]
        fresh = np.flatnonzero(~known)
        for block in blocks(len(fresh)):
            cell[fresh[block]] = self.place(rows[fresh[block]])
        seen, where = np.unique(fingerprints, return_index=True)
        return cell, type(self)(self.centroids, seen, cell[where].astype(np.int32))

    def place(self, unit: Float32Array) -> IntArray:
        """Return the cell of each unit row, int64."""
        if len(self.centroids) == 1:
            return np.zeros(len(unit), np.int64)
        return np.asarray((unit @ self.centroids.T).argmax(axis=1))

    def most_similar(self, unit: Float32Array, count: int) -> IntArray:
        """Return the cells most like each of M unit rows, int64 [M, min(count, K)], in no order."""
        width = min(count, len(self.centroids))
        if width == len(self.centroids):
            return np.tile(np.arange(width), (len(unit), 1))
        found = np.empty((len(unit), width), np.int64)
        for block in blocks(len(unit)):
            cosines = unit[block] @ self.centroids.T
            found[block] = np.argpartition(cosines, len(self.centroids) - width, axis=1)[:, -width:]
        return found

    def to_bytes(self) -> bytes:
        """Return the cells as an npz archive."""
        out = io.BytesIO()
        np.savez(out, centroids=self.centroids, seen=self.seen, seen_cell=self.seen_cell)
        return out.getvalue()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            SelectionError: it is something else.
        """
        try:
            with np.load(io.BytesIO(raw), allow_pickle=False) as found:
                cells = cls(found["centroids"], found["seen"], found["seen_cell"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as exc:
            raise SelectionError(f"the stored cells cannot be read: {exc}") from exc
        if cells.centroids.ndim != 2 or cells.seen.shape != cells.seen_cell.shape or not len(cells.centroids):
            raise SelectionError("the stored cells do not fit together")
        if len(cells.seen) and not 0 <= int(cells.seen_cell.min()) <= int(cells.seen_cell.max()) < len(cells.centroids):
            raise SelectionError("the stored cells name a cell that there is not")
        return cells


ONE_CELL = Cells(np.ones((1, 1), np.float32))
"""A pool that is compared densely has no centroids worth the name."""


@dataclass(frozen=True, eq=False)
class CellIndex:
    """Who lies in which cell: `of` int64 [N]; `near` int64 [K, P], each cell's nearest ones, itself first.

    `order` int64 [N] are the rows cell by cell, ascending within each; cell c holds order[bounds[c]:bounds[c + 1]].
    """

    of: IntArray
    near: IntArray
    order: IntArray
    bounds: IntArray

    @classmethod
    def build(cls, of: IntArray, cells: Cells) -> Self:
        """Index N rows by their cells."""
        bounds = np.concatenate([[0], np.cumsum(np.bincount(of, minlength=len(cells.centroids)))])
        return cls(of, cells.near, np.argsort(of, kind="stable"), bounds)

    @classmethod
    def whole(cls, count: int) -> Self:
        """Index `count` rows as one cell."""
        return cls.build(np.zeros(count, np.int64), ONE_CELL)

    @property
    def count(self) -> int:
        """How many cells there are."""
        return len(self.near)

    def members(self, cell: int) -> IntArray:
        """Return the rows of a cell, ascending."""
        return self.order[self.bounds[cell] : self.bounds[cell + 1]]

    def around(self, cell: int) -> IntArray:
        """Return the rows of a cell and of its nearest ones."""
        return np.concatenate([self.members(each) for each in self.near[cell].tolist()])


def wanted_cells(count: int, dense_rows: int) -> int:
    """Return how many cells a pool of `count` rows gets: one while all fit a dense comparison."""
    return 1 if count <= dense_rows else int(np.ceil(count / max(CELL_ROWS, np.sqrt(count))))


def find_cells(rows: Rows, wanted: int, rng: np.random.Generator) -> Cells:
    """Find at most `wanted` cells by spherical k-means on at most 65,536 of the rows."""
    if wanted == 1:
        return ONE_CELL
    size = min(len(rows), SAMPLE_ROWS, SAMPLE_PER_CELL * wanted)
    drawn = rng.permutation(len(rows))[:size]
    data = rows[np.sort(drawn)]
    centroids = rows[np.sort(drawn[: min(wanted, size)])]
    for _ in range(ITERATIONS):
        label = np.concatenate([Cells(centroids).place(data[block]) for block in blocks(size)])
        order = np.argsort(label, kind="stable")
        present, starts = np.unique(label[order], return_index=True)
        centroids[present] = unit_rows(np.add.reduceat(data[order], starts, axis=0))
    return Cells(centroids[np.unique(find_leaders(centroids, SAME_CELL))])


def nearest_by_cell(rows: Rows, index: CellIndex, references: Float32Array, cells: Cells) -> Float64Array:
    """Return each row's highest cosine to the references that look into its cell, float64 [N]; -1 if none does.

    `references` float32 [M, D] have length 1; each looks into the 16 cells whose centroids are most like it. So what is
    very near is found, wherever the border runs; what is far may be missed and is then underrated.
    """
    best = np.full(len(rows), -1.0)
    if not len(references):
        return best
    looks_into = cells.most_similar(references, REFERENCE_CELLS)
    order = np.argsort(looks_into.ravel(), kind="stable")
    bounds = np.concatenate([[0], np.cumsum(np.bincount(looks_into.ravel(), minlength=index.count))])
    for cell in range(index.count):
        looking = order[bounds[cell] : bounds[cell + 1]] // looks_into.shape[1]
        members = index.members(cell)
        for block in blocks(len(members) if len(looking) else 0):
            best[members[block]] = nearest_similarity(rows[members[block]], references[looking])
    return best
