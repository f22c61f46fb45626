"""Which captures show the same sight: leader clustering within bursts, across borders, then within cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from curate.errors import SelectionError
from curate.selection.base import EmbeddingArray, Float32Array, Float64Array, IntArray
from curate.selection.cells import CellIndex
from curate.selection.diversity import MAX_COSINE, Moments, find_leaders
from curate.selection.rows import BLOCK_ROWS, Rows, UnitRows, blocks, number_names

STACKED_ROWS = 128
"""Bursts up to this long are compared many at a time."""
MAX_BURST_ROWS = 16_384
"""A longer burst is cut into runs of so many rows, so that one endless burst cannot make the cost quadratic."""
MAX_STEPS_BACK = 64
"""A sight is looked for among so many sights before it, so that a stopped clock cannot make the cost quadratic."""


def near_duplicate_clusters(
    embeddings: EmbeddingArray, groups: Sequence[str], threshold: float, *, group_threshold: float | None = None
) -> IntArray:
    """Return a cluster number for each row, int64 [N], numbered from 0 in order of first appearance.

    Two steps of leader clustering on cosine similarity: first within each group at `group_threshold` (default: the same
    threshold), then between the group leaders at `threshold`. Every member is close to a leader, so similarity does not
    chain a whole class into one cluster as single linkage would. Rows are visited in the order given: sort them by id
    for a result that does not depend on how they were read. All rows are one cell here: the cost of the second step is
    leaders times rows. Memory: one block of 1,024 rows by all leaders.
    Raises `SelectionError` when lengths differ or a number is not finite.
    """
    if len(groups) != len(embeddings):
        raise SelectionError(f"{len(embeddings)} embeddings but {len(groups)} groups")
    if not np.isfinite(embeddings).all():
        raise SelectionError("near-duplicates cannot be found among embeddings that are not finite")
    unit = UnitRows(embeddings)
    leader_of = burst_leaders(unit, number_names(groups), threshold if group_threshold is None else group_threshold)
    tops = np.unique(leader_of)
    return number_sights(leader_of, tops, find_leaders(unit.take(tops), threshold))


def burst_leaders(unit: Rows, groups: IntArray, threshold: float) -> IntArray:
    """Return the row that leads each row within its group, int64 [N]; `groups` int64 [N] numbers them."""
    leader_of = np.arange(len(unit))
    cut = min(threshold, MAX_COSINE)
    for stack in _stacks(groups):
        bursts, size = stack.shape
        if size > STACKED_ROWS:
            for rows in stack:
                leader_of[rows] = rows[find_leaders(_Part(unit, rows), threshold)]
            continue
        found = unit[stack.ravel()].reshape(bursts, size, -1)
        leading = _lead_stack(found @ found.transpose(0, 2, 1), cut)
        leader_of[stack] = np.take_along_axis(stack, leading, axis=1)
    return leader_of


def border_leaders(seen: Moments, groups: IntArray, *, gap_s: float, threshold: float) -> IntArray:
    """Return which row leads each row once sights that a group's border cut in two are one again: int64 [T].

    `groups` int64 [T]. Two rows of one camera and of different groups, at most `gap_s` apart and at least `threshold`
    similar, show one sight, and the earlier leads. Who is led leads nobody: look-alikes do not become a chain.
    """
    leader = np.arange(len(groups))
    later, earlier = _pairs_across(seen, groups, gap_s)
    cosines: Float64Array = np.empty(len(later))
    for block in blocks(len(later)):
        cosines[block] = np.einsum("ij,ij->i", seen.unit[later[block]], seen.unit[earlier[block]])
    alike = cosines >= min(threshold, MAX_COSINE)
    later, earlier, cosines = later[alike], earlier[alike], cosines[alike]
    # In order of time, the most similar first: whoever may lead a row has been decided on before it.
    for place in np.lexsort((-cosines, later, seen.captured_s[later])).tolist():
        row, lead = later[place], earlier[place]
        if leader[row] == row and leader[lead] == lead:
            leader[row] = lead
    return leader


def _pairs_across(seen: Moments, groups: IntArray, gap_s: float) -> tuple[IntArray, IntArray]:
    """Return the pairs (later, earlier) of rows of one camera and different groups, at most `gap_s` apart."""
    camera, seconds = number_names(seen.cameras), seen.captured_s
    order = np.lexsort((seconds, camera))
    found = [(order[:0], order[:0])]
    for steps in range(1, min(MAX_STEPS_BACK, len(order) - 1) + 1):
        later, earlier = order[steps:], order[:-steps]
        near = (camera[later] == camera[earlier]) & (seconds[later] - seconds[earlier] <= gap_s)
        if not near.any():
            break
        across = near & (groups[later] != groups[earlier])
        found.append((later[across], earlier[across]))
    all_later, all_earlier = zip(*found, strict=True)
    return np.concatenate(all_later), np.concatenate(all_earlier)


def cell_leaders(unit: Rows, rows: IntArray, index: CellIndex, threshold: float) -> IntArray:
    """Return which of T rows leads each of them within its cell: int64 [T] of positions in `rows`, as in `index`."""
    leading = np.arange(len(rows))
    for cell in range(index.count):
        members = index.members(cell)
        if len(members) > 1:
            leading[members] = members[find_leaders(_Part(unit, rows[members]), threshold)]
    return leading


def number_sights(leader_of: IntArray, tops: IntArray, leading: IntArray) -> IntArray:
    """Return each row's sight, int64 [N], numbered in order of first appearance.

    `leader_of` int64 [N] is each row's leader within its burst; `tops` int64 [T] are those leaders, ascending;
    `leading` int64 [T] says which of them leads each.
    """
    final = leading[np.searchsorted(tops, leader_of)]
    _, first, label = np.unique(final, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return np.asarray(rank[label], np.int64)


class _Part:
    """Some rows of a larger view."""

    def __init__(self, unit: Rows, index: IntArray) -> None:
        self._unit, self._index = unit, index

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, rows: slice | IntArray, /) -> Float32Array:
        return self._unit[self._index[rows]]


def _stacks(groups: IntArray) -> Iterator[IntArray]:
    """Yield the row numbers of bursts of one length together, int64 [G, length]; rows that are alone not at all."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    place = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    starts = np.flatnonzero(place % MAX_BURST_ROWS == 0)
    lengths = np.diff(starts, append=len(order))
    for length in np.unique(lengths[lengths > 1]).tolist():
        begins = starts[lengths == length]
        for block in blocks(len(begins), max(1, BLOCK_ROWS // length)):
            yield order[begins[block, None] + np.arange(length)]


def _lead_stack(cosines: Float32Array, cut: float) -> IntArray:
    """Do for G bursts of g rows at once what `find_leaders` does for one; `cosines` float32 [G, g, g]."""
    near = cosines >= cut
    led = np.zeros(near.shape[:2], np.bool_)
    leads = np.zeros(near.shape[:2], np.bool_)
    for row in range(near.shape[1]):
        leads[:, row] = ~led[:, row]
        led |= leads[:, row, None] & near[:, row]
    choice = np.where(leads[:, None, :], cosines, -2).argmax(axis=2)
    return np.where(leads, np.arange(near.shape[1]), choice)
