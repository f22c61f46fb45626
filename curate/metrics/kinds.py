"""From predictions and the labels people settled on to evidence: one line a kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from curate.catalog.boxes import corner_array, parse_boxes
from curate.catalog.verdicts import score_prediction
from curate.contracts.prediction import ClassificationPrediction, DetectedBox, DetectionPrediction, Prediction
from curate.errors import CatalogError
from curate.metrics.correctness import Correctness
from curate.metrics.detection import PredictedBoxes, TrueBoxes, match_frames
from curate.metrics.evidence import Evidence

Label = Mapping[str, Any]
Judge = Callable[[Sequence[Prediction], Sequence[Label], tuple[str, ...]], Evidence]


def judge_predictions(
    kind: str, predictions: Sequence[Prediction], labels: Sequence[Label], class_names: tuple[str, ...]
) -> Evidence:
    """Hold predictions against labels, row by row.

    Raises:
        CatalogError: nobody can judge this kind, or a prediction or a label does not fit the classes.
    """
    if kind not in JUDGES:
        raise CatalogError(f"{kind} predictions cannot be judged yet", hint=f"kinds: {', '.join(JUDGES)}")
    if len(predictions) != len(labels):
        raise CatalogError(f"{len(predictions)} predictions for {len(labels)} labels")
    return JUDGES[kind](predictions, labels, class_names)


def tell_apart(kind: str, left: Sequence[Prediction], right: Sequence[Prediction]) -> list[bool]:
    """Return row by row whether a label could show that one of two answers is better.

    Raises:
        CatalogError: with this kind any label could, as with boxes: whose confidence is higher matters to the metric
            although both show the same.
    """
    if kind not in DIFFER:
        raise CatalogError(
            f"{kind} predictions cannot be told apart without a label", hint=f"kinds: {', '.join(DIFFER)}"
        )
    return [DIFFER[kind](mine, yours) for mine, yours in zip(left, right, strict=True)]


def true_boxes(label: Label, class_names: tuple[str, ...]) -> TrueBoxes:
    """Return a detection label as the metrics take it.

    Raises:
        CatalogError: it is no such label, or names another class.
    """
    boxes = parse_boxes(label, class_names)
    return TrueBoxes.of(corner_array(boxes), [class_names.index(box.class_name) for box in boxes])


def predicted_boxes(boxes: Sequence[DetectedBox]) -> PredictedBoxes:
    """Return detected boxes as the metrics take them, the faint ones included: each class is a detection of its own."""
    corners = [(box.x_min, box.y_min, box.x_max, box.y_max) for box in boxes]
    return PredictedBoxes.from_probabilities(corners, [box.probabilities for box in boxes])


def _judge_classes(
    predictions: Sequence[Prediction], labels: Sequence[Label], class_names: tuple[str, ...]
) -> Correctness:
    pairs = zip(predictions, labels, strict=True)
    return Correctness(np.array([score_prediction(said, label, class_names) for said, label in pairs], np.float64))


def _judge_boxes(predictions: Sequence[Prediction], labels: Sequence[Label], class_names: tuple[str, ...]) -> Evidence:
    truth = [true_boxes(label, class_names) for label in labels]
    return match_frames([predicted_boxes(boxes_of(said)) for said in predictions], truth, len(class_names))


def _name_different_classes(left: Prediction, right: Prediction) -> bool:
    named = [each.class_index for each in (left, right) if isinstance(each, ClassificationPrediction)]
    return len(set(named)) != 1


def boxes_of(prediction: Prediction) -> Sequence[DetectedBox]:
    """Return the boxes of a detection, the faint ones included.

    Raises:
        CatalogError: the prediction is of another kind.
    """
    if not isinstance(prediction, DetectionPrediction):
        raise CatalogError(f"a prediction of kind {prediction.kind} holds no boxes")
    return prediction.boxes


JUDGES: Final[Mapping[str, Judge]] = {"classification": _judge_classes, "detection": _judge_boxes}
DIFFER: Final[Mapping[str, Callable[[Prediction, Prediction], bool]]] = {"classification": _name_different_classes}
