"""What several people's boxes of one image amount to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

import numpy as np

from curate.answers.boxes import pairwise_iou
from curate.catalog.boxes import MATCHING_IOU, LabelledBox, box_f1, corner_array

Boxes = Sequence[LabelledBox]


@dataclass(frozen=True)
class _Drawn:
    """A box and the number of the person who drew it."""

    person: int
    box: LabelledBox


def merge_boxes(answers: Sequence[Boxes], min_iou: float = MATCHING_IOU) -> tuple[LabelledBox, ...]:
    """Return the boxes that at least half of the people drew, each the mean of theirs, corner by corner.

    Boxes are of one object when they have one class, come from different people, and every two of them overlap at
    least `min_iou`; the best overlaps are joined first. Of two people that disagree both are believed: a box too many
    is easier to see, and to delete, than one that is missing. Sorted by position.
    """
    drawn = [_Drawn(person, box) for person, boxes in enumerate(answers) for box in boxes]
    merged = [
        _mean([each.box for each in group]) for group in _groups(drawn, min_iou) if 2 * len(group) >= len(answers)
    ]
    return tuple(sorted(merged, key=lambda box: (*box.corners, box.class_name)))


def box_agreement(answers: Sequence[Boxes], min_iou: float = MATCHING_IOU) -> float:
    """Return the mean F1 score over all pairs of people, in [0, 1]; 1 for a single one."""
    return fmean(scores) if (scores := [box_f1(a, b, min_iou) for a, b in combinations(answers, 2)]) else 1.0


def _groups(drawn: Sequence[_Drawn], min_iou: float) -> list[list[_Drawn]]:
    """Greedy agglomeration with complete linkage: two groups become one when all their pairs may."""
    corners = corner_array([each.box for each in drawn])
    iou = pairwise_iou(corners, corners)
    allowed = iou >= min_iou
    for i, j in combinations(range(len(drawn)), 2):
        if drawn[i].person == drawn[j].person or drawn[i].box.class_name != drawn[j].box.class_name:
            allowed[i, j] = allowed[j, i] = False
    group_of = [[index] for index in range(len(drawn))]
    rows, columns = np.nonzero(np.triu(allowed, k=1))
    for pair in np.argsort(-iou[rows, columns], kind="stable"):
        left, right = group_of[rows[pair]], group_of[columns[pair]]
        if left is not right and allowed[np.ix_(left, right)].all():
            left.extend(right)
            for index in right:
                group_of[index] = left
    distinct = {id(group): group for group in group_of}
    return [[drawn[index] for index in group] for group in distinct.values()]


def _mean(boxes: Boxes) -> LabelledBox:
    corners = [fmean(values) for values in zip(*(box.corners for box in boxes), strict=True)]
    return LabelledBox(boxes[0].class_name, *corners)
