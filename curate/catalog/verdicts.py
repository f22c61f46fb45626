"""Was a prediction right, given what people settled on? One judge a prediction kind (pure)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from curate.contracts.prediction import ClassificationPrediction, Prediction
from curate.errors import CatalogError


def is_correct(prediction: Prediction, label: Mapping[str, Any], class_names: tuple[str, ...]) -> bool:
    """Return whether the prediction agrees with the label.

    Raises:
        CatalogError: no judge knows this kind, or the prediction does not fit the classes.
    """
    judge = _JUDGES.get(prediction.kind)
    if judge is None:
        raise CatalogError(f"predictions of kind {prediction.kind} cannot be judged yet")
    return judge(prediction, label, class_names)


def _judge_classification(
    prediction: ClassificationPrediction, label: Mapping[str, Any], class_names: tuple[str, ...]
) -> bool:
    if len(prediction.probabilities) != len(class_names):
        raise CatalogError(f"{len(prediction.probabilities)} probabilities for {len(class_names)} classes")
    return bool(class_names[prediction.class_index] == label["class"])


_JUDGES: dict[str, Callable[[Any, Mapping[str, Any], tuple[str, ...]], bool]] = {
    "classification": _judge_classification,
}
