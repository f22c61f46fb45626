"""What happens in a stream of boxes, as events: how the scene gate's loss is measured. Pure.

A **track** is one object over several frames (`curate.answers.tracking`), confirmed once it was shown in
`CONFIRMED_FRAMES` of them. Three things happen to a confirmed track: its `birth`, at the first frame that showed it;
its `death`, at the last one; and a `crossing`, when its centre passes the vertical line in the middle of the picture,
further than `CROSSING_MARGIN` of the width to the other side. An event of one stream is kept in another when that has
one of the same kind within `SLACK_S` and `SLACK_WIDTHS` of the width; each counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from curate.answers.base import Floats
from curate.answers.tracking import Track, Tracker

CONFIRMED_FRAMES: Final = 10
CROSSING_MARGIN: Final = 0.02
SLACK_S: Final = 0.5
SLACK_WIDTHS: Final = 0.1


class EventKind(StrEnum):
    """What can happen to a track."""

    BIRTH = "birth"
    DEATH = "death"
    CROSSING = "crossing"


@dataclass(frozen=True, slots=True)
class TrackEvent:
    """One event; when, and where its object's centre was, as shares of the picture's width."""

    kind: EventKind
    at_s: float
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class SeenBoxes:
    """What a stream said of one frame."""

    at_s: float
    boxes: Floats
    """[B, 4], in pixels."""
    scores: Floats
    """[B]."""


@dataclass(slots=True)
class _Life:
    first: TrackEvent
    last: TrackEvent
    shown_frames: int
    side: int


def find_events(frames: Iterable[SeenBoxes], *, shown_from: float, width: int) -> list[TrackEvent]:
    """Return the events of one stream in the order of their ends; tracks that outlive the stream do not die."""
    tracker = Tracker(shown_from)
    lives: dict[int, _Life] = {}
    events: list[TrackEvent] = []
    for frame in frames:
        tracker.update(frame.boxes, frame.scores)
        present = {track.track_id for track in tracker.tracks}
        for track_id in [known for known in lives if known not in present]:
            events += _end(lives.pop(track_id))
        for track in tracker.tracks:
            if not track.missed_frames and track.history[-1]:
                events += _follow(lives, track, frame.at_s, width)
    births = [life.first for life in lives.values() if life.shown_frames >= CONFIRMED_FRAMES]
    return events + births


def share_kept(expected: Sequence[TrackEvent], found: Sequence[TrackEvent]) -> float:
    """Return the share of the expected events that the other stream has too; 1 when there are none."""
    left = list(found)
    kept = 0
    for event in expected:
        near = [other for other in left if _same(event, other)]
        if near:
            left.remove(min(near, key=lambda other: abs(other.at_s - event.at_s)))
            kept += 1
    return kept / len(expected) if expected else 1.0


def _follow(lives: dict[int, _Life], track: Track, at_s: float, width: int) -> list[TrackEvent]:
    """Take note that a track was shown; return the crossing that this is, if it is one."""
    x, y = (float(value) / width for value in (track.box[:2] + track.box[2:]) / np.float32(2.0))
    life = lives.get(track.track_id)
    if life is None:
        birth = TrackEvent(EventKind.BIRTH, at_s, x, y)
        lives[track.track_id] = _Life(birth, birth, 1, _side(x))
        return []
    life.last = TrackEvent(EventKind.DEATH, at_s, x, y)
    life.shown_frames += 1
    side = _side(x)
    crossed = side * life.side < 0 and life.shown_frames >= CONFIRMED_FRAMES
    life.side = side or life.side
    return [TrackEvent(EventKind.CROSSING, at_s, x, y)] if crossed else []


def _end(life: _Life) -> list[TrackEvent]:
    return [life.first, life.last] if life.shown_frames >= CONFIRMED_FRAMES else []


def _side(x: float) -> int:
    """Return -1 left of the middle, 1 right of it, 0 near it."""
    return 0 if abs(x - 0.5) <= CROSSING_MARGIN else 1 if x > 0.5 else -1


def _same(left: TrackEvent, right: TrackEvent) -> bool:
    near = max(abs(left.x - right.x), abs(left.y - right.y)) <= SLACK_WIDTHS
    return left.kind is right.kind and near and abs(left.at_s - right.at_s) <= SLACK_S
