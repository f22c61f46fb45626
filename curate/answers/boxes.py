"""Geometry of corner boxes `x_min, y_min, x_max, y_max`, vectorised. Pixels; the origin is the top left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curate.answers.base import Floats

Indices = NDArray[np.intp]


def areas(boxes: Floats) -> Floats:
    """Return the areas [M] of boxes [M, 4]; 0 for one whose corners are out of order."""
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0)
    return np.asarray(sides[:, 0] * sides[:, 1])


def pairwise_iou(left: Floats, right: Floats) -> Floats:
    """Return the intersection over union [M, N] of boxes [M, 4] and [N, 4]; 0 where both have no area."""
    width = np.minimum(left[:, None, 2], right[None, :, 2]) - np.maximum(left[:, None, 0], right[None, :, 0])
    height = np.minimum(left[:, None, 3], right[None, :, 3]) - np.maximum(left[:, None, 1], right[None, :, 1])
    shared = np.maximum(width, 0.0) * np.maximum(height, 0.0)
    union = areas(left)[:, None] + areas(right)[None, :] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0.0), dtype=np.float32)


def scale_and_clip(boxes: Floats, *, x_scale: float, y_scale: float, width: int, height: int) -> Floats:
    """Return boxes [M, 4] in the pixels of a frame of `width` x `height`, cut at its edges."""
    scaled = boxes * np.array([x_scale, y_scale, x_scale, y_scale], np.float32)
    return np.asarray(np.clip(scaled, 0.0, np.array([width, height, width, height], np.float32)))


@dataclass(frozen=True, slots=True)
class Suppression:
    """What non-maximum suppression kept, and what each kept box hid."""

    kept: Indices
    """[B], by falling score."""
    keeper: Indices
    """[M]: the kept box that each box belongs to; a kept box belongs to itself."""


def suppress(iou: Floats, scores: Floats, classes: NDArray[np.intp], max_iou: float) -> Suppression:
    """Greedy non-maximum suppression within each class.

    The highest score is kept and hides every other box of its class that overlaps it by more than `max_iou`; then the
    next that is left. Equal scores go by position. Shapes: iou [M, M], scores [M], classes [M].
    """
    order = np.argsort(-scores, kind="stable")
    rival = (iou > max_iou) & (classes[:, None] == classes[None, :])
    keeper = np.full(len(scores), -1, np.intp)
    kept: list[int] = []
    for index in order.tolist():
        if keeper[index] < 0:
            kept.append(index)
            keeper[rival[index] & (keeper < 0)] = index
            keeper[index] = index  # a box without area overlaps nothing, itself included
    return Suppression(np.array(kept, np.intp), keeper)
