"""Boxes in Label Studio's words: percent and pixel, turned and tiny, none at all."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.annotation.formats import FORMATS, format_of, image_size, import_request, task_data
from curate.annotation.models import AnnotationTask, ImageSize
from curate.catalog.boxes import LabelledBox, boxes_label, parse_boxes
from curate.catalog.labels import LabelSpec, load_label_spec
from curate.contracts.prediction import DetectedBox, DetectionPrediction
from curate.errors import AnnotationError

LABELS = load_label_spec(Path(__file__).parents[2] / "configs" / "labels-detection.yaml")
TWO = LabelSpec(kind="detection", class_names=("person", "dog"), height=576, width=768)
SIZE = ImageSize(768, 576)
BOXES = FORMATS["detection"]


@st.composite
def sized_boxes(draw: st.DrawFn) -> tuple[ImageSize, list[LabelledBox]]:
    """An image of any size with boxes in it, some a millionth of a pixel wide."""
    size = ImageSize(draw(st.integers(8, 4096)), draw(st.integers(8, 4096)))
    found = []
    for _ in range(draw(st.integers(0, 6))):
        x, y = draw(st.floats(0, size.width - 0.001)), draw(st.floats(0, size.height - 0.001))
        x_max = draw(st.floats(x + 1e-6, size.width))
        y_max = draw(st.floats(y + 1e-6, size.height))
        found.append(LabelledBox(draw(st.sampled_from(TWO.class_names)), x, y, x_max, y_max))
    return size, found


def region(**value: Any) -> dict[str, Any]:
    """A region as the page saves it."""
    shape = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0, "rectanglelabels": ["person"]} | value
    return {
        "type": "rectanglelabels",
        "original_width": 768,
        "original_height": 576,
        "image_rotation": 0,
        "value": shape,
    }


def corners(label: dict[str, Any]) -> list[tuple[float, float, float, float]]:
    """The corners of a label's boxes."""
    return [box.corners for box in parse_boxes(label)]


def prediction(*found: DetectedBox) -> DetectionPrediction:
    """What the device saw."""
    return DetectionPrediction(prediction_id="p-1", release_id="r-7", boxes=list(found), score_threshold=0.3)


def detected(box_id: str, x: float, probability: float, side: float = 50) -> DetectedBox:
    """A square box of a person."""
    return DetectedBox(box_id=box_id, x_min=x, y_min=100, x_max=x + side, y_max=100 + side, probabilities=[probability])


def task(guess: DetectionPrediction | None, *, blind: bool = False) -> AnnotationTask:
    """A question about one frame."""
    return AnnotationTask("s-1", "s3://b/captures/c/x.jpg", 3, 768, 576, guess, {"camera": "c"}, blind=blind)


@given(sized_boxes())
def test_percent_and_pixel_are_exact(drawn: tuple[ImageSize, list[LabelledBox]]) -> None:
    """Boxes that go to the page as JSON and come back are the same within a millionth of a pixel, and all there."""
    size, found = drawn
    label = boxes_label(found)
    again = BOXES.parse(json.loads(json.dumps(BOXES.encode(label, size))), TWO, size)
    assert [box["class"] for box in again["boxes"]] == [box.class_name for box in found]
    assert corners(again) == [pytest.approx(box.corners, abs=1e-6, rel=0) for box in found]


def test_each_axis_has_its_own_percent() -> None:
    """A tenth of the width is not a tenth of the height."""
    assert corners(BOXES.parse([region()], LABELS, SIZE)) == [pytest.approx((76.8, 115.2, 307.2, 345.6))]


def test_an_empty_frame_is_an_answer() -> None:
    """No regions say that nothing is there."""
    assert BOXES.parse([], LABELS, SIZE) == {"boxes": []}
    assert BOXES.encode({"boxes": []}, SIZE) == []


def test_a_turned_box_becomes_the_upright_one_around_it() -> None:
    """A quarter turn clockwise about the top left corner, in an image that is not square, lies left of that corner."""
    turned = BOXES.parse([region(x=50, y=50, width=100 * 60 / 768, height=100 * 20 / 576, rotation=90)], LABELS, SIZE)
    assert corners(turned) == [pytest.approx((384 - 20, 288, 384, 288 + 60))]


@given(st.floats(-720, 720), st.floats(1, 150), st.floats(1, 150))
def test_every_corner_of_a_turned_box_is_inside_the_upright_one(degrees: float, width: float, height: float) -> None:
    """The upright box holds the turned one, touches it on all four sides, and is no smaller than it."""
    turned = region(x=50, y=50, width=100 * width / 768, height=100 * height / 576, rotation=degrees)
    ((left, top, right, bottom),) = corners(BOXES.parse([turned], LABELS, SIZE))
    angle = math.radians(degrees)
    xs = [384 + a * math.cos(angle) - b * math.sin(angle) for a in (0, width) for b in (0, height)]
    ys = [288 + a * math.sin(angle) + b * math.cos(angle) for a in (0, width) for b in (0, height)]
    assert (left, top, right, bottom) == pytest.approx((min(xs), min(ys), max(xs), max(ys)), abs=1e-6)
    assert (right - left) * (bottom - top) >= width * height - 1e-6


