"""How right was a prediction, given what people settled on? One judge a prediction kind (pure)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from curate.catalog.boxes import box_f1, labelled_box, match_boxes, parse_boxes
from curate.contracts.prediction import ClassificationPrediction, DetectionPrediction, Prediction
from curate.errors import CatalogError


def is_correct(prediction: Prediction, label: Mapping[str, Any], class_names: tuple[str, ...]) -> bool:
    """Return whether the prediction agrees with the label in everything.

    Raises:
        CatalogError: no judge knows this kind, or the prediction or the label does not fit the classes.
    """
    return score_prediction(prediction, label, class_names) >= 1.0


def score_prediction(prediction: Prediction, label: Mapping[str, Any], class_names: tuple[str, ...]) -> float:
    """Return how much of the prediction agrees with the label, in [0, 1].

    A class is right or wrong, 1 or 0. Of boxes it is the F1 score of the frame: shown boxes and labelled boxes of one
    class are paired at an overlap of at least `MATCHING_IOU`; 1 says that every object is found, at its place, as
    what it is, and nothing else is shown.

    Raises:
        CatalogError: no judge knows this kind, or the prediction or the label does not fit the classes.
    """
    judge = _JUDGES.get(prediction.kind)
    if judge is None:
        raise CatalogError(f"predictions of kind {prediction.kind} cannot be judged yet")
    return judge(prediction, label, class_names)


def is_contradicted(
    prediction: Prediction, box_id: str | None, label: Mapping[str, Any], class_names: tuple[str, ...]
) -> bool | None:
    """Return whether the label contradicts what a person called wrong: one shown box, or without one the whole answer.

    A box stands when it is paired with a labelled one of its class, each at most once, as in `score_prediction`. None
    when the prediction shows no such box.

    Raises:
        CatalogError: no judge knows this kind, or the prediction or the label does not fit the classes.
    """
    if box_id is None:
        return not is_correct(prediction, label, class_names)
    shown = prediction.shown_boxes if isinstance(prediction, DetectionPrediction) else ()
    place = next((number for number, box in enumerate(shown) if box.box_id == box_id), None)
    if place is None:
        return None
    pairs = match_boxes([labelled_box(box, class_names) for box in shown], parse_boxes(label, class_names))
    return place not in {number for number, _ in pairs}


def _score_class(prediction: ClassificationPrediction, label: Mapping[str, Any], class_names: tuple[str, ...]) -> float:
    if len(prediction.probabilities) != len(class_names):
        raise CatalogError(f"{len(prediction.probabilities)} probabilities for {len(class_names)} classes")
    return float(class_names[prediction.class_index] == label["class"])


def _score_boxes(prediction: DetectionPrediction, label: Mapping[str, Any], class_names: tuple[str, ...]) -> float:
    answered = [labelled_box(box, class_names) for box in prediction.shown_boxes]
    return box_f1(parse_boxes(label, class_names), answered)


_JUDGES: dict[str, Callable[[Any, Mapping[str, Any], tuple[str, ...]], float]] = {
    "classification": _score_class,
    "detection": _score_boxes,
}
