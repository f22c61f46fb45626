"""How unsure a detector is about one frame. Pure; every score lies in [0, 1] and is higher when less sure.

The scores look at raw candidates, so they see what suppression hides. Each is the mean of the `TOP_K` largest of its
parts, padded with zeros: never a sum, or crowds would win, and never an average over everything, or one doubtful box
among many sure ones would vanish. One more candidate never lowers a score.

| name | parts |
|---|---|
| `near_miss` | candidates left by suppression: closeness of the score to the threshold, 1 - abs(s - t) / `BAND` |
| `margin` | boxes: 1 - abs(p1 - max(p2, 1 - p1)); with one class 1 - abs(2p - 1) |
| `entropy` | boxes: entropy of (p1, .., pK, 1 - p1) normalised, in units of ln(K + 1) |
| `crowding` | boxes: the highest score * (1 - IoU) / (1 - NMS IoU) among what suppression merged into it |
| `flicker` | tracks: how often each appeared or disappeared lately |
| `lost_track` | tracks: confidence of each that ended in the middle of the image |
| `uncertainty` | 1 - (1 - still) * (1 - moving): still = mean of the first four, moving = the larger of the last two |

p1 and p2 are a box's largest class probabilities; the classes are independent, and 1 - p1 stands for "nothing here".
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import numpy as np

from curate.answers.base import Floats, unit
from curate.answers.boxes import Suppression
from curate.answers.tracking import Track, lost_score

NEAR_MISS: Final = "near_miss"
MARGIN: Final = "margin"
ENTROPY: Final = "entropy"
CROWDING: Final = "crowding"
FLICKER: Final = "flicker"
LOST_TRACK: Final = "lost_track"
UNCERTAINTY: Final = "uncertainty"
SCORE_NAMES: Final = frozenset({NEAR_MISS, MARGIN, ENTROPY, CROWDING, FLICKER, LOST_TRACK, UNCERTAINTY})

TOP_K: Final = 3
BAND: Final = 0.2
"""Scores further than this from the threshold are no near misses."""
BORDER_FRACTION: Final = 0.05


def top_k_mean(parts: Floats | Iterable[float]) -> float:
    """Return the mean of the `TOP_K` largest, padded with zeros."""
    values: list[float] = parts.tolist() if isinstance(parts, np.ndarray) else list(parts)
    return sum(sorted(values, reverse=True)[:TOP_K]) / TOP_K


def near_miss_parts(scores: Floats, threshold: float) -> Floats:
    """Return the closeness [B] of scores [B] to the threshold."""
    return np.asarray(np.maximum(1.0 - np.abs(scores - threshold) / BAND, 0.0))


def margin_parts(probabilities: Floats) -> Floats:
    """Return 1 - abs(p1 - max(p2, 1 - p1)), [B], of probabilities [B, K]."""
    ordered = np.sort(probabilities, axis=1)
    first = ordered[:, -1]
    second = np.maximum(ordered[:, -2], 1.0 - first) if probabilities.shape[1] > 1 else 1.0 - first
    return np.asarray(1.0 - np.abs(first - second))


def entropy_parts(probabilities: Floats) -> Floats:
    """Return the entropy [B] of each row of probabilities [B, K] with "nothing here" as one more class."""
    nothing = 1.0 - probabilities.max(axis=1, keepdims=True, initial=0.0)
    every = np.concatenate([probabilities, nothing], axis=1)
    every = every / every.sum(axis=1, keepdims=True)
    logarithms = np.log(every, out=np.zeros_like(every), where=every > 0.0)
    return np.asarray(-(every * logarithms).sum(axis=1) / math.log(every.shape[1]))


def crowding_parts(suppression: Suppression, iou: Floats, scores: Floats, nms_iou: float) -> Floats:
    """Return for each candidate [M] how much the box that hid it may have swallowed another object."""
    apart = 1.0 - iou[np.arange(len(scores)), suppression.keeper]
    parts = np.minimum(scores * apart / (1.0 - nms_iou), 1.0)
    parts[suppression.kept] = 0.0
    worst = np.zeros(len(scores), np.float32)
    np.maximum.at(worst, suppression.keeper, parts)
    return worst


def combine(still: dict[str, float], tracks: Iterable[Track], *, width: int, height: int) -> dict[str, float]:
    """Return all scores, given the four of a frame by itself and the tracks after it."""
    known = tuple(tracks)
    flicker = top_k_mean(track.flicker for track in known)
    lost = top_k_mean(lost_score(t, width=width, height=height, border_fraction=BORDER_FRACTION) for t in known)
    moving = max(flicker, lost)
    uncertainty = 1.0 - (1.0 - sum(still.values()) / len(still)) * (1.0 - moving)
    values = still | {FLICKER: flicker, LOST_TRACK: lost, UNCERTAINTY: uncertainty}
    return {name: unit(value) for name, value in values.items()}
