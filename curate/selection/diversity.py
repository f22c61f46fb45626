"""What looks alike: near-duplicate clusters, similarity to what is labelled, and the coverage kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curate.errors import SelectionError
from curate.selection.base import Float32Array, Float64Array, IntArray

CHUNK_ROWS = 1024
# Float32 cosines of identical rows miss 1 by about 1e-7; asking for more would split exact copies.
MAX_COSINE = 1.0 - 1e-6


def unit_rows(embeddings: Float32Array) -> Float32Array:
    """Return the rows scaled to length 1, float32 [N, D]; zero rows stay zero."""
    rows = np.ascontiguousarray(embeddings, dtype=np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms > 0, norms, 1), dtype=np.float32)


def near_duplicate_clusters(
    embeddings: Float32Array, groups: Sequence[str], threshold: float, *, group_threshold: float | None = None
) -> IntArray:
    """Return a cluster number for each row, int64 [N], numbered from 0 in order of first appearance.

    Two steps of leader clustering on cosine similarity: first within each group at `group_threshold` (default: the same
    threshold), then between the group leaders at `threshold`. Every member is close to a leader, so similarity does not
    chain a whole class into one cluster as single linkage would. Rows are visited in the order given: sort them by id
    for a result that does not depend on how they were read. Memory: one block of 1,024 rows by all leaders.
    Raises `SelectionError` when lengths differ or a number is not finite.
    """
    if len(groups) != len(embeddings):
        raise SelectionError(f"{len(embeddings)} embeddings but {len(groups)} groups")
    if not np.isfinite(embeddings).all():
        raise SelectionError("near-duplicates cannot be found among embeddings that are not finite")
    unit = unit_rows(embeddings)
    leader_of = np.arange(len(unit))
    for rows in _rows_by_group(groups):
        leader_of[rows] = rows[_leaders(unit[rows], threshold if group_threshold is None else group_threshold)]
    tops = np.unique(leader_of)
    top_of = dict(zip(tops.tolist(), tops[_leaders(unit[tops], threshold)].tolist(), strict=True))
    return _renumbered([top_of[leader] for leader in leader_of.tolist()])


def nearest_similarity(rows: Float32Array, references: Float32Array) -> Float64Array:
    """Return each unit row's highest cosine to the unit references, float64 [N]; -1 when there are none."""
    best = np.full(len(rows), -1.0)
    if len(references):
        for start in range(0, len(rows), CHUNK_ROWS):
            block = slice(start, start + CHUNK_ROWS)
            best[block] = (rows[block] @ references.T).max(axis=1)
    return np.clip(best, -1.0, 1.0)


@dataclass(frozen=True, eq=False)
class Moments:
    """What was seen where and when: unit embeddings float32 [N, D], cameras [N], seconds float64 [N]."""

    unit: Float32Array
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
    by_camera: dict[str, list[int]] = {}
    for row, camera in enumerate(rows.cameras):
        by_camera.setdefault(camera, []).append(row)
    members = {camera: np.asarray(found) for camera, found in by_camera.items()}
    pairs: list[tuple[int, int]] = []
    for reference, camera in enumerate(references.cameras):
        here = members.get(camera)
        if here is None:
            continue
        near = here[np.abs(rows.captured_s[here] - references.captured_s[reference]) <= gap_s]
        alike = near[rows.unit[near] @ references.unit[reference] >= cosine]
        pairs.extend((row, reference) for row in alike.tolist())
    return pairs


def rbf_kernel(rows: Float32Array, columns: Float32Array, radius: float) -> Float32Array:
    """Return exp(-‖x - y‖² / radius²) between unit rows, float32 [R, C], using ‖x - y‖² = 2 - 2 x·y."""
    kernel = rows @ columns.T
    scale = np.float32(2.0 / radius**2)
    for start in range(0, len(kernel), CHUNK_ROWS):  # in place, block by block: one kernel in memory, not three
        block = kernel[start : start + CHUNK_ROWS]
        block -= 1
        block *= scale
        np.minimum(block, 0, out=block)
        np.exp(block, out=block)
    return np.asarray(kernel, dtype=np.float32)


def coverage_radius(labelled: Float32Array, *, floor: float, ceiling: float) -> float:
    """Return the kernel radius for the labels so far; it shrinks as they crowd (UHerding, arXiv:2412.20644).

    The paper takes the smallest distance between labelled points. Random labels on a camera stream hold near-duplicates
    that would put that at nearly zero at once, so the median distance to the nearest other label is taken instead (on
    bursty digits 50 instead of 76 labels to reach what 300 random ones reach).
    """
    if len(labelled) < 2:
        return ceiling
    nearest = np.empty(len(labelled))
    for start in range(0, len(labelled), CHUNK_ROWS):
        cosines = labelled[start : start + CHUNK_ROWS] @ labelled.T
        own = np.arange(len(cosines))
        cosines[own, start + own] = -1.0
        nearest[start : start + CHUNK_ROWS] = cosines.max(axis=1)
    distances = np.sqrt(np.clip(2.0 - 2.0 * nearest, 0.0, None))
    return float(np.clip(np.median(distances), floor, ceiling))


def _leaders(unit: Float32Array, threshold: float) -> IntArray:
    """Return the row that leads each row: leaders are taken in order, then every row joins its most similar one."""
    cut = min(threshold, MAX_COSINE)
    leaders = np.empty(len(unit), dtype=np.int64)
    count = 0
    for start in range(0, len(unit), CHUNK_ROWS):
        block = unit[start : start + CHUNK_ROWS]
        led = nearest_similarity(block, unit[leaders[:count]]) >= cut
        inner = block @ block.T if not led.all() else block[:0]
        for offset in range(len(block)):
            if not led[offset]:
                led |= inner[offset] >= cut
                leaders[count] = start + offset
                count += 1
    return _most_similar(unit, leaders[:count])


def _most_similar(unit: Float32Array, leaders: IntArray) -> IntArray:
    """Return for each row the most similar of the leading rows; a leader leads itself."""
    choice = np.empty(len(unit), dtype=np.int64)
    for start in range(0, len(unit), CHUNK_ROWS):
        block = slice(start, start + CHUNK_ROWS)
        choice[block] = leaders[(unit[block] @ unit[leaders].T).argmax(axis=1)]
    choice[leaders] = leaders
    return choice


def _rows_by_group(groups: Sequence[str]) -> list[IntArray]:
    """Return the row numbers of each group that has more than one row."""
    rows: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    return [np.asarray(members) for members in rows.values() if len(members) > 1]


def _renumbered(labels: Sequence[int]) -> IntArray:
    """Return the labels numbered from 0 in order of first appearance."""
    numbers: dict[int, int] = {}
    return np.asarray([numbers.setdefault(label, len(numbers)) for label in labels], dtype=np.int64)
