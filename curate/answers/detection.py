"""Detection: raw candidates become boxes in the captured frame's pixels, with what suppression and time reveal.

Which boxes travel? All that suppression leaves with a score of at least `RECORD_FLOOR`, at most `MAX_BOXES`, by falling
score: the cloud needs the faint ones for precision-recall curves. `DetectionPrediction.score_threshold` says from which
score on a box is shown to people. Ids are `b1`, `b2`, … in that order.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from curate.answers.base import (
    EMBEDDING,
    MAX_EMBEDDING_DIM,
    Answer,
    BadOutputError,
    Floats,
    Outputs,
    largest_difference,
    take_outputs,
    unit,
    verify_embedding,
    verify_shapes_equal,
    wire_embedding,
)
from curate.answers.boxes import Suppression, areas, pairwise_iou, scale_and_clip, suppress
from curate.answers.detection_scores import (
    CROWDING,
    ENTROPY,
    MARGIN,
    NEAR_MISS,
    SCORE_NAMES,
    UNCERTAINTY,
    combine,
    crowding_parts,
    entropy_parts,
    margin_parts,
    near_miss_parts,
    top_k_mean,
)
from curate.answers.tracking import Tracker
from curate.contracts.prediction import DetectedBox, DetectionPrediction, Prediction
from curate.contracts.release import ModelSpec

BOXES: Final = "boxes"
PROBABILITIES: Final = "probabilities"
BOX_EMBEDDINGS: Final = "box_embeddings"

CANDIDATE_FLOOR: Final = 0.05
"""Candidates with a lower score are noise."""
RECORD_FLOOR: Final = 0.1
MAX_BOXES: Final = 100
NMS_IOU: Final = 0.55
AGREEING_IOU: Final = 0.5
AGREEING_SLACK: Final = 0.1
DEFAULT_THRESHOLD: Final = 0.3
"""Boxes are shown from this score on, unless the model's specification says otherwise."""

_ORDER_TOLERANCE_PX: Final = 1e-3
_PROBABILITY_TOLERANCE: Final = 1e-5
"""Float32 sigmoids may leave [0, 1] by rounding."""


@dataclass(frozen=True, slots=True)
class DetectionAnswer:
    """Boxes after suppression, by falling score, in the captured frame's pixels."""

    boxes: Floats
    """[B, 4]."""
    probabilities: Floats
    """[B, K]."""
    box_embeddings: Floats
    """[B, E]; [B, 0] after `without_embeddings`."""
    scores: Mapping[str, float]
    embedding: Floats
    score_threshold: float

    @property
    def box_ids(self) -> frozenset[str]:
        """Ids of all boxes, the faint ones included."""
        return frozenset(_box_id(position) for position in range(len(self.boxes)))

    @property
    def size_bytes(self) -> int:
        """Memory of its arrays."""
        arrays = (self.boxes, self.probabilities, self.box_embeddings, self.embedding)
        return sum(array.nbytes + sys.getsizeof(array) for array in arrays)

    def agrees_with(self, other: Answer) -> bool:
        """Say whether each side has every box that the other shows: of its class, overlapping by `AGREEING_IOU`, and
        no more than `AGREEING_SLACK` below the threshold, for a score that wavers around it changes nothing."""
        return isinstance(other, DetectionAnswer) and _covers(self, other) and _covers(other, self)

    def scores_with(self, name: str) -> Mapping[str, float]:  # noqa: ARG002 - the port's shape
        """Return the scores."""
        return self.scores

    def without_embeddings(self) -> DetectionAnswer:
        """Return the same answer in less memory."""
        return replace(
            self, box_embeddings=np.empty((len(self.boxes), 0), np.float32), embedding=np.empty(0, np.float32)
        )

    def to_prediction(self, prediction_id: str, release_id: str) -> Prediction:
        """Return the wire form: coordinates to a hundredth of a pixel, probabilities to six decimals."""
        rows = zip(self.boxes.tolist(), self.probabilities.tolist(), self.box_embeddings, strict=True)
        return DetectionPrediction(
            prediction_id=prediction_id,
            release_id=release_id,
            scores=dict(self.scores),
            embedding=wire_embedding(self.embedding),
            score_threshold=self.score_threshold,
            boxes=[_wire_box(position, *row) for position, row in enumerate(rows)],
        )


def _covers(left: DetectionAnswer, right: DetectionAnswer) -> bool:
    """Say whether every box that `right` shows has its counterpart in `left`."""
    shown = right.probabilities.max(axis=1, initial=0.0) >= right.score_threshold
    if not shown.any():
        return True
    usable = left.probabilities.max(axis=1, initial=0.0) >= left.score_threshold - AGREEING_SLACK
    same = right.probabilities[shown].argmax(axis=1)[:, None] == left.probabilities[usable].argmax(axis=1)[None, :]
    near = pairwise_iou(right.boxes[shown], left.boxes[usable]) >= AGREEING_IOU
    return bool((same & near).any(axis=1).all())


def _box_id(position: int) -> str:
    return f"b{position + 1}"


