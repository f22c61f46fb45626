"""What crosses between the catalog and other tools' folders of boxes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curate.catalog.boxes import LabelledBox, box_problem, boxes_label, clip_box

Fetch = Callable[[str], bytes]
"""An image key to the bytes of its file."""

SLACK_PX = 1.0
"""Tools round: a box that sticks out of its image by no more is cut at the border; further out it is an error."""


class BadEntryError(Exception):
    """Something in a foreign file makes no sense; the message is the reason. Never leaves this package."""


@dataclass(frozen=True)
class Problem:
    """Something that was left out, and why, in a person's words."""

    place: str
    """The file, or the file and what in it."""
    reason: str

    def __str__(self) -> str:
        """Both in one line."""
        return f"{self.place}: {self.reason}"


@dataclass(frozen=True)
class BoxedImage:
    """An image with all of its boxes, in pixels."""

    path: Path
    width: int
    height: int
    boxes: tuple[LabelledBox, ...]
    split: str | None = None
    """In the source's word; None where it does not say."""

    @property
    def label(self) -> dict[str, Any]:
        """The detection label, as the catalog keeps it."""
        return boxes_label(self.boxes)


@dataclass(frozen=True)
class Imported:
    """All that a source holds: every image is among `images` or named by a problem.

    An image with one bad box is left out as a whole: without the box it would teach that nothing is there.
    """

    images: tuple[BoxedImage, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Exported:
    """What was written."""

    images: int
    boxes: int
    files: tuple[Path, ...]
    """Those that name all others: one for each split, or one in all."""


def fit_box(box: LabelledBox, width: int, height: int) -> LabelledBox:
    """Return the box cut at the border of its image.

    Raises:
        BadEntryError: it has no area, is not finite, or is out of the image by more than `SLACK_PX`.
    """
    if problem := box_problem(box):
        raise BadEntryError(f"a box of {box.class_name!r}: {problem}")
    inside = clip_box(box, width, height)
    overhang = max(-box.x_min, -box.y_min, box.x_max - width, box.y_max - height)
    if inside is None or overhang > SLACK_PX:
        raise BadEntryError(f"a box of {box.class_name!r} is out of the image of {width} x {height} pixels")
    return inside


def around(class_name: str, points: list[float]) -> LabelledBox:
    """Return the smallest box around a polygon `[x1, y1, x2, y2, ...]`.

    Raises:
        BadEntryError: it has fewer than three points, half a point, or a coordinate that is not finite.
    """
    if not all(map(math.isfinite, points)):
        raise BadEntryError(f"an outline of {class_name!r} has a coordinate that is not a finite number")
    if len(points) < 6 or len(points) % 2:
        raise BadEntryError(f"an outline of {class_name!r} has {len(points)} coordinates")
    xs, ys = points[::2], points[1::2]
    return LabelledBox(class_name, min(xs), min(ys), max(xs), max(ys))
