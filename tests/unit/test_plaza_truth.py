"""The truth of the plaza clip: complete, in the picture, smooth in time, and good against boxes drawn by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest

from flows.sandbox.plaza_clip import FRAMES, HEIGHT_PX, WIDTH_PX
from flows.sandbox.plaza_truth import TruthBox, load_checked, load_truth

TRUTH = load_truth()
CHECKED = load_checked()


def _iou(one: TruthBox, other: TruthBox) -> float:
    width = min(one.x_max, other.x_max) - max(one.x_min, other.x_min)
    height = min(one.y_max, other.y_max) - max(one.y_min, other.y_min)
    shared = max(0.0, width) * max(0.0, height)
    return shared / (_area(one) + _area(other) - shared)


def _area(box: TruthBox) -> float:
    return (box.x_max - box.x_min) * (box.y_max - box.y_min)


def _matched_ious(drawn: tuple[TruthBox, ...], truth: tuple[TruthBox, ...]) -> list[float]:
    """One-to-one, best overlap first, at IoU 0.5 or more."""
    ious = sorted(((_iou(a, b), i, j) for i, a in enumerate(drawn) for j, b in enumerate(truth)), reverse=True)
    used_drawn: set[int] = set()
    used_truth: set[int] = set()
    kept = []
    for iou, i, j in ious:
        if iou >= 0.5 and i not in used_drawn and j not in used_truth:
            used_drawn.add(i)
            used_truth.add(j)
            kept.append(iou)
    return kept


def test_every_frame_is_annotated() -> None:
    """The truth speaks about exactly the frames of the clip, and somebody is always on this plaza."""
    assert list(TRUTH) == list(range(FRAMES))
    assert all(TRUTH.values())


@pytest.mark.parametrize("boxes", [TRUTH, CHECKED], ids=["truth", "checked"])
def test_boxes_lie_in_the_picture(boxes: dict[int, tuple[TruthBox, ...]]) -> None:
    """Every box has an area, lies within the frame, and nobody has two boxes in one frame."""
    for frame, persons in boxes.items():
        assert len({person.track_id for person in persons}) == len(persons), frame
        for box in persons:
            assert 0 <= box.x_min < box.x_max <= WIDTH_PX, (frame, box)
            assert 0 <= box.y_min < box.y_max <= HEIGHT_PX, (frame, box)


def test_tracks_have_no_holes() -> None:
    """A person is boxed in every frame from coming to leaving, also behind the sign and behind others."""
    frames_of: dict[int, list[int]] = {}
    for frame, persons in TRUTH.items():
        for person in persons:
            frames_of.setdefault(person.track_id, []).append(frame)
    assert len(frames_of) >= 20
    for track_id, frames in frames_of.items():
        assert frames == list(range(frames[0], frames[-1] + 1)), track_id


def test_nobody_jumps() -> None:
    """From frame to frame a person moves by less than a body's height, even where the clip itself skips some time."""
    for earlier, later in pairwise(range(FRAMES)):
        before = {person.track_id: person for person in TRUTH[earlier]}
        for person in TRUTH[later]:
            if (old := before.get(person.track_id)) is not None:
                moved = max(abs(person.x_max - old.x_max), abs(person.y_max - old.y_max))
                assert moved < old.y_max - old.y_min, (later, person)


def test_persons_further_up_are_smaller() -> None:
    """One camera, one ground: a whole person's height follows from where the feet stand, within 35 %."""
    for persons in TRUTH.values():
        for box in persons:
            if box.x_min > 2 and box.x_max < WIDTH_PX - 2 and box.y_max < HEIGHT_PX - 2:
                expected = 18 + 0.23 * box.y_max
                assert box.y_max - box.y_min == pytest.approx(expected, rel=0.35)


def test_hand_check_covers_the_clip() -> None:
    """At least 40 frames were boxed again by hand, at least ten in each quarter of the clip."""
    assert len(CHECKED) >= 40
    for quarter in range(4):
        assert sum(frame * 4 // FRAMES == quarter for frame in CHECKED) >= 10


def test_truth_agrees_with_the_hand_check() -> None:
    """Against the boxes drawn by hand, recall and precision at IoU 0.5 are at least 0.9, and matches overlap well."""
    ious = [_matched_ious(drawn, TRUTH[frame]) for frame, drawn in CHECKED.items()]
    matched = sum(map(len, ious))
    assert matched >= 0.9 * sum(map(len, CHECKED.values()))
    assert matched >= 0.9 * sum(len(TRUTH[frame]) for frame in CHECKED)
    assert sum(map(sum, ious)) / matched >= 0.8
