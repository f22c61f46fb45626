"""Detection labels as typed values, and how sets of boxes are paired."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from curate.catalog.boxes import (
    LabelledBox,
    box_f1,
    boxes_label,
    clip_box,
    labelled_box,
    match_boxes,
    parse_boxes,
    scale_boxes,
)
from curate.catalog.labels import LabelSpec
from curate.contracts.prediction import DetectedBox
from curate.errors import CatalogError

CLASSES = ("person", "dog")


@st.composite
def boxes(draw: st.DrawFn, width: float = 768.0, height: float = 576.0) -> LabelledBox:
    """A box inside an image, down to a thousandth of a pixel."""
    x, y = draw(st.floats(0, width - 0.01)), draw(st.floats(0, height - 0.01))
    across, down = draw(st.floats(0.001, width - x)), draw(st.floats(0.001, height - y))
    return LabelledBox(draw(st.sampled_from(CLASSES)), x, y, min(x + across, width), min(y + down, height))


def entry(**changes: Any) -> dict[str, Any]:
    """One box of a label."""
    return {"class": "person", "x_min": 1, "y_min": 2.5, "x_max": 3, "y_max": 4} | changes


@given(st.lists(boxes()))
def test_a_label_is_read_back(found: list[LabelledBox]) -> None:
    """Written as JSON and parsed, the boxes are the same, in their order; none at all too."""
    assert parse_boxes(json.loads(json.dumps(boxes_label(found))), CLASSES) == tuple(found)


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ({"class": "person"}, "no list of boxes"),
        ({"boxes": "none"}, "no list of boxes"),
        ({"boxes": [entry(), entry(**{"class": "cat"})]}, "box 2.*'cat' is not among"),
        ({"boxes": [entry(x_min=math.nan)]}, "box 1.*not a finite number"),
        ({"boxes": [entry(y_max=math.inf)]}, "not a finite number"),
        ({"boxes": [entry(x_max=0)]}, "out of order"),
        ({"boxes": [entry(y_max=2.5)]}, "no area"),
        ({"boxes": [entry(x_min="1")]}, "no number"),
        ({"boxes": [entry(x_min=True)]}, "no number"),
        ({"boxes": [entry(**{"class": None})]}, "no name"),
        ({"boxes": [entry(x_min=10**400)]}, "cannot be read"),
        ({"boxes": [{"class": "person"}]}, "cannot be read"),
        ({"boxes": [None]}, "cannot be read"),
    ],
)
def test_what_is_no_box_is_refused(label: dict[str, Any], reason: str) -> None:
    """The error names the box and what is wrong with it."""
    with pytest.raises(CatalogError, match=reason):
        parse_boxes(label, CLASSES)


def test_any_class_passes_where_none_are_named() -> None:
    """A label can be read without knowing the classes."""
    assert parse_boxes({"boxes": [entry(**{"class": "cat"})]})[0].class_name == "cat"


@given(st.lists(boxes()), st.floats(0.1, 10), st.floats(0.1, 10))
def test_scaling_is_undone_by_the_inverse(found: list[LabelledBox], factor_x: float, factor_y: float) -> None:
    """Each axis has its own factor, and going back gives the same corners."""
    scaled = scale_boxes(found, factor_x, factor_y)
    assert [box.width for box in scaled] == pytest.approx([box.width * factor_x for box in found], abs=1e-9)
    again = scale_boxes(scaled, 1 / factor_x, 1 / factor_y)
    assert [box.corners for box in again] == [pytest.approx(box.corners, abs=1e-9) for box in found]


@given(boxes(2000, 2000), st.integers(1, 1500), st.integers(1, 1500))
def test_a_clipped_box_is_inside_and_a_box_inside_is_not_clipped(box: LabelledBox, width: int, height: int) -> None:
    """What is left lies in the image and in the box; None says that nothing was in the image."""
    moved = LabelledBox(box.class_name, box.x_min - 500, box.y_min - 500, box.x_max - 500, box.y_max - 500)
    clipped = clip_box(moved, width, height)
    touches = moved.x_max > 0 and moved.y_max > 0 and moved.x_min < width and moved.y_min < height
    assert (clipped is not None) == touches
    if clipped is not None:
        assert 0 <= clipped.x_min < clipped.x_max <= width
        assert 0 <= clipped.y_min < clipped.y_max <= height
        assert clipped.width <= moved.width
        assert clip_box(clipped, width, height) == clipped


@given(st.lists(boxes(), max_size=8), st.lists(boxes(), max_size=8))
def test_pairs_are_of_one_class_and_nobody_is_in_two(left: list[LabelledBox], right: list[LabelledBox]) -> None:
    """Every box is paired at most once; the score lies in [0, 1] and does not ask who is left or right."""
    pairs = match_boxes(left, right)
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    assert all(left[i].class_name == right[j].class_name for i, j in pairs)
    assert 0 <= box_f1(left, right) <= 1
    assert box_f1(left, right) == box_f1(right, left)


def test_the_best_overlap_goes_first() -> None:
    """A box near two others is paired with the nearer one, whichever stands first."""
    near, far, box = (LabelledBox("person", x, 0, x + 10, 20) for x in (1, 3, 0))
    assert match_boxes([far, near], [box]) == [(1, 0)]
    assert match_boxes([near, far], [box]) == [(0, 0)]
    assert match_boxes([box], [LabelledBox("dog", 0, 0, 10, 20)]) == []
    assert match_boxes([box], [LabelledBox("person", 0, 0, 10, 10)]) == [(0, 0)]  # 0.5 is enough
    assert match_boxes([box], [LabelledBox("person", 0, 0, 10, 9.9)]) == []


def test_a_detected_box_is_what_its_largest_probability_says() -> None:
    """Over another number of classes it says nothing."""
    found = DetectedBox(box_id="b", x_min=0, y_min=0, x_max=4, y_max=5, probabilities=[0.2, 0.9])
    assert labelled_box(found, CLASSES) == LabelledBox("dog", 0, 0, 4, 5)
    with pytest.raises(CatalogError):
        labelled_box(found, ("person",))


def test_a_detector_may_look_for_one_thing_and_a_classifier_may_not() -> None:
    """One class is enough for boxes; a choice needs two; no class is no model."""
    assert LabelSpec(kind="detection", class_names=("person",), height=576, width=768).class_names == ("person",)
    for kind, names in (("classification", ("person",)), ("detection", ()), ("detection", ("dog", "dog"))):
        with pytest.raises(ValidationError):
            LabelSpec.model_validate({"kind": kind, "class_names": names, "height": 32, "width": 32})
