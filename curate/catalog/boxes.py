"""Boxes that people settled on: a detection label as typed values. Pixels of the captured image, origin top left.

The label is `{"boxes": [{"class": name, "x_min": ..., "y_min": ..., "x_max": ..., "y_max": ...}, ...]}`; an empty list
is an answer like any other: there is nothing to see. The last two corners are exclusive edges.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.answers.boxes import pairwise_iou
from curate.contracts.prediction import DetectedBox
from curate.errors import CatalogError

MATCHING_IOU = 0.5
"""Two boxes that overlap at least this much are of one object (Everingham et al. 2010, section 4.2)."""
_CORNERS = ("x_min", "y_min", "x_max", "y_max")


@dataclass(frozen=True)
class LabelledBox:
    """One object. `x_max` and `y_max` are exclusive: the width is `x_max - x_min`."""

    class_name: str
    x_min: float
    y_min: float
    x_max: float
    y_max: float

    @property
    def width(self) -> float:
        """In pixels."""
        return self.x_max - self.x_min

    @property
    def height(self) -> float:
        """In pixels."""
        return self.y_max - self.y_min

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """`x_min, y_min, x_max, y_max`."""
        return self.x_min, self.y_min, self.x_max, self.y_max


def parse_boxes(label: Mapping[str, Any], class_names: Collection[str] | None = None) -> tuple[LabelledBox, ...]:
    """Return the label's boxes in its order; `class_names=None` accepts any class.

    Raises:
        CatalogError: it is no detection label, or a box has an unknown class, a corner that is not a finite number,
            corners out of order or no area. Says which box.
    """
    entries = label.get("boxes")
    if not isinstance(entries, list):
        raise CatalogError("the label holds no list of boxes", hint="is it of another kind?")
    return tuple(_parse_box(number, entry, class_names) for number, entry in enumerate(entries, start=1))


def boxes_label(boxes: Iterable[LabelledBox]) -> dict[str, Any]:
    """Return the JSON label of the boxes: what `parse_boxes` reads."""
    return {"boxes": [{"class": box.class_name, **dict(zip(_CORNERS, box.corners, strict=True))} for box in boxes]}


def box_problem(box: LabelledBox) -> str | None:
    """Say why a box cannot be used, None for one that can."""
    if not all(map(math.isfinite, box.corners)):
        return "a corner is not a finite number"
    if box.x_max < box.x_min or box.y_max < box.y_min:
        return "its corners are out of order"
    if box.x_max == box.x_min or box.y_max == box.y_min:
        return "it has no area"
    return None


def scale_boxes(boxes: Iterable[LabelledBox], factor_x: float, factor_y: float) -> tuple[LabelledBox, ...]:
    """Return the boxes in an image whose width and height are that many times as large."""
    return tuple(
        LabelledBox(
            box.class_name, box.x_min * factor_x, box.y_min * factor_y, box.x_max * factor_x, box.y_max * factor_y
        )
        for box in boxes
    )


def clip_box(box: LabelledBox, width: float, height: float) -> LabelledBox | None:
    """Return the part of the box that is inside an image of that size; None when nothing of it is."""
    left, right = max(box.x_min, 0.0), min(box.x_max, float(width))
    top, bottom = max(box.y_min, 0.0), min(box.y_max, float(height))
    return LabelledBox(box.class_name, left, top, right, bottom) if left < right and top < bottom else None


def corner_array(boxes: Sequence[LabelledBox]) -> NDArray[np.float32]:
    """Return the corners, float32 [N, 4]."""
    return np.array([box.corners for box in boxes], np.float32).reshape(-1, 4)


def match_boxes(
    left: Sequence[LabelledBox], right: Sequence[LabelledBox], min_iou: float = MATCHING_IOU
) -> list[tuple[int, int]]:
    """Pair boxes of one class, each at most once, that overlap at least `min_iou`; the best overlap goes first.

    Returns index pairs (left, right) in order of `left`. Of equal overlaps the first pair wins.
    """
    iou = pairwise_iou(corner_array(left), corner_array(right))
    same_class = np.array([[a.class_name == b.class_name for b in right] for a in left], np.bool_).reshape(iou.shape)
    rows, columns = np.nonzero(same_class & (iou >= min_iou))
    order = np.argsort(-iou[rows, columns], kind="stable")
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in pairs and column not in taken:
            pairs[row] = column
            taken.add(column)
    return sorted(pairs.items())


def box_f1(left: Sequence[LabelledBox], right: Sequence[LabelledBox], min_iou: float = MATCHING_IOU) -> float:
    """Return 2 · pairs / (all boxes) of two sets of boxes, in [0, 1]: 1 when they tell the same, two empty ones too."""
    count = len(left) + len(right)
    return 2 * len(match_boxes(left, right, min_iou)) / count if count else 1.0


def labelled_box(box: DetectedBox, class_names: Sequence[str]) -> LabelledBox:
    """Return a detected box as its most probable class.

    Raises:
        CatalogError: it has another number of probabilities than there are classes.
    """
    if len(box.probabilities) != len(class_names):
        raise CatalogError(f"{len(box.probabilities)} probabilities for {len(class_names)} classes")
    return LabelledBox(class_names[box.class_index], box.x_min, box.y_min, box.x_max, box.y_max)


def _parse_box(number: int, entry: Any, class_names: Collection[str] | None) -> LabelledBox:
    try:
        box = LabelledBox(_name(entry["class"]), *(_number(entry[name]) for name in _CORNERS))
    except (KeyError, TypeError, OverflowError) as exc:
        raise CatalogError(f"box {number} of the label cannot be read: {exc!r}") from exc
    if class_names is not None and box.class_name not in class_names:
        raise CatalogError(f"box {number} of the label: {box.class_name!r} is not among the classes")
    if problem := box_problem(box):
        raise CatalogError(f"box {number} of the label: {problem}")
    return box


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no name")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)
