"""Events of tracks: what they are, and how a stream that lost some is told from one that kept them."""

from __future__ import annotations

import numpy as np
import pytest

from edge_agent.capture.track_events import EventKind, SeenBoxes, TrackEvent, find_events, share_kept

WIDTH = 400


def walk(xs: list[float | None], fps: float = 25.0) -> list[SeenBoxes]:
    """Return a stream with one object whose left edge is at these pixels, or that is not there."""
    frames = []
    for number, x in enumerate(xs):
        boxes = [] if x is None else [[x, 100.0, x + 40.0, 180.0]]
        scores = np.full(len(boxes), 0.9, np.float32)
        frames.append(SeenBoxes(number / fps, np.array(boxes, np.float32).reshape(-1, 4), scores))
    return frames


def kinds(frames: list[SeenBoxes]) -> list[EventKind]:
    return [event.kind for event in find_events(frames, shown_from=0.5, width=WIDTH)]


def test_a_walk_through_the_middle_is_three_events() -> None:
    """Somebody comes, crosses the middle and goes: a crossing, a birth and a death, at their times and places."""
    frames = walk([20.0 + 4 * n for n in range(80)] + [None] * 10)
    events = find_events(frames, shown_from=0.5, width=WIDTH)
    assert sorted(event.kind for event in events) == ["birth", "crossing", "death"]
    crossing, birth, death = events
    assert (birth.at_s, death.at_s) == (0.0, pytest.approx(79 / 25))
    assert crossing.x == pytest.approx(0.525, abs=0.02)


def test_what_was_hardly_there_is_no_event() -> None:
    """A track shown for fewer frames than confirm it is neither born nor dies."""
    assert kinds(walk([50.0] * 9 + [None] * 20)) == []
    assert kinds(walk([50.0] * 10 + [None] * 20)) == [EventKind.BIRTH, EventKind.DEATH]
    assert kinds(walk([50.0] * 30)) == [EventKind.BIRTH]


def test_trembling_in_the_middle_is_no_crossing() -> None:
    """The margin around the middle keeps an object that stands there from crossing all the time."""
    assert kinds(walk([180.0 + (-1) ** n * 4 for n in range(60)])) == [EventKind.BIRTH]


def test_each_event_is_kept_once_and_only_near() -> None:
    """Kept means the same kind, near in time and place, and one event stands for one other."""
    event = TrackEvent(EventKind.BIRTH, 1.0, 0.5, 0.5)
    near = TrackEvent(EventKind.BIRTH, 1.4, 0.55, 0.5)
    assert share_kept([event], [near]) == 1.0
    assert share_kept([event, event], [near]) == 0.5
    assert share_kept([event], [TrackEvent(EventKind.DEATH, 1.0, 0.5, 0.5)]) == 0.0
    assert share_kept([event], [TrackEvent(EventKind.BIRTH, 1.6, 0.5, 0.5)]) == 0.0
    assert share_kept([event], [TrackEvent(EventKind.BIRTH, 1.0, 0.7, 0.5)]) == 0.0
    assert share_kept([], []) == 1.0