def _wire_box(position: int, corners: list[float], probabilities: list[float], embedding: Floats) -> DetectedBox:
    x_min, y_min, x_max, y_max = (round(corner, 2) for corner in corners)
    return DetectedBox(
        box_id=_box_id(position),
        x_min=x_min,
        y_min=y_min,
        x_max=x_max,
        y_max=y_max,
        probabilities=[unit(p) for p in probabilities],
        embedding=wire_embedding(embedding),
    )


@dataclass(frozen=True, slots=True)
class _Candidates:
    """What is left of the raw answer above the floor, by falling score."""

    boxes: Floats
    probabilities: Floats
    embeddings: Floats
    scores: Floats
    classes: NDArray[np.intp]

    def take(self, rows: NDArray[np.intp]) -> _Candidates:
        return _Candidates(
            self.boxes[rows], self.probabilities[rows], self.embeddings[rows], self.scores[rows], self.classes[rows]
        )


class DetectionReader:
    """Reads one detector on one stream; it remembers tracks, nothing else."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._threshold = DEFAULT_THRESHOLD if spec.score_threshold is None else spec.score_threshold
        self._tracker = Tracker(self._threshold)

    def read(self, outputs: Outputs, frame_height: int, frame_width: int) -> DetectionAnswer:
        """Suppress, score and track one frame's candidates.

        Raises:
            BadOutputError: the outputs are not what the kind promises; the tracks stay as they were.
        """
        DETECTION.verify_outputs(outputs, self._spec)
        found = _candidates(outputs, self._spec, frame_height, frame_width)
        iou = pairwise_iou(found.boxes, found.boxes)
        suppression = suppress(iou, found.scores, found.classes, NMS_IOU)
        left = found.take(suppression.kept)
        recorded = left.take(np.flatnonzero(left.scores >= RECORD_FLOOR)[:MAX_BOXES])
        still = _still_scores(found, left, recorded, suppression, iou, self._threshold)
        self._tracker.update(recorded.boxes, recorded.scores)
        return DetectionAnswer(
            boxes=recorded.boxes,
            probabilities=recorded.probabilities,
            box_embeddings=recorded.embeddings,
            scores=combine(still, self._tracker.tracks, width=frame_width, height=frame_height),
            embedding=outputs[EMBEDDING],
            score_threshold=self._threshold,
        )


def _candidates(outputs: Outputs, spec: ModelSpec, frame_height: int, frame_width: int) -> _Candidates:
    """Return the candidates above the floor that lie in the frame, in its pixels."""
    probabilities = outputs[PROBABILITIES]
    scores = probabilities.max(axis=1, initial=0.0)
    rows = np.flatnonzero(scores >= CANDIDATE_FLOOR)
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    boxes = scale_and_clip(
        outputs[BOXES][rows],
        x_scale=frame_width / spec.width,
        y_scale=frame_height / spec.height,
        width=frame_width,
        height=frame_height,
    )
    inside = areas(boxes) > 0.0
    rows, boxes = rows[inside], boxes[inside]
    return _Candidates(
        boxes, probabilities[rows], outputs[BOX_EMBEDDINGS][rows], scores[rows], probabilities[rows].argmax(axis=1)
    )


def _still_scores(
    found: _Candidates,
    left: _Candidates,
    recorded: _Candidates,
    suppression: Suppression,
    iou: Floats,
    threshold: float,
) -> dict[str, float]:
    return {
        NEAR_MISS: top_k_mean(near_miss_parts(left.scores, threshold)),
        MARGIN: top_k_mean(margin_parts(recorded.probabilities)),
        ENTROPY: top_k_mean(entropy_parts(recorded.probabilities)),
        CROWDING: top_k_mean(crowding_parts(suppression, iou, found.scores, NMS_IOU)),
    }


class Detection:
    """Outputs `boxes` [C, 4] in the model's own pixels, `probabilities` [C, K], `box_embeddings` [C, E], `embedding`
    [D]: raw candidates without suppression. The class probabilities are independent; background is not among them."""

    output_names = (BOXES, PROBABILITIES, BOX_EMBEDDINGS, EMBEDDING)
    score_names = SCORE_NAMES
    default_score = UNCERTAINTY

    def verify_outputs(self, outputs: Outputs, spec: ModelSpec) -> None:
        """Accept ordered, finite boxes with probabilities in [0, 1].

        Raises:
            BadOutputError: a shape or a value is wrong.
        """
        boxes, probabilities, box_embeddings, embedding = take_outputs(outputs, self.output_names)
        if box_embeddings.ndim != 2 or not 0 < box_embeddings.shape[1] <= MAX_EMBEDDING_DIM:
            raise BadOutputError(f"box embeddings have the shape {box_embeddings.shape}")
        count = len(box_embeddings)
        shapes = (boxes.shape, probabilities.shape, embedding.shape)
        expected = ((count, 4), (count, len(spec.class_names)), (spec.embedding_dim,))
        if shapes != expected:
            raise BadOutputError(f"it answers with shapes {shapes}, its manifest says {expected}")
        for name, values in ((BOXES, boxes), (PROBABILITIES, probabilities), (BOX_EMBEDDINGS, box_embeddings)):
            if not bool(np.isfinite(values).all()):
                raise BadOutputError(f"{name} hold values that are not finite")
        verify_embedding(embedding)
        _verify_values(boxes, probabilities)

    def reader(self, spec: ModelSpec) -> DetectionReader:
        """Return a reader without tracks."""
        return DetectionReader(spec)

    def golden_difference(self, found: Outputs, expected: Outputs) -> float:
        """Return the largest of: the difference of the frame's embeddings, and of each candidate to its nearest
        counterpart on the other side.

        Candidates that score almost the same may swap places on another processor, and one may take the last place of
        another, so order means nothing. Between two candidates the distance is the larger of 1 - IoU and the
        largest difference of a probability. A candidate without a counterpart is off by its own score: to
        the other side it is one that scores nothing.

        Raises:
            BadOutputError: the shapes differ, or a value is not finite.
        """
        verify_shapes_equal(found, expected, self.output_names)
        for name in (BOXES, PROBABILITIES, BOX_EMBEDDINGS):
            largest_difference(found[name], expected[name])  # refuses what is not finite
        return max(
            largest_difference(found[EMBEDDING], expected[EMBEDDING]),
            _worst(found[BOXES], found[PROBABILITIES], expected[BOXES], expected[PROBABILITIES]),
        )

    def disagreement(self, left: Prediction, right: Prediction) -> float:
        """Return how far the worst box of either side is from its nearest counterpart, as `golden_difference` does:
        a box that moved counts as well as one whose score changed, and none for more than its own score.

        Raises:
            BadOutputError: one is of another kind, or over other classes.
        """
        sides = (*_wire_arrays(left), *_wire_arrays(right))
        if sides[1].size and sides[3].size and sides[1].shape[1] != sides[3].shape[1]:
            raise BadOutputError(f"boxes over {sides[1].shape[1]} and {sides[3].shape[1]} classes")
        return min(_worst(*sides), 1.0)

    def describe(self, prediction: Prediction, class_names: Sequence[str]) -> dict[str, Any]:
        """Return every box with its label, score, corners and whether it is to be shown; and the threshold.

        Raises:
            BadOutputError: the prediction is of another kind, or knows more classes.
        """
        if not isinstance(prediction, DetectionPrediction):
            raise BadOutputError("not a detection")
        if any(box.class_index >= len(class_names) for box in prediction.boxes):
            raise BadOutputError("not a detection over these classes")
        shown = {box.box_id for box in prediction.shown_boxes}
        return {
            "score_threshold": prediction.score_threshold,
            "boxes": [
                {
                    "box_id": box.box_id,
                    "label": class_names[box.class_index],
                    "class_index": box.class_index,
                    "score": box.score,
                    "x_min": box.x_min,
                    "y_min": box.y_min,
                    "x_max": box.x_max,
                    "y_max": box.y_max,
                    "shown": box.box_id in shown,
                }
                for box in prediction.boxes
            ],
        }


def _verify_values(boxes: Floats, probabilities: Floats) -> None:
    if bool((boxes[:, 2:] < boxes[:, :2] - _ORDER_TOLERANCE_PX).any()):
        raise BadOutputError("a box's corners are out of order")
    lowest, highest = probabilities.min(initial=0.0), probabilities.max(initial=1.0)
    if lowest < -_PROBABILITY_TOLERANCE or highest > 1.0 + _PROBABILITY_TOLERANCE:
        raise BadOutputError("a probability leaves [0, 1]")


def _wire_arrays(prediction: Prediction) -> tuple[Floats, Floats]:
    """Return the boxes [B, 4] of a detection, the faint ones included, and their probabilities [B, K]."""
    if not isinstance(prediction, DetectionPrediction):
        raise BadOutputError("not a detection")
    boxes = prediction.boxes
    if len({len(box.probabilities) for box in boxes}) > 1:
        raise BadOutputError("boxes over different classes")
    corners = [(box.x_min, box.y_min, box.x_max, box.y_max) for box in boxes]
    probabilities = np.array([box.probabilities for box in boxes], np.float32)
    return np.array(corners, np.float32).reshape(-1, 4), probabilities.reshape(len(boxes), -1 if boxes else 0)


def _worst(boxes: Floats, probabilities: Floats, other_boxes: Floats, other_probabilities: Floats) -> float:
    """Return how far the worst candidate of either side is from its nearest counterpart: boxes [C, 4] with
    probabilities [C, K] against [D, 4] with [D, K]. See `Detection.golden_difference`."""
    apart = 1.0 - pairwise_iou(boxes, other_boxes)
    for left, right in zip(probabilities.T, other_probabilities.T, strict=False):  # a side without boxes has no columns
        apart = np.maximum(apart, np.abs(left[:, None] - right[None, :]))
    return max(_farthest(apart, probabilities), _farthest(apart.T, other_probabilities))


def _farthest(apart: Floats, probabilities: Floats) -> float:
    """Return the largest distance [I, J] from a candidate to its nearest, or its own score where that is less."""
    nearest = np.minimum(apart.min(axis=1, initial=1.0), probabilities.max(axis=1, initial=0.0))
    return float(nearest.max(initial=0.0))


DETECTION: Final = Detection()
