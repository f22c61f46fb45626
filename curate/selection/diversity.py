"""What looks alike: leaders of near-duplicates, similarity to what is labelled, scenes, the radius of coverage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curate.selection.base import BoolArray, Float32Array, Float64Array, IntArray
from curate.selection.rows import Rows, number_names

CHUNK_ROWS = 1024
# Float32 cosines of identical rows miss 1 by about 1e-7; asking for more would split exact copies.
MAX_COSINE = 1.0 - 1e-6
BLOCK_COSINES = 2**22
CLOCK_SLACK_S = 1e-3  # sums of seconds since 1970 round at about a microsecond
RADIUS_ROWS = 4096
"""The median that sets the radius is taken over at most about so many labels."""


def nearest_similarity(rows: Float32Array, references: Float32Array) -> Float64Array:
    """Return each unit row's highest cosine to the unit references, float64 [N]; -1 when there are none."""
    best = np.full(len(rows), -1.0)
    if len(references):
        step = _rows_a_block(len(references))
        for start in range(0, len(rows), step):
            block = slice(start, start + step)
            best[block] = (rows[block] @ references.T).max(axis=1)
    return np.clip(best, -1.0, 1.0)


def find_nearest(rows: Float32Array, references: Float32Array) -> tuple[IntArray, Float64Array]:
    """Return the reference with each unit row's highest cosine, int64 [N], and that cosine, float64 [N].

    There has to be a reference; of equal ones the first is taken.
    """
    nearest, best = np.empty(len(rows), np.int64), np.empty(len(rows))
    step = _rows_a_block(len(references))
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        cosines = rows[block] @ references.T
        nearest[block], best[block] = cosines.argmax(axis=1), cosines.max(axis=1)
    return nearest, np.clip(best, -1.0, 1.0)


def _rows_a_block(references: int) -> int:
    """Return how many rows may be compared with so many references at once, in at most 16 MiB."""
    return max(1, min(CHUNK_ROWS, BLOCK_COSINES // references))


@dataclass(frozen=True, eq=False)
class Moments:
    """What was seen where and when: unit embeddings float32 [N, D], cameras [N], seconds float64 [N]."""

    unit: Rows
    cameras: tuple[str, ...]
    captured_s: Float64Array

    def take(self, rows: Sequence[int] | IntArray) -> Moments:
        """Return the given rows."""
        index = np.asarray(rows, dtype=np.int64)
        return Moments(self.unit[index], tuple(self.cameras[i] for i in index), self.captured_s[index])


def shared_scenes(rows: Moments, references: Moments, *, gap_s: float, cosine: float) -> list[tuple[int, int]]:
    """Return the pairs (row, reference) of one camera, at most `gap_s` apart, at least `cosine` similar.

    Within so short a time a much lower similarity than that of a near-duplicate means the same object: on bursty frames
    0.6 finds 99.9 % of the pairs that show one object, and a quarter of the pairs that do not.
    """
    cameras = number_names((*rows.cameras, *references.cameras))
    here, there = cameras[: len(rows.cameras)], cameras[len(rows.cameras) :]
    by_time = np.lexsort((rows.captured_s, here))
    bounds = np.searchsorted(here[by_time], np.arange(cameras.max(initial=-1) + 2))
    known = references.unit[slice(None)]
    pairs: list[tuple[int, int]] = []
    for reference, (camera, moment) in enumerate(zip(there.tolist(), references.captured_s.tolist(), strict=True)):
        on_camera = by_time[bounds[camera] : bounds[camera + 1]]
        seconds = rows.captured_s[on_camera]
        window = slice(*np.searchsorted(seconds, [moment - gap_s - CLOCK_SLACK_S, moment + gap_s + CLOCK_SLACK_S]))
        near = np.sort(on_camera[window][np.abs(seconds[window] - moment) <= gap_s])
        if len(near):
            alike = near[rows.unit[near] @ known[reference] >= cosine]
            pairs.extend((row, reference) for row in alike.tolist())
    return pairs


def coverage_radius(labelled: Float32Array, *, floor: float, ceiling: float) -> float:
    """Return the kernel radius for the labels so far; it shrinks as they crowd (UHerding, arXiv:2412.20644).

    The paper takes the smallest distance between labelled points. Random labels on a camera stream hold near-duplicates
    that would put that at nearly zero at once, so the median distance to the nearest other label is taken instead (on
    bursty digits 50 instead of 76 labels to reach what 300 random ones reach).
    """
    if len(labelled) < 2:
        return ceiling
    asked = np.arange(0, len(labelled), -(-len(labelled) // RADIUS_ROWS))
    nearest = np.empty(len(asked))
    step = _rows_a_block(len(labelled))
    for start in range(0, len(asked), step):
        own = asked[start : start + step]
        cosines = labelled[own] @ labelled.T
        cosines[np.arange(len(own)), own] = -1.0
        nearest[start : start + step] = cosines.max(axis=1)
    distances = np.sqrt(np.clip(2.0 - 2.0 * nearest, 0.0, None))
    return float(np.clip(np.median(distances), floor, ceiling))


def find_leaders(unit: Rows, threshold: float) -> IntArray:
    """Return the row that leads each row: leaders are taken in order, then every row joins its most similar one.

    Int64 [N]. Costs leaders times rows; memory: the leaders, and a block of 1,024 rows by all of them.
    """
    cut = min(threshold, MAX_COSINE)
    leaders: list[int] = []
    heads: Float32Array | None = None
    inner = unit[slice(0)]
    for start in range(0, len(unit), CHUNK_ROWS):
        block = unit[slice(start, start + CHUNK_ROWS)]
        led = np.zeros(len(block), np.bool_) if heads is None else nearest_similarity(block, heads) >= cut
        if led.all():
            continue
        inner = block @ block.T
        new = _lead_block(inner >= cut, led)
        leaders += [start + row for row in new]
        heads = block[new] if heads is None else np.concatenate([heads, block[new]])
    chosen = np.asarray(leaders, dtype=np.int64)
    if heads is None or len(chosen) == len(unit):
        return chosen
    choice = np.empty(len(unit), dtype=np.int64)
    for start in range(0, len(unit), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        cosines = inner[:, chosen] if len(unit) <= CHUNK_ROWS else unit[rows] @ heads.T
        choice[rows] = chosen[cosines.argmax(axis=1)]
    choice[chosen] = chosen
    return choice


def _lead_block(near: BoolArray, led: BoolArray) -> list[int]:
    """Return which rows of a block lead, given who is near whom and who is led from before."""
    np.fill_diagonal(near, val=True)
    free = np.flatnonzero(~led)
    if np.count_nonzero(near[free][:, free]) == len(free):  # nobody is near anybody: the usual case
        return list(map(int, free))
    led, leaders = led.copy(), []
    for row in free.tolist():
        if not led[row]:
            led |= near[row]
            leaders.append(row)
    return leaders
