"""Measuring a detector by COCO's rules: pycocotools matches boxes (its only home), the rest weighs what it found."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from curate.errors import Error
from curate.metrics.average_precision import IOU_THRESHOLDS, DetectionEvidence, Measure
from curate.metrics.evidence import Float64Array, IntArray, Interval

MAX_DETECTIONS = 100
"""Detections a frame and class that count, best first: COCO's own limit."""
NO_ID = 0
"""COCOeval writes 0 for "not matched", so ids start at 1."""


class MetricsError(Error):
    """Predictions and truth cannot be held against each other."""


@dataclass(frozen=True, eq=False)
class TrueBoxes:
    """The true boxes of one frame: `corners` float64 [m, 4] (x_min, y_min, x_max, y_max), `classes` int64 [m].

    Raises `MetricsError` on wrong shapes, or on a box that is not finite or has no area: it could match anything.
    """

    corners: Float64Array
    classes: IntArray

    def __post_init__(self) -> None:
        _verify_boxes(self.corners, self.classes)
        if not (self.corners[:, 2:] > self.corners[:, :2]).all():
            raise MetricsError("a true box has no area")

    @classmethod
    def of(cls, corners: ArrayLike, classes: ArrayLike) -> TrueBoxes:
        """Build from anything shaped like boxes; empty lists are none."""
        return cls(np.asarray(corners, np.float64).reshape(-1, 4), np.asarray(classes, np.int64).reshape(-1))


@dataclass(frozen=True, eq=False)
class PredictedBoxes:
    """The predicted boxes of one frame: `corners` float64 [n, 4], `classes` int64 [n], `scores` float64 [n].

    Raises `MetricsError` on wrong shapes, corners out of order or numbers that are not finite.
    """

    corners: Float64Array
    classes: IntArray
    scores: Float64Array

    def __post_init__(self) -> None:
        _verify_boxes(self.corners, self.classes)
        if self.scores.shape != self.classes.shape or not np.isfinite(self.scores).all():
            raise MetricsError("every predicted box needs one finite score")
        if not (self.corners[:, 2:] >= self.corners[:, :2]).all():
            raise MetricsError("a predicted box has its corners out of order")

    @classmethod
    def of(cls, corners: ArrayLike, classes: ArrayLike, scores: ArrayLike) -> PredictedBoxes:
        """Build from anything shaped like boxes with a class and a score each; empty lists are none."""
        flat = np.asarray(classes, np.int64).reshape(-1)
        return cls(np.asarray(corners, np.float64).reshape(-1, 4), flat, np.asarray(scores, np.float64).reshape(-1))

    @classmethod
    def from_probabilities(cls, corners: ArrayLike, probabilities: ArrayLike) -> PredictedBoxes:
        """Build from `probabilities` [n, K] of independent classes: each class above 0 is a detection of its own."""
        boxes = np.asarray(corners, np.float64).reshape(-1, 4)
        scores = np.asarray(probabilities, np.float64)
        if scores.size == 0:
            return cls.of([], [], [])
        if scores.ndim != 2 or len(scores) != len(boxes):
            raise MetricsError(f"{len(boxes)} boxes but probabilities of shape {scores.shape}")
        row, column = np.nonzero(scores > 0)
        return cls.of(boxes[row], column, scores[row, column])


@dataclass(frozen=True)
class Measured:
    """A number with its 95 % interval; NaN and (0, 1) where there is nothing to measure."""

    value: float
    ci95: Interval


@dataclass(frozen=True)
class DetectionQuality:
    """How good a detector is on `frames` frames with `truths` true boxes in `blocks` blocks of time."""

    ap50: Measured
    ap50_95: Measured
    recall_at_1_fp: Measured
    frames: int
    truths: int
    blocks: int


@dataclass(frozen=True)
class DetectionReport:
    """Quality over all frames, per camera, and per slice: `slices[slicing][name]`."""

    overall: DetectionQuality
    cameras: Mapping[str, DetectionQuality]
    slices: Mapping[str, Mapping[str, DetectionQuality]] = field(default_factory=dict)


def match_frames(
    predicted: Sequence[PredictedBoxes], truth: Sequence[TrueBoxes], class_count: int
) -> DetectionEvidence:
    """Match predictions with truth on every frame by COCO's greedy rule (COCOeval.evaluateImg), each frame alone.

    Best score first, each detection takes the free true box of its class that it overlaps most, if at least at the IoU
    threshold. At most 100 detections a frame and class count. Equal scores keep the order of frames and boxes.
    Frames without truth, without predictions or without both are legitimate.
    Raises `MetricsError` when the lengths differ or a class index is outside [0, class_count).
    """
    if len(predicted) != len(truth):
        raise MetricsError(f"{len(predicted)} frames with predictions but {len(truth)} with truth")
    for boxes in (each.classes for frames in (predicted, truth) for each in frames):
        if not ((boxes >= 0) & (boxes < class_count)).all():
            raise MetricsError(f"a class index is outside the {class_count} classes")
    truths = np.zeros((len(truth), class_count), np.int64)
    for row, true in enumerate(truth):
        truths[row] = np.bincount(true.classes, minlength=class_count)
    matches = [match for match in _coco_matches(predicted, truth, class_count) if len(match["dtScores"])]
    if not matches:
        nobody = np.empty(0, np.int64)
        return DetectionEvidence(nobody, nobody, np.empty(0), np.empty((len(IOU_THRESHOLDS), 0), np.bool_), truths)
    frame = np.concatenate([np.full(len(m["dtScores"]), m["image_id"] - 1, np.int64) for m in matches])
    classes = np.concatenate([np.full(len(m["dtScores"]), m["category_id"] - 1, np.int64) for m in matches])
    scores = np.concatenate([np.asarray(m["dtScores"], np.float64) for m in matches])
    matched = np.concatenate([np.asarray(m["dtMatches"]) != NO_ID for m in matches], axis=1)
    order = np.argsort(-scores, kind="stable")
    return DetectionEvidence(frame[order], classes[order], scores[order], matched[:, order], truths)


