"""Geometry of boxes, suppression and tracking."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.answers.boxes import pairwise_iou, scale_and_clip, suppress
from curate.answers.tracking import MAX_MISSED_FRAMES, MIN_SHOWN_FRAMES, Tracker, lost_score

SIZE = {"width": 100, "height": 100, "border_fraction": 0.05}


def boxes(*corners: tuple[float, float, float, float]) -> np.ndarray:
    return np.array(corners, np.float32).reshape(-1, 4)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return boxes [M, 4], scores [M] and classes [M]; some of the boxes without area."""
    count = draw(st.integers(0, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    corner = rng.integers(0, 30, (count, 2))
    size = rng.integers(0, 20, (count, 2))
    found = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
    return found, rng.choice([0.2, 0.5, 0.9], count).astype(np.float32), rng.integers(0, 2, count)


def test_known_overlaps() -> None:
    """A half-covered, a disjoint, an equal and an empty box have the overlaps that geometry says."""
    unit = boxes((0, 0, 10, 10))
    others = boxes((0, 0, 10, 5), (10, 0, 20, 10), (0, 0, 10, 10), (5, 5, 5, 5))
    assert pairwise_iou(unit, others)[0] == pytest.approx([0.5, 0.0, 1.0, 0.0])
    assert pairwise_iou(boxes(), unit).shape == (0, 1)


@given(scenes(), scenes())
def test_overlap_is_symmetric_and_bounded(
    left: tuple[np.ndarray, np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    """Overlap lies in [0, 1], and swapping the sides transposes it."""
    iou = pairwise_iou(left[0], right[0])
    assert ((iou >= 0) & (iou <= 1)).all()
    assert np.array_equal(iou, pairwise_iou(right[0], left[0]).T)


def test_boxes_are_scaled_by_axis_and_cut_at_the_edges() -> None:
    """Width and height scale by themselves; what lies outside the frame is cut off."""
    found = scale_and_clip(boxes((-2, 4, 20, 12)), x_scale=2.0, y_scale=0.5, width=30, height=5)
    assert found.tolist() == [[0.0, 2.0, 30.0, 5.0]]


@settings(deadline=None)
@given(scenes(), st.floats(0.1, 0.9))
def test_suppression_keeps_its_laws(scene: tuple[np.ndarray, np.ndarray, np.ndarray], max_iou: float) -> None:
    """Kept boxes of a class overlap no more than allowed; every other one has a keeper of its class that overlaps it
    by more and scores no less; kept ones come by falling score."""
    found, scores, classes = scene
    iou = pairwise_iou(found, found)
    result = suppress(iou, scores, classes, max_iou)
    kept = result.kept.tolist()
    assert (np.diff(scores[kept]) <= 0).all()
    for a in kept:
        assert result.keeper[a] == a
        assert all(iou[a, b] <= max_iou or classes[a] != classes[b] for b in kept if b != a)
    for index in set(range(len(scores))) - set(kept):
        keeper = result.keeper[index]
        assert keeper in kept
        assert iou[index, keeper] > max_iou
        assert (classes[keeper], scores[keeper] >= scores[index]) == (classes[index], True)


def test_a_track_follows_a_moving_box_through_a_gap() -> None:
    """A box that moves steadily stays one track, also when it is unseen or faint for a few frames."""
    tracker = Tracker(0.3)
    for frame in range(12):
        here = boxes((5 * frame, 10, 5 * frame + 20, 50))
        if frame in {6, 7}:
            tracker.update(boxes(), floats())
        else:
            tracker.update(here, floats(0.15 if frame == 9 else 0.8))
    (track,) = tracker.tracks
    assert track.track_id == 1
    assert track.missed_frames == 0
    assert track.shown_frames == 9


def test_a_faint_box_begins_no_track() -> None:
    """Only a shown box begins a track, and an unseen track is forgotten after a while."""
    tracker = Tracker(0.3)
    tracker.update(boxes((0, 0, 9, 9)), floats(0.29))
    assert tracker.tracks == ()
    tracker.update(boxes((0, 0, 9, 9)), floats(0.3))
    for _ in range(MAX_MISSED_FRAMES):
        tracker.update(boxes(), floats())
        assert len(tracker.tracks) == 1
    tracker.update(boxes(), floats())
    assert tracker.tracks == ()


def test_two_crossing_boxes_keep_their_tracks_apart() -> None:
    """Each box belongs to at most one track, and each track to at most one box."""
    tracker = Tracker(0.3)
    for x in (0, 2, 4):
        tracker.update(boxes((x, 0, x + 20, 40), (40 - x, 0, 60 - x, 40)), floats(0.9, 0.8))
    assert sorted(track.track_id for track in tracker.tracks) == [1, 2]


def test_flicker_counts_changes_and_not_births() -> None:
    """A steady track has none, one that comes and goes every frame has the most."""
    steady, blinking = Tracker(0.3), Tracker(0.3)
    for frame in range(8):
        steady.update(boxes((40, 40, 60, 60)), floats(0.8))
        blinking.update(boxes((40, 40, 60, 60)), floats(0.8 if frame % 2 == 0 else 0.2))
    assert steady.tracks[0].flicker == 0.0
    assert blinking.tracks[0].flicker == 1.0


@pytest.mark.parametrize(
    ("corners", "shown", "counts"),
    [
        ((40, 40, 60, 60), MIN_SHOWN_FRAMES, True),
        ((40, 40, 60, 60), MIN_SHOWN_FRAMES - 1, False),
        ((0, 40, 8, 60), MIN_SHOWN_FRAMES, False),
        ((40, 92, 60, 100), MIN_SHOWN_FRAMES, False),
    ],
)
def test_only_a_confident_end_in_the_middle_is_a_loss(
    corners: tuple[float, float, float, float], shown: int, counts: bool
) -> None:
    """A track shown often enough that ends away from the border counts, most at first, then less and less."""
    tracker = Tracker(0.3)
    for _ in range(shown):
        tracker.update(boxes(corners), floats(0.9))
    assert lost_score(tracker.tracks[0], **SIZE) == 0.0
    tracker.update(boxes(), floats())
    first = lost_score(tracker.tracks[0], **SIZE)
    tracker.update(boxes(), floats())
    second = lost_score(tracker.tracks[0], **SIZE)
    assert (first > second > 0.0) is counts
    assert first == pytest.approx(0.9 if counts else 0.0)
