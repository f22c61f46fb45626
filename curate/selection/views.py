"""From what a model says of each frame to what selection compares frames by: one line a kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from curate.answers.registry import ANSWERS
from curate.contracts.prediction import ClassificationPrediction, DetectedBox, DetectionPrediction, Prediction
from curate.errors import SelectionError
from curate.selection.base import Float32Array, Float64Array, IntArray
from curate.selection.box_view import FrameBoxes, box_uncertainty, describe_frames

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class FrameViews:
    """Row i is frame i: `embeddings` float32 [N, D] to compare by, `probabilities` float32 [N, K] or None,
    `uncertainty` float64 [N] or None (one of the two is there), `boxes` float64 [N] that a person will likely draw.
    """

    embeddings: Float32Array
    probabilities: Float32Array | None
    uncertainty: Float64Array | None
    boxes: Float64Array


def view_frames(
    kind: str, predictions: Sequence[Prediction], embeddings: Float32Array, sizes: Sequence[tuple[int, int]]
) -> FrameViews:
    """See N frames through one model's predictions. `embeddings` float32 [N, D] are the model's own of whole frames,
    `sizes` the frames' heights and widths in pixels. Frames that shall be compared belong into one call.

    Raises:
        SelectionError: frames of this kind cannot be compared, or a prediction is of another kind.
    """
    if kind not in VIEWS:
        raise SelectionError(f"frames of {kind} models cannot be compared yet", hint=f"kinds: {', '.join(VIEWS)}")
    return VIEWS[kind](predictions, embeddings, sizes)


def _view_classes(
    predictions: Sequence[Prediction],
    embeddings: Float32Array,
    sizes: Sequence[tuple[int, int]],  # noqa: ARG001 (the view's)
) -> FrameViews:
    rows = [_expect(said, ClassificationPrediction).probabilities for said in predictions]
    probabilities = np.array(rows, np.float32).reshape(len(rows), len(rows[0]) if rows else 0)
    return FrameViews(embeddings, probabilities, None, np.zeros(len(rows)))


def _view_boxes(
    predictions: Sequence[Prediction],
    embeddings: Float32Array,  # noqa: ARG001 (of a fixed camera they are all alike)
    sizes: Sequence[tuple[int, int]],
) -> FrameViews:
    said = [_expect(each, DetectionPrediction) for each in predictions]
    score = ANSWERS["detection"].default_score
    return FrameViews(
        embeddings=describe_frames([_frame_boxes(*each) for each in zip(said, sizes, strict=True)]),
        probabilities=None,
        uncertainty=np.array([each.scores.get(score, 0.0) for each in said], np.float64),
        boxes=np.array([sum(box.score for box in each.boxes) for each in said], np.float64),
    )


def _frame_boxes(prediction: DetectionPrediction, size: tuple[int, int]) -> FrameBoxes:
    """Faint boxes tell about a frame, too: `box_uncertainty` weighs them."""
    boxes = [box for box in prediction.boxes if box.embedding is not None]
    height, width = size
    corners = np.array([(box.x_min, box.y_min, box.x_max, box.y_max) for box in boxes], np.float64).reshape(-1, 4)
    probabilities = np.array([box.probabilities for box in boxes], np.float32).reshape(len(boxes), -1 if boxes else 1)
    return FrameBoxes(
        embeddings=_embeddings(boxes),
        classes=_classes(boxes),
        uncertainty=box_uncertainty(probabilities),
        corners=corners / (width, height, width, height),
    )


def _embeddings(boxes: Sequence[DetectedBox]) -> Float32Array:
    rows: list[NDArray[np.float16]] = [
        np.frombuffer(box.embedding.raw(), "<f2") for box in boxes if box.embedding is not None
    ]
    return np.array(rows, np.float32).reshape(len(rows), -1 if rows else 1)


def _classes(boxes: Sequence[DetectedBox]) -> IntArray:
    return np.array([box.class_index for box in boxes], np.int64)


def _expect(prediction: Prediction, kind: type[T]) -> T:
    if not isinstance(prediction, kind):
        raise SelectionError(f"a prediction of kind {prediction.kind} among others")
    return prediction


VIEWS: Final[Mapping[str, Callable[[Sequence[Prediction], Float32Array, Sequence[tuple[int, int]]], FrameViews]]] = {
    "classification": _view_classes,
    "detection": _view_boxes,
}
SEEN_ALONE: Final = frozenset({"classification"})
"""Kinds whose frames are compared by what the model says of each by itself: such a pool can be read in parts."""
