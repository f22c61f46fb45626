"""Who covers whom: a Gaussian kernel between candidates and sights that keeps each candidate's nearest sights only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from curate.selection.base import Float32Array, IntArray
from curate.selection.cells import CellIndex
from curate.selection.diversity import CHUNK_ROWS
from curate.selection.rows import Rows


@dataclass(frozen=True, eq=False)
class CoverageKernel:
    """Compressed sparse rows: candidate c covers `columns[starts[c]:starts[c + 1]]` as much as `values` there say.

    `starts` int64 [C + 1], `columns` int32 [E], `values` float32 [E] in [0, 1]. No row is empty.
    """

    starts: IntArray
    columns: NDArray[np.int32]
    values: Float32Array

    @classmethod
    def dense(cls, values: Float32Array) -> Self:
        """Return the kernel of a full matrix, float32 [C, N]."""
        rows, width = values.shape
        columns = np.tile(np.arange(width, dtype=np.int32), rows)
        return cls(np.arange(rows + 1) * width, columns, np.array(values, np.float32).ravel())


def build_kernel(
    points: Rows, candidates: IntArray, index: CellIndex, radius: float, *, max_entries: int
) -> CoverageKernel:
    """Return exp(-‖x - y‖² / radius²) between candidates and the points of their own and the nearest cells.

    `candidates` int64 [C] are numbers of points, `index` says where the N points lie. Each candidate keeps its most
    similar points, so many that the kernel has about `max_entries` numbers; with one cell and room for all it is dense.
    """
    room = max(1, max_entries // max(1, len(candidates)))
    width = np.array([sum(len(index.members(n)) for n in near.tolist()) for near in index.near], np.int64)
    starts = np.concatenate([[0], np.cumsum(np.minimum(width, room)[index.of[candidates]])])
    columns = np.empty(starts[-1], np.int32)
    values = np.empty(starts[-1], np.float32)
    turn = np.argsort(index.of[candidates], kind="stable")
    cells, begins = np.unique(index.of[candidates][turn], return_index=True)
    for cell, here in zip(cells.tolist(), np.split(turn, begins[1:]), strict=True):
        around = index.around(cell)
        beside = points[around]
        for start in range(0, len(here), CHUNK_ROWS):
            rows = here[start : start + CHUNK_ROWS]
            kept, cosines = _most_similar(points[candidates[rows]] @ beside.T, room)
            places = starts[rows][:, None] + np.arange(cosines.shape[1])
            columns[places] = around[kept]
            values[places] = _gaussian(cosines, radius)
    return CoverageKernel(starts, columns, values)


def rbf_kernel(rows: Float32Array, columns: Float32Array, radius: float) -> Float32Array:
    """Return exp(-‖x - y‖² / radius²) between unit rows, float32 [R, C], using ‖x - y‖² = 2 - 2 x·y."""
    return _gaussian(rows @ columns.T, radius)


def _most_similar(cosines: Float32Array, room: int) -> tuple[IntArray, Float32Array]:
    """Return the columns of each row's `room` highest cosines and these, [R, min(C, room)]."""
    rows, width = cosines.shape
    if width <= room:
        return np.broadcast_to(np.arange(width), (rows, width)), cosines
    kept = np.argpartition(cosines, width - room, axis=1)[:, width - room :]
    return kept, np.take_along_axis(cosines, kept, axis=1)


def _gaussian(cosines: Float32Array, radius: float) -> Float32Array:
    """Turn cosines into the kernel, in place."""
    cosines -= 1
    cosines *= np.float32(2.0 / radius**2)
    np.minimum(cosines, 0, out=cosines)
    return np.exp(cosines, out=cosines)
