"""How good a detector is on labelled frames, and the calibration that makes its scores probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curate.answers.boxes import pairwise_iou, suppress
from curate.training.detector_data import Boxes

_MAX_IOU = 0.6
_MATCH_IOU = 0.5
_FAINT = 0.01
_TRUST = 4.0
"""Weight of the calibration's starting point, in detections: a handful of boxes calls for no certainty."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Matches:
    """Detections of labelled frames after suppression, by falling score, all classes together."""

    scores: Floats
    hits: NDArray[np.bool_]
    box_count: int

    def average_precision(self) -> float:
        """Area under the precision envelope; NaN without boxes to find."""
        if self.box_count == 0:
            return float("nan")
        found = np.cumsum(self.hits)
        precision = found / np.arange(1, len(found) + 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        return float((envelope * self.hits).sum() / self.box_count)


def match_detections(boxes: NDArray[np.float32], probabilities: NDArray[np.float32], truth: Sequence[Boxes]) -> Matches:
    """Match raw candidates [N, C, 4] and [N, C, K] with the truth of N frames, at IoU 0.5 within each class."""
    scores: list[float] = []
    hits: list[bool] = []
    for corners, rows, wanted in zip(boxes, probabilities, truth, strict=True):
        for row in range(rows.shape[1]):
            clear = np.flatnonzero(rows[:, row] > _FAINT)
            of_class = wanted.corners[wanted.classes == row].numpy()
            found_scores, found_hits = _match_frame(corners[clear], rows[clear, row], of_class)
            scores += found_scores
            hits += found_hits
    order = np.argsort(-np.array(scores, np.float64), kind="stable")
    return Matches(np.array(scores, np.float64)[order], np.array(hits, bool)[order], sum(len(each) for each in truth))


def _match_frame(
    corners: NDArray[np.float32], scores: NDArray[np.float32], wanted: NDArray[np.float32]
) -> tuple[list[float], list[bool]]:
    """Scores of the kept boxes by falling score, and whether each found a wanted box that no better one found."""
    kept = suppress(pairwise_iou(corners, corners), scores, np.zeros(len(scores), np.intp), _MAX_IOU).kept
    overlap = pairwise_iou(corners[kept], wanted)
    hits = []
    for row in range(len(kept)):
        best = int(overlap[row].argmax()) if wanted.size else -1
        hit = best >= 0 and bool(overlap[row, best] >= _MATCH_IOU)
        if hit:
            overlap[:, best] = -1.0
        hits.append(hit)
    return scores[kept].astype(float).tolist(), hits


def fit_calibration(matches: Matches) -> tuple[float, float]:
    """Slope and offset on the logit after which a score is the chance of a hit; (1, 0) without anything to learn from.

    Platt 1999 by Newton's method, with a ridge towards (1, 0). The slope stays positive: ranks never change.
    """
    if not matches.hits.any() or matches.hits.all():
        return 1.0, 0.0
    clipped = np.clip(matches.scores, 1e-6, 1.0 - 1e-6)
    features = np.stack([np.log(clipped / (1.0 - clipped)), np.ones_like(clipped)], axis=1)
    start = np.array([1.0, 0.0])
    theta = start.copy()
    for _ in range(30):
        chance = 1.0 / (1.0 + np.exp(-features @ theta))
        gradient = features.T @ (chance - matches.hits) + _TRUST * (theta - start)
        curvature = (features * (chance * (1.0 - chance))[:, None]).T @ features + _TRUST * np.eye(2)
        theta -= np.linalg.solve(curvature, gradient)
    return float(np.clip(theta[0], 0.25, 4.0)), float(np.clip(theta[1], -4.0, 4.0))
