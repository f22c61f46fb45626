"""A frame seen through its boxes: one vector whose cosine says "the same objects, seen the same way, same place".

A fixed camera's frame embeddings are nearly all alike: the background dominates, and coverage would find nothing to
cover. What differs is who stands where, so that is what the vector holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curate.errors import SelectionError
from curate.selection.balance import allocate
from curate.selection.base import Float32Array, Float64Array, IntArray

WORDS = 128
"""Distinct ways to be seen that all classes share among them: the descriptor's length, less one."""
SPREAD = 3
"""A box is described by that many words, so a small move changes its description little."""
EMPTY_WEIGHT = 0.5
"""What every frame has in common, in boxes: it gives empty frames a direction, equal for all of them."""
CERTAIN_WEIGHT = 0.25
"""Weight of a box that the model is certain of; a fully uncertain one weighs 1."""
POSITION_SHARE = 0.5
"""How much of the distance between two boxes is where and how large they are, not how they look."""
MAX_FIT_BOXES = 20_000


@dataclass(frozen=True, eq=False)
class FrameBoxes:
    """The n boxes of one frame.

    `embeddings` float32 [n, E]; `classes` int64 [n]; `uncertainty` float64 [n] in [0, 1]; `corners` float64 [n, 4],
    x_min, y_min, x_max, y_max as shares of the frame's width and height. n = 0 is legitimate.
    """

    embeddings: Float32Array
    classes: IntArray
    uncertainty: Float64Array
    corners: Float64Array


def box_uncertainty(probabilities: Float32Array) -> Float64Array:
    """Return 1 - |2 p - 1| of each box's best class, float64 [n]; `probabilities` [n, K] of independent classes."""
    best = np.asarray(probabilities, np.float64).max(axis=1, initial=0.0)
    return np.asarray(1.0 - np.abs(2.0 * best - 1.0))


def describe_frames(frames: Sequence[FrameBoxes], *, words: int = WORDS, seed: int = 0) -> Float32Array:
    """Return one descriptor a frame, float32 [N, words + 1] with rows of length 1.

    Frames are compared as PPAL compares them (arXiv:2211.11612, its diversity stage): boxes of one class only, by
    likeness, weighed by uncertainty. PPAL matches the boxes of every pair of frames; to have a vector instead, each
    box is told by the nearest of `words` words (k-means over looks and place of all boxes, class by class), a frame by
    the weight that falls on each word, and two frames by the Bhattacharyya coefficient of those weights, which is the
    cosine of their square roots. A constant word gives frames without boxes a direction, the same for all.

    The words belong to these frames: describe the pool and what is labelled in one call. The result does not depend on
    the order of the frames. Raises `SelectionError` on ragged or non-finite boxes.
    """
    counts = [_verified(frame) for frame in frames]
    owner = np.repeat(np.arange(len(frames)), counts)
    histogram = np.zeros((len(frames), words + 1))
    histogram[:, words] = EMPTY_WEIGHT
    if len(owner):
        classes = np.concatenate([frame.classes for frame in frames])
        weights = CERTAIN_WEIGHT + (1.0 - CERTAIN_WEIGHT) * np.concatenate([frame.uncertainty for frame in frames])
        features = _features(frames, classes)
        first = 0
        for name, size in _words_by_class(classes, words).items():
            mine = np.flatnonzero(classes == int(name))
            near, shares = _spelled(features[mine], _codebook(features[mine], size, seed))
            np.add.at(histogram, (owner[mine, None], first + near), shares * weights[mine, None])
            first += size
    rooted = np.sqrt(histogram)
    return np.asarray(rooted / np.linalg.norm(rooted, axis=1, keepdims=True), np.float32)


def _verified(frame: FrameBoxes) -> int:
    n = len(frame.embeddings)
    shapes = (frame.classes.shape, frame.uncertainty.shape, frame.corners.shape)
    if frame.embeddings.ndim != 2 or shapes != ((n,), (n,), (n, 4)):
        raise SelectionError(f"embeddings of shape {frame.embeddings.shape} for boxes of shapes {shapes}")
    if not (np.isfinite(frame.embeddings).all() and np.isfinite(frame.corners).all()):
        raise SelectionError("a box is not finite")
    if not ((frame.uncertainty >= 0) & (frame.uncertainty <= 1)).all():
        raise SelectionError("a box's uncertainty is outside [0, 1]")
    return n


def _features(frames: Sequence[FrameBoxes], classes: IntArray) -> Float64Array:
    """Return looks beside place of all boxes, float64 [B, E + 3], each part scaled to its share of the distances."""
    filled = [frame for frame in frames if len(frame.embeddings)]
    looks = np.concatenate([frame.embeddings for frame in filled]).astype(np.float64)
    looks /= np.maximum(np.linalg.norm(looks, axis=1, keepdims=True), 1e-12)
    corners = np.concatenate([frame.corners for frame in filled])
    size = np.sqrt(np.prod(np.clip(corners[:, 2:] - corners[:, :2], 0.0, None), axis=1))
    place = np.column_stack([(corners[:, :2] + corners[:, 2:]) / 2.0, size])
    parts = ((looks, 1.0 - POSITION_SHARE), (place, POSITION_SHARE))
    return np.hstack([np.sqrt(share) * _standardised(part, classes) for part, share in parts])


def _standardised(rows: Float64Array, classes: IntArray) -> Float64Array:
    """Return rows less their class's mean, scaled to a mean square length of 1."""
    centred = rows.copy()
    for name in np.unique(classes):
        centred[classes == name] -= rows[classes == name].mean(axis=0)
    scale = float(np.sqrt((centred**2).sum(axis=1).mean()))
    return centred / scale if scale > 1e-9 else np.zeros_like(centred)


def _words_by_class(classes: IntArray, words: int) -> dict[str, int]:
    """Split the words over the classes by how many boxes each has; a class beyond the words has none."""
    names, counts = np.unique(classes, return_counts=True)
    boxes = {str(name): int(count) for name, count in zip(names, counts, strict=True)}
    return {name: size for name, size in allocate(words, boxes, boxes).items() if size}


def _codebook(features: Float64Array, size: int, seed: int) -> Float64Array:
    """Return the k-means centres [size, F] of the boxes, whatever order they are in."""
    ordered = features[np.lexsort(features.T)]
    distinct = np.unique(ordered.round(9), axis=0)
    if len(distinct) <= size:
        return np.asarray(distinct, np.float64)
    if len(ordered) > MAX_FIT_BOXES:
        ordered = ordered[np.random.default_rng(seed).choice(len(ordered), MAX_FIT_BOXES, replace=False)]
    from sklearn.cluster import KMeans  # noqa: PLC0415 (takes seconds to load, and most pools hold no boxes)

    return np.asarray(KMeans(size, n_init=1, max_iter=50, random_state=seed).fit(ordered).cluster_centers_, np.float64)


def _spelled(features: Float64Array, codebook: Float64Array) -> tuple[IntArray, Float64Array]:
    """Return each box's nearest words and their shares, [B, s]; shares fall with the squared distance and sum to 1."""
    squared = (features**2).sum(axis=1)[:, None] + (codebook**2).sum(axis=1)[None, :] - 2.0 * features @ codebook.T
    squared = np.maximum(squared, 0.0)
    near = np.argsort(squared, axis=1, kind="stable")[:, :SPREAD]
    distance = np.take_along_axis(squared, near, axis=1)
    scale = max(float(np.median(distance[:, 0])), 1e-12)
    shares = np.exp(-np.minimum((distance - distance[:, :1]) / scale, 50.0))
    return near, shares / shares.sum(axis=1, keepdims=True)
