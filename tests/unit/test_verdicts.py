"""Whether a prediction was right, and how right, for each kind."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.catalog.boxes import LabelledBox, boxes_label
from curate.catalog.verdicts import is_contradicted, is_correct, score_prediction
from curate.contracts.prediction import ClassificationPrediction, DetectedBox, DetectionPrediction
from curate.errors import CatalogError

CLASSES = ("person", "dog")


def detection(*found: tuple[LabelledBox, float]) -> DetectionPrediction:
    """A prediction of boxes with these probabilities of their class."""
    boxes = [
        DetectedBox(
            box_id=f"b{number}",
            **dict(zip(("x_min", "y_min", "x_max", "y_max"), box.corners, strict=True)),
            probabilities=[probability if name == box.class_name else 0.01 for name in CLASSES],
        )
        for number, (box, probability) in enumerate(found)
    ]
    return DetectionPrediction(prediction_id="p", release_id="r", boxes=boxes, score_threshold=0.3)


def person(x: float, y: float = 10, name: str = "person") -> LabelledBox:
    """A box of ten by twenty pixels."""
    return LabelledBox(name, x, y, x + 10, y + 20)


@pytest.mark.parametrize(
    ("prediction", "truth", "score"),
    [
        (detection(), [], 1.0),
        (detection((person(0), 0.9)), [person(0)], 1.0),
        (detection((person(2), 0.3)), [person(0)], 1.0),
        (detection((person(0), 0.9), (person(300), 0.29)), [person(0)], 1.0),
        (detection((person(0), 0.29)), [person(0)], 0.0),
        (detection((person(0), 0.9)), [], 0.0),
        (detection(), [person(0)], 0.0),
        (detection((person(0, name="dog"), 0.9)), [person(0)], 0.0),
        (detection((person(0), 0.9), (person(1), 0.8)), [person(0)], 2 / 3),
        (detection((person(0), 0.9), (person(90), 0.9)), [person(0), person(50)], 0.5),
        (detection((person(8), 0.9)), [person(0)], 0.0),
    ],
)
def test_boxes_are_right_when_each_is_found_once_and_nothing_else_is_shown(
    prediction: DetectionPrediction, truth: list[LabelledBox], score: float
) -> None:
    """Missed, invented, doubled, misplaced and misnamed boxes cost; boxes that were not shown do not count."""
    assert score_prediction(prediction, boxes_label(truth), CLASSES) == pytest.approx(score)
    assert is_correct(prediction, boxes_label(truth), CLASSES) == (score == 1.0)


@given(st.lists(st.integers(0, 30), unique=True, max_size=8), st.randoms(use_true_random=False))
def test_the_order_of_boxes_says_nothing(places: list[int], random: Any) -> None:
    """A frame whose boxes are listed in another order is judged the same."""
    truth = [person(25.0 * place) for place in places]
    found = [(box, 0.5) for box in truth]
    random.shuffle(found)
    assert is_correct(detection(*found), boxes_label(truth), CLASSES)


def test_a_class_is_right_or_wrong() -> None:
    """There is nothing between."""
    prediction = ClassificationPrediction(prediction_id="p", release_id="r", probabilities=[0.2, 0.8])
    assert [score_prediction(prediction, {"class": name}, CLASSES) for name in CLASSES] == [0.0, 1.0]
    assert [is_correct(prediction, {"class": name}, CLASSES) for name in CLASSES] == [False, True]


def test_other_classes_and_other_kinds_cannot_be_judged() -> None:
    """A prediction over another number of classes, and a label of another kind, are errors and never 'wrong'."""
    classes = ("person", "dog", "cat")
    with pytest.raises(CatalogError):
        score_prediction(detection((person(0), 0.9)), {"boxes": []}, classes)
    with pytest.raises(CatalogError):
        score_prediction(detection(), {"class": "dog"}, CLASSES)
    wide = ClassificationPrediction(prediction_id="p", release_id="r", probabilities=[0.2, 0.8])
    with pytest.raises(CatalogError):
        is_correct(wide, {"class": "dog"}, classes)


def test_what_a_person_called_wrong_is_judged_box_by_box() -> None:
    """A box is contradicted when no labelled one of its class is its own; without a box the whole answer is judged."""
    prediction = detection((person(0), 0.9), (person(1), 0.8), (person(300), 0.9), (person(90, name="dog"), 0.9))
    label = boxes_label([person(0), person(90)])
    judged = {f"b{number}": is_contradicted(prediction, f"b{number}", label, CLASSES) for number in range(4)}
    assert judged == {"b0": False, "b1": True, "b2": True, "b3": True}
    assert is_contradicted(prediction, None, label, CLASSES)
    assert is_contradicted(detection((person(0), 0.9)), None, boxes_label([person(0)]), CLASSES) is False


def test_a_box_that_was_not_shown_cannot_be_judged() -> None:
    """A verdict about a box the prediction does not show, or about a box of a class answer, says nothing."""
    faint = detection((person(0), 0.1))
    assert is_contradicted(faint, "b0", boxes_label([]), CLASSES) is None
    assert is_contradicted(faint, "b9", boxes_label([]), CLASSES) is None
    named = ClassificationPrediction(prediction_id="p", release_id="r", probabilities=[0.2, 0.8])
    assert is_contradicted(named, "b0", {"class": "dog"}, CLASSES) is None
    assert is_contradicted(named, None, {"class": "person"}, CLASSES) is True
