"""What simulated people make of a picture of the plaza, given its truth. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from curate.answers.boxes import pairwise_iou
from curate.catalog.boxes import MATCHING_IOU, LabelledBox, clip_box, corner_array
from flows.sandbox.plaza_clip import HEIGHT_PX, WIDTH_PX
from flows.sandbox.plaza_truth import TruthBox

PERSON = "person"


@dataclass(frozen=True)
class Carefulness:
    """How annotators err."""

    jitter_px: float = 1.0
    """Standard deviation of each edge."""
    missed_rate: float = 0.02
    spurious_rate: float = 0.01
    """Boxes around nobody, as a share of the people there are."""


@dataclass(frozen=True)
class Comparison:
    """Predicted boxes held against the truth at IoU 0.5."""

    right: tuple[bool, ...]
    """One a predicted box."""
    missed: tuple[int, ...]
    """Places of the people whom no shown box found."""


def true_boxes(people: Sequence[TruthBox]) -> tuple[LabelledBox, ...]:
    """Return the truth of a frame as label boxes."""
    return tuple(LabelledBox(PERSON, each.x_min, each.y_min, each.x_max, each.y_max) for each in people)


def compare(predicted: Sequence[LabelledBox], shown: Sequence[bool], truth: Sequence[LabelledBox]) -> Comparison:
    """Match boxes, given by falling score, as COCOeval does: each takes the free person that it overlaps most."""
    iou = pairwise_iou(corner_array(predicted), corner_array(truth))
    free = np.ones(len(truth), np.bool_)
    seen = np.zeros(len(truth), np.bool_)
    right = []
    for row, is_shown in zip(iou, shown, strict=True):
        overlap = np.where(free, row, 0.0)
        best = int(overlap.argmax()) if len(truth) else 0
        found = bool(len(truth) and overlap[best] >= MATCHING_IOU)
        right.append(found)
        if found:
            free[best] = False
            seen[best] = is_shown
    return Comparison(tuple(right), tuple(np.flatnonzero(~seen).tolist()))


def read_predicted(boxes: Sequence[Mapping[str, Any]]) -> tuple[LabelledBox, ...]:
    """Return the boxes of an answer of the agent's API, in its order."""
    return tuple(
        LabelledBox(PERSON, float(b["x_min"]), float(b["y_min"]), float(b["x_max"]), float(b["y_max"])) for b in boxes
    )


def annotate(
    truth: Sequence[LabelledBox], carefulness: Carefulness, rng: np.random.Generator
) -> tuple[LabelledBox, ...]:
    """Return what an annotator draws: the truth, a little off, now and then one too few or one too many."""
    drawn = []
    for box in truth:
        if rng.random() >= carefulness.missed_rate:
            drawn.append(_jitter(box, carefulness.jitter_px, rng))
        if rng.random() < carefulness.spurious_rate:
            drawn.append(_nobody(box, rng))
    inside = (clip_box(box, WIDTH_PX, HEIGHT_PX) for box in drawn)
    return tuple(box for box in inside if box is not None)


def _jitter(box: LabelledBox, sigma_px: float, rng: np.random.Generator) -> LabelledBox:
    left, top, right, bottom = np.asarray(box.corners) + rng.normal(0.0, sigma_px, 4)
    return LabelledBox(box.class_name, left, top, max(right, left + 1.0), max(bottom, top + 1.0))


def _nobody(like: LabelledBox, rng: np.random.Generator) -> LabelledBox:
    """A box of a person's size, anywhere."""
    x, y = rng.uniform(0, WIDTH_PX - like.width), rng.uniform(0, HEIGHT_PX - like.height)
    return LabelledBox(like.class_name, x, y, x + like.width, y + like.height)