def test_a_box_over_the_border_is_cut() -> None:
    """What lies in the image counts; what lies outside of it, or has no area, marks nothing."""
    over = [region(x=-10, y=90, width=30, height=30)]
    assert corners(BOXES.parse(over, LABELS, SIZE)) == [pytest.approx((0, 518.4, 153.6, 576))]
    nothing = [region(x=101, width=5), region(width=0), region(y=-50, height=10)]
    assert BOXES.parse(nothing, LABELS, SIZE) == {"boxes": []}


def test_a_region_says_its_size_where_the_task_does_not() -> None:
    """Tasks of an older version hold no size; one that does is believed."""
    assert BOXES.parse([region()], LABELS) == BOXES.parse([region()], LABELS, SIZE)
    other = region() | {"original_width": 100, "original_height": 100}
    assert BOXES.parse([other], LABELS, SIZE) == BOXES.parse([region()], LABELS, SIZE)
    assert image_size(task_data(task(None))) == SIZE
    for data in ({}, {"width": 768}, {"width": 0, "height": 5}, {"width": "768", "height": "576"}):
        assert image_size(data) is None


@pytest.mark.parametrize(
    "bad",
    [
        region(rectanglelabels=[]),
        region(rectanglelabels=["person", "person"]),
        region(rectanglelabels=["cat"]),
        region(rectanglelabels=None),
        region(x=math.nan),
        region(width=-1),
        region(height="tall"),
        region(rotation=math.inf),
        region() | {"type": "polygonlabels"},
        region() | {"image_rotation": 90},
        region() | {"value": None},
        {"type": "rectanglelabels"},
        {},
        None,
    ],
)
def test_an_answer_that_makes_no_sense_is_refused(bad: Any) -> None:
    """Unknown classes and shapes and impossible numbers are errors, never a guess; the box beside them is no excuse."""
    with pytest.raises(AnnotationError):
        BOXES.parse([region(), bad], LABELS, SIZE)


def test_without_any_size_nothing_is_known() -> None:
    """Percent of an unknown image cannot be read or written."""
    unsized = {name: value for name, value in region().items() if not name.startswith("original")}
    with pytest.raises(AnnotationError):
        BOXES.parse([unsized], LABELS)
    with pytest.raises(AnnotationError):
        BOXES.encode({"boxes": []})
    with pytest.raises(AnnotationError):
        BOXES.encode({"class": "person"}, SIZE)


def test_the_guess_holds_the_shown_boxes_the_large_ones_below() -> None:
    """Each shows its probability and keeps its id; the guess is as sure as its least sure box."""
    guess = prediction(detected("a", 10, 0.31, side=20), detected("b", 200, 0.95), detected("c", 400, 0.29))
    (shown,) = import_request(task(guess), LABELS)["predictions"]
    assert [(each["id"], each["score"]) for each in shown["result"]] == [("b", 0.95), ("a", 0.31)]
    assert shown["score"] == 0.31
    assert corners(BOXES.parse(shown["result"], LABELS, SIZE)) == [
        pytest.approx((200, 100, 250, 150)),
        pytest.approx((10, 100, 30, 120)),
    ]
    (everything,) = import_request(task(guess.model_copy(update={"score_threshold": None})), LABELS)["predictions"]
    assert len(everything["result"]) == 3


def test_a_guess_that_does_not_fit_is_left_out() -> None:
    """Other classes, nothing probable, boxes outside of the image: the question is asked all the same."""
    assert import_request(task(prediction()), LABELS)["predictions"] == []
    assert import_request(task(None), LABELS)["predictions"] == []
    assert import_request(task(prediction(detected("a", 900, 0.9))), LABELS)["predictions"] == []
    assert import_request(task(prediction(detected("a", 9, 0.9))), TWO)["predictions"] == []


def test_a_blind_question_shows_no_guess() -> None:
    """Whoever measures the model must not see its answer; which release it was stays in the data."""
    guess = prediction(detected("a", 10, 0.9))
    request = import_request(task(guess, blind=True), LABELS)
    assert request["predictions"] == []
    assert request["data"] == import_request(task(guess), LABELS)["data"]


def test_the_page_names_the_classes_and_its_variables_are_in_every_task() -> None:
    """Label Studio refuses a task that lacks a variable; one key a class; nothing can be turned."""
    page = BOXES.label_config(TWO)
    root = ET.fromstring(page)
    assert [(each.get("value"), each.get("hotkey")) for each in root.iter("Label")] == [("person", "1"), ("dog", "2")]
    assert [each.get("canRotate") for each in root.iter("RectangleLabels")] == ["false"]
    assert [each.get("rotateControl") for each in root.iter("Image")] == ["false"]
    variables = set(re.findall(r"\$(\w+)", page))
    assert variables <= {name for name, value in task_data(task(None)).items() if value}
    with pytest.raises(AnnotationError):
        BOXES.label_config(TWO.model_copy(update={"class_names": ("$cash",)}))


def test_every_kind_of_labels_has_its_format() -> None:
    """The registry decides, and what to do is said for people in each kind's words."""
    assert format_of(LABELS) is BOXES
    assert len({each.instruction for each in FORMATS.values()}) == len(FORMATS)