def evaluate_detection(
    evidence: DetectionEvidence,
    blocks: Sequence[str],
    *,
    cameras: Sequence[str] = (),
    slices: Mapping[str, Sequence[str]] | None = None,
    weights: Float64Array | None = None,
) -> DetectionReport:
    """Measure overall, per camera and per slice, with intervals from a bootstrap over blocks of time.

    `blocks` [n] names each frame's camera and block of time, `cameras` [n] its camera, each sequence in `slices` [n]
    the part it belongs to (say `{"light": [...]}`); `weights` float64 [n] is 1/π (default: all frames alike).
    Raises `MetricsError` when a length differs from the evidence's.
    """
    weight = np.ones(len(evidence)) if weights is None else np.asarray(weights, np.float64)
    slicings = dict(slices or {})
    lengths = {len(blocks), len(weight), *map(len, slicings.values()), *({len(cameras)} if cameras else ())}
    if lengths != {len(evidence)}:
        raise MetricsError(f"the evidence has {len(evidence)} frames, its columns {sorted(lengths)}")

    def parts(names: Sequence[str]) -> dict[str, DetectionQuality]:
        rows = {name: np.flatnonzero(np.asarray(names) == name) for name in sorted(set(names))}
        return {name: _quality(evidence.take(row), weight[row], [blocks[i] for i in row]) for name, row in rows.items()}

    return DetectionReport(
        overall=_quality(evidence, weight, blocks),
        cameras=parts(cameras),
        slices={slicing: parts(names) for slicing, names in slicings.items()},
    )


def _quality(evidence: DetectionEvidence, weights: Float64Array, blocks: Sequence[str]) -> DetectionQuality:
    def measured(measure: Measure) -> Measured:
        about = evidence.measuring(measure)
        return Measured(about.value(weights), about.interval(weights, blocks))

    return DetectionQuality(
        ap50=measured("AP50"),
        ap50_95=measured("AP50-95"),
        recall_at_1_fp=measured("recall at 1 false positive a frame"),
        frames=len(evidence),
        truths=int(evidence.truths.sum()),
        blocks=len(set(blocks)),
    )


def _coco_matches(
    predicted: Sequence[PredictedBoxes], truth: Sequence[TrueBoxes], class_count: int
) -> list[dict[str, Any]]:
    """Return COCOeval's record of every class and frame that has a box, in the order it accumulates them."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress by print
        judge = COCOeval(_coco(truth, class_count), _coco(predicted, class_count), "bbox")
        judge.params.maxDets = [MAX_DETECTIONS]
        judge.params.areaRng, judge.params.areaRngLbl = [[0.0, float("inf")]], ["all"]
        judge.params.iouThrs = IOU_THRESHOLDS
        judge.evaluate()
    return [match for match in judge.evalImgs if match is not None]


def _coco(frames: Sequence[PredictedBoxes | TrueBoxes], class_count: int) -> COCO:
    """Return frames as COCO's data set; image, category and annotation ids are numbers from 1."""
    annotations: list[dict[str, Any]] = []
    for image_id, boxes in enumerate(frames, start=1):
        scores = boxes.scores if isinstance(boxes, PredictedBoxes) else np.ones(len(boxes.classes))
        for corners, class_index, score in zip(boxes.corners, boxes.classes, scores, strict=True):
            width, height = (corners[2:] - corners[:2]).tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(class_index) + 1,
                    "bbox": [float(corners[0]), float(corners[1]), width, height],
                    "area": width * height,
                    "score": float(score),
                    "iscrowd": 0,
                }
            )
    data = COCO()
    data.dataset = {
        "images": [{"id": number} for number in range(1, len(frames) + 1)],
        "categories": [{"id": number} for number in range(1, class_count + 1)],
        "annotations": annotations,
    }
    data.createIndex()
    return data


def _verify_boxes(corners: NDArray[np.float64], classes: NDArray[np.int64]) -> None:
    if corners.ndim != 2 or corners.shape[1] != 4 or classes.shape != (len(corners),):
        raise MetricsError(f"boxes of shape {corners.shape} with classes of shape {classes.shape}")
    if not np.isfinite(corners).all():
        raise MetricsError("a box is not finite")
