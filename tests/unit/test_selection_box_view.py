"""Frames seen through their boxes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from curate.errors import SelectionError
from curate.selection.base import CandidatePool, LabelledSet, SelectionPolicy
from curate.selection.batch import select_batch
from curate.selection.box_view import FrameBoxes, box_uncertainty, describe_frames

DIM = 16
FRAMES = 370
HALF = np.array([0.02, 0.06])
Sights = list[set[tuple[int, int, int]]]


def boxes(looks: list[int], *, at: float = 0.5, class_index: int = 0, uncertainty: float = 0.5) -> FrameBoxes:
    """Boxes of the given looks, side by side from `at`."""
    n = len(looks)
    embeddings = np.random.default_rng(0).normal(size=(50, DIM))[looks].astype(np.float32).reshape(n, DIM)
    left = at + 0.05 * np.arange(n)
    corners = np.column_stack([left, np.full(n, 0.4), left + 0.04, np.full(n, 0.6)])
    return FrameBoxes(embeddings, np.full(n, class_index, np.int64), np.full(n, uncertainty), corners)


def video(seed: int, people: int = 45) -> tuple[list[FrameBoxes], Sights]:
    """A fixed camera at 10 fps: people walk slowly through; who stands in which cell of the picture, frame by frame."""
    rng = np.random.default_rng(seed)
    first, stay = rng.integers(-80, FRAMES - 10, people), rng.integers(40, 140, people)
    start, step = rng.uniform(0.05, 0.95, (people, 2)), rng.normal(0, 0.003, (people, 2))
    looks = rng.normal(size=(people, DIM)) + 1.5
    frames, sights = [], []
    for t in range(FRAMES):
        centre = start + step * (t - first)[:, None]
        here = np.flatnonzero((first <= t) & (t < first + stay) & (centre > 0).all(axis=1) & (centre < 1).all(axis=1))
        at = centre[here] + rng.normal(0, 0.002, (len(here), 2))
        seen = (looks[here] + 0.35 * rng.normal(size=(len(here), DIM))).astype(np.float32)
        corners = np.hstack([at - HALF, at + HALF])
        frames.append(FrameBoxes(seen, np.zeros(len(here), np.int64), rng.uniform(0.2, 0.6, len(here)), corners))
        sights.append({(int(k), int(24 * x), int(18 * y)) for k, (x, y) in zip(here, centre[here], strict=True)})
    return frames, sights


def test_alike_means_the_same_objects_at_the_same_place() -> None:
    """The same boxes are one sight; other looks, another place, another class and an empty frame are less alike."""
    rows = [
        boxes([1, 2, 3]),
        boxes([1, 2, 3]),
        boxes([1, 2, 9]),
        boxes([7, 8, 9], at=0.1),
        boxes([1, 2, 3], class_index=1),
        boxes([]),
    ]
    alike = describe_frames(rows) @ describe_frames(rows)[0]
    assert alike[1] == pytest.approx(1, abs=1e-6)
    assert alike[1] > alike[2] + 0.1 > alike[3] + 0.2
    assert alike[3] == pytest.approx(alike[4], abs=1e-6)
    assert alike[5] < 0.6


def test_every_frame_has_a_direction() -> None:
    """Rows have length 1 and are finite, empty frames are alike, and a pool of nothing but empty frames works."""
    rows = describe_frames([boxes([1]), boxes([]), boxes([]), boxes(list(range(20)))], words=12)
    assert rows.shape == (4, 13)
    assert rows.dtype == np.float32
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(4))
    assert rows[1].tolist() == rows[2].tolist() == describe_frames([boxes([])], words=12)[0].tolist()
    assert describe_frames([]).shape[0] == 0


def test_uncertain_boxes_decide() -> None:
    """Frames that share their uncertain box are more alike than frames that share a certain one."""

    def frame(*seen: tuple[int, float]) -> FrameBoxes:
        unsure = np.array([u for _, u in seen])
        plain = boxes([look for look, _ in seen])
        return FrameBoxes(plain.embeddings, plain.classes, unsure, np.tile(plain.corners[:1], (len(seen), 1)))

    rows = describe_frames([frame((1, 1.0), (2, 0.0)), frame((1, 1.0), (3, 0.0)), frame((4, 1.0), (2, 0.0))])
    assert rows[0] @ rows[1] > rows[0] @ rows[2] + 0.2


def test_frame_order_does_not_matter() -> None:
    """Shuffled frames get the very same descriptors."""
    frames, _ = video(0)
    order = np.random.default_rng(1).permutation(FRAMES)
    assert describe_frames([frames[i] for i in order]) == pytest.approx(describe_frames(frames)[order], abs=1e-6)


def test_likeness_fades_with_time() -> None:
    """On slow video neighbouring frames are near-duplicates, frames a few seconds apart are not."""
    rows = describe_frames(video(1)[0])
    cosine = [float((rows[lag:] * rows[:-lag]).sum(axis=1).mean()) for lag in (1, 5, 20, 50)]
    assert cosine[0] > 0.9
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[-1] < 0.5


@pytest.mark.parametrize(("budget", "gain"), [(30, 1.12), (60, 1.03)])
def test_picks_spread_over_time_and_objects(budget: int, gain: float) -> None:
    """Of 370 frames of slow video the picks meet more distinct (object, cell) pairs than random ones, all clip long."""
    met, by_chance = 0.0, 0.0
    for seed in range(3):
        frames, sights = video(seed)
        pool = CandidatePool(
            ids=tuple(f"f{i:04d}" for i in range(FRAMES)),
            embeddings=describe_frames(frames),
            probabilities=None,
            devices=("cam",) * FRAMES,
            cameras=("cam",) * FRAMES,
            groups=tuple(f"block-{i // 50}" for i in range(FRAMES)),
            random_probability=np.full(FRAMES, np.nan),
            captured_s=np.arange(FRAMES) / 10.0,
            uncertainty=np.array([frame.uncertainty.max(initial=0.0) for frame in frames]),
        )
        labelled, policy = LabelledSet.empty(pool.embeddings.shape[1]), SelectionPolicy(audit_share=0, explore_share=0)
        picks = [int(item.sample_id[1:]) for item in select_batch(pool, labelled, policy, budget, seed).items]
        assert len({i // 37 for i in picks}) == 10
        rng = np.random.default_rng(seed)
        met += distinct(sights, picks)
        by_chance += np.mean([distinct(sights, rng.choice(FRAMES, budget, replace=False)) for _ in range(50)])
    assert met > gain * by_chance


def distinct(sights: Sights, rows: Iterable[int]) -> int:
    return len(set().union(*(sights[row] for row in rows)))


def test_box_uncertainty_peaks_at_one_half() -> None:
    """A box is most uncertain when its best class is as likely as not."""
    found = box_uncertainty(np.array([[0.5, 0.1], [1.0, 0.0], [0.0, 0.0], [0.25, 0.75]], np.float32))
    assert found.tolist() == [1.0, 0.0, 0.0, 0.5]
    assert box_uncertainty(np.empty((0, 2), np.float32)).tolist() == []


def test_nonsense_is_refused() -> None:
    """Ragged boxes, NaN and uncertainties outside [0, 1] are SelectionErrors."""
    good = boxes([1, 2])
    for bad in (
        FrameBoxes(good.embeddings, good.classes[:1], good.uncertainty, good.corners),
        FrameBoxes(good.embeddings * np.float32(np.nan), good.classes, good.uncertainty, good.corners),
        FrameBoxes(good.embeddings, good.classes, good.uncertainty + 1, good.corners),
    ):
        with pytest.raises(SelectionError):
            describe_frames([good, bad])
