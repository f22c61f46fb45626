"""What a label means on a picture, by kind: today, how it follows a picture that is scaled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from curate.catalog.boxes import boxes_label, parse_boxes, scale_boxes

Label = Mapping[str, Any]


def _scale_frame_label(label: Label, factor_x: float, factor_y: float) -> dict[str, Any]:  # noqa: ARG001 (the rule's)
    """A class says something about the whole picture, whatever its size."""
    return dict(label)


def _scale_box_label(label: Label, factor_x: float, factor_y: float) -> dict[str, Any]:
    return boxes_label(scale_boxes(parse_boxes(label), factor_x, factor_y))


SCALE_LABEL: Final[Mapping[str, Callable[[Label, float, float], dict[str, Any]]]] = {
    "classification": _scale_frame_label,
    "detection": _scale_box_label,
}
"""A label, and how many times as wide and as high its picture becomes, to the label of the scaled picture."""
