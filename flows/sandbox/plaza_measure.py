"""How good a detector is on the part of the plaza that nothing of a run ever saw: COCO's measures, by light."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curate.catalog.images import decode_frames
from curate.compression.inference import OnnxModel
from curate.metrics.average_precision import DetectionEvidence, Measure
from curate.metrics.detection import PredictedBoxes, TrueBoxes, match_frames
from curate.metrics.kinds import boxes_of, predicted_boxes
from flows._views import answer_frames
from flows.sandbox.plaza_clip import FRAMES_PER_S, iterate_frames
from flows.sandbox.plaza_people import true_boxes
from flows.sandbox.plaza_scene import TEST_FRAMES, Condition, encode, show
from flows.sandbox.plaza_truth import TruthBox

STEP = 3
"""Neighbouring frames tell the same: every third is looked at."""
BLOCK_S = 2.0
CONDITIONS: tuple[Condition, ...] = ("day", "dusk")
_CURVE_POINTS = 120

Json = dict[str, Any]


@dataclass(frozen=True)
class TestFrames:
    """JPEGs in one light with their truth; frames of one block of time are one piece of evidence."""

    __test__ = False  # not a test, whatever pytest thinks

    pictures: tuple[tuple[str, bytes], ...]
    truth: tuple[TrueBoxes, ...]
    blocks: tuple[str, ...]


def load_test_frames(
    clip: Path, truth: Mapping[int, Sequence[TruthBox]], condition: Condition, seed: int, step: int = STEP
) -> TestFrames:
    """Return the last quarter of the clip as a camera would show it. Raises `DatasetError` for an unusable clip."""
    first, last = TEST_FRAMES
    chosen = [(n, f) for n, f in enumerate(iterate_frames(clip, first, last), start=first) if (n - first) % step == 0]
    return TestFrames(
        tuple((str(number), encode(show(frame, number, condition, seed))) for number, frame in chosen),
        tuple(_as_truth(truth[number]) for number, _ in chosen),
        tuple(f"{(number - first) // round(BLOCK_S * FRAMES_PER_S)}" for number, _ in chosen),
    )


def detect(model: OnnxModel, frames: TestFrames) -> list[PredictedBoxes]:
    """Return what the model says of each frame, read as a device reads it."""
    height, width, _ = model.frame_shape
    answers = answer_frames(model, decode_frames(frames.pictures, height, width))
    return [predicted_boxes(boxes_of(answer.to_prediction("p", "r"))) for answer in answers]


def match(model: OnnxModel, frames: TestFrames) -> DetectionEvidence:
    """Hold a model against the truth."""
    return match_frames(detect(model, frames), frames.truth, 1)


def quality(evidence: DetectionEvidence, blocks: Sequence[str]) -> Json:
    """Return the measures with their 95 % intervals over blocks of time, and the precision-recall curve."""
    weights = np.ones(len(evidence))
    named: dict[str, Measure] = {
        "ap50": "AP50",
        "ap50_95": "AP50-95",
        "recall_at_1fp": "recall at 1 false positive a frame",
    }
    figures: Json = {}
    for name, measure in named.items():
        about = evidence.measuring(measure)
        figures[name] = {"value": about.value(weights), "ci95": list(about.interval(weights, blocks))}
    return {**figures, "curve": _thin(evidence), "frames": len(evidence), "people": int(evidence.truths.sum())}


def _thin(evidence: DetectionEvidence) -> list[list[float]]:
    """Points [recall, precision] of the curve, few enough for a page."""
    curve = evidence.curve()
    count = len(curve.recall)
    places = np.unique(np.linspace(0, count - 1, _CURVE_POINTS).round().astype(int)) if count else ()
    return [[round(float(curve.recall[i]), 4), round(float(curve.precision[i]), 4)] for i in places]


def _as_truth(people: Sequence[TruthBox]) -> TrueBoxes:
    return TrueBoxes.of([box.corners for box in true_boxes(people)], [0] * len(people))
