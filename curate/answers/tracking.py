"""A light tracker: boxes of one frame joined to those of the frames before, by overlap alone.

Greedy matching by intersection over union with a constant-velocity prediction, as in SORT (Bewley et al. 2016,
arXiv:1602.00763, without its Kalman filter); faint boxes may continue a track but never begin one, the idea of
ByteTrack (Zhang et al. 2022, arXiv:2110.06864). It is there to notice what flickers and what is lost, not to count
people.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from curate.answers.base import Floats
from curate.answers.boxes import pairwise_iou

MIN_IOU: Final = 0.3
"""Least overlap of a box with where its track is expected."""
MAX_MISSED_FRAMES: Final = 5
"""A track without a box for longer is forgotten."""
WINDOW_FRAMES: Final = 8
"""How far back flicker looks."""
MIN_SHOWN_FRAMES: Final = 3
"""A track that was shown for fewer frames may have been a false alarm, and its end no loss."""
_VELOCITY_WEIGHT: Final = 0.5
_SCORE_WEIGHT: Final = 0.3


@dataclass(frozen=True, slots=True)
class Track:
    """One object over several frames."""

    track_id: int
    box: Floats
    """[4]: where it was last seen, or since then expected."""
    velocity: Floats
    """[4]: change of each corner a frame."""
    confidence: float
    """Moving average of its scores; it stands while the track has no box."""
    history: tuple[bool, ...] = (True,)
    """For each of the last `WINDOW_FRAMES` frames of its life: was it shown? Newest last."""
    shown_frames: int = 1
    missed_frames: int = 0
    """Frames since it last had a box."""

    @property
    def flicker(self) -> float:
        """How often it appeared or disappeared within the window, as a share of how often it could have."""
        pairs = zip(self.history, self.history[1:], strict=False)
        return sum(a != b for a, b in pairs) / (WINDOW_FRAMES - 1)

    @property
    def expected_box(self) -> Floats:
        """[4]: where it should be in the next frame."""
        return self.box + self.velocity

    def seen(self, box: Floats, score: float, *, shown: bool) -> Track:
        """Return the track after a frame that has a box for it."""
        step = (box - self.box).astype(np.float32)
        return Track(
            self.track_id,
            box,
            (1 - _VELOCITY_WEIGHT) * self.velocity + _VELOCITY_WEIGHT * step,
            (1 - _SCORE_WEIGHT) * self.confidence + _SCORE_WEIGHT * score,
            (*self.history, shown)[-WINDOW_FRAMES:],
            self.shown_frames + shown,
        )

    def missed(self) -> Track:
        """Return the track after a frame that has no box for it."""
        return Track(
            self.track_id,
            self.expected_box,
            self.velocity,
            self.confidence,
            (*self.history, False)[-WINDOW_FRAMES:],
            self.shown_frames,
            self.missed_frames + 1,
        )


class Tracker:
    """The tracks of one class-blind stream of boxes. Not thread-safe."""

    def __init__(self, shown_from: float) -> None:
        """Begin without tracks; a box is shown, and may begin a track, from the score `shown_from` on."""
        self._shown_from = shown_from
        self._next_id = 1
        self.tracks: tuple[Track, ...] = ()

    def update(self, boxes: Floats, scores: Floats) -> None:
        """Take the next frame's boxes [B, 4] with scores [B]. All of one frame, after suppression."""
        values: list[float] = scores.tolist()
        pairs = match(self.tracks, boxes)
        after: list[Track] = []
        for number, track in enumerate(self.tracks):
            found = pairs.get(number)
            if found is not None:
                after.append(track.seen(boxes[found], values[found], shown=values[found] >= self._shown_from))
            elif track.missed_frames < MAX_MISSED_FRAMES:
                after.append(track.missed())
        taken = set(pairs.values())
        for position, score in enumerate(values):
            if position not in taken and score >= self._shown_from:
                after.append(Track(self._next_id, boxes[position], np.zeros(4, np.float32), score))
                self._next_id += 1
        self.tracks = tuple(after)


def match(tracks: Sequence[Track], boxes: Floats) -> dict[int, int]:
    """Return track position to box position, best overlap first, each used once. Shape of boxes: [B, 4]."""
    if not tracks or not len(boxes):
        return {}
    iou = pairwise_iou(np.stack([track.expected_box for track in tracks]), boxes)
    rows, columns = np.nonzero(iou >= MIN_IOU)
    best_first = np.argsort(-iou[rows, columns], kind="stable")
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for row, column in zip(rows[best_first].tolist(), columns[best_first].tolist(), strict=True):
        if row not in pairs and column not in taken:
            pairs[row] = column
            taken.add(column)
    return pairs


def lost_score(track: Track, *, width: int, height: int, border_fraction: float) -> float:
    """Return how much the loss of a track tells of a missed object, in [0, 1].

    Its confidence when it has no box now, was shown for at least `MIN_SHOWN_FRAMES` and its centre is expected inside
    the frame, further than `border_fraction` of each side from the border; it fades with the frames since. Otherwise 0:
    objects leave at the border.
    """
    if not track.missed_frames or track.shown_frames < MIN_SHOWN_FRAMES:
        return 0.0
    x_min, y_min, x_max, y_max = track.box.tolist()
    x, y = (x_min + x_max) / 2 / width, (y_min + y_max) / 2 / height
    if min(x, y, 1 - x, 1 - y) < border_fraction:
        return 0.0
    return track.confidence * (1 - (track.missed_frames - 1) / MAX_MISSED_FRAMES)
