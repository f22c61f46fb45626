"""The plaza's first model learns from pictures that are made here: boxes are exact, and nothing else is used."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from curate.errors import TrainingError
from flows.sandbox.plaza_seed import CLASS_NAME, Pixels, cut_scene, make_seed_frames

HEIGHT, WIDTH = 240, 320


def clip(count: int = 64) -> Pixels:
    """Somebody dark and upright walks across a bright, speckled ground, at y 100..170 and then nearer at 130..220."""
    rng = np.random.default_rng(0)
    ground = rng.integers(150, 180, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    frames = np.repeat(ground[None], count, axis=0)
    for index in range(count):
        near = index >= count // 2
        top, tall, wide = (130, 90, 30) if near else (100, 70, 24)
        left = 20 + (index % (count // 2)) * 8
        frames[index, top : top + tall, left : left + wide] = 30
    return frames


def test_the_scene_is_taken_apart() -> None:
    """The ground is empty, the cutouts are the walker, and height grows with the row of the feet."""
    frames = clip()
    scene = cut_scene(frames)
    assert scene.ground.min() >= 150
    assert len(scene.cutouts) >= 10
    assert all(60 <= cutout.opacity.shape[0] <= 100 for cutout in scene.cutouts)
    assert scene.slope > 0
    assert scene.slope * 170 + scene.offset == pytest.approx(70, abs=8)


def test_boxes_enclose_what_was_pasted() -> None:
    """A frame with one person differs from the ground inside its box, out to the edges, and nowhere else."""
    frames = clip()
    ground = cut_scene(frames).ground.astype(float)
    made = make_seed_frames(frames, 40, 0, HEIGHT, WIDTH)
    alone = [index for index, label in enumerate(made.labels) if len(label["boxes"]) == 1]
    assert alone
    for index in alone:
        light = np.median(made.images[index] / ground)
        dark = ndimage.binary_opening(made.images[index].mean(axis=2) < 0.75 * light * ground.mean(axis=2))
        rows, columns = np.flatnonzero(dark.any(axis=1)), np.flatnonzero(dark.any(axis=0))
        box = made.labels[index]["boxes"][0]
        found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert [box[side] for side in ("x_min", "y_min", "x_max", "y_max")] == pytest.approx(found, abs=2.01)


def test_frames_are_of_the_size_asked_for_and_the_same_every_time() -> None:
    """Another size, boxes inside of it, one class; crowds and empty frames; bit-identical for a seed."""
    frames = clip()
    made, again, other = (make_seed_frames(frames, 30, seed, 120, 160) for seed in (1, 1, 2))
    assert made.images.shape == (30, 120, 160, 3)
    assert np.array_equal(made.images, again.images)
    assert made.labels == again.labels
    assert made.labels != other.labels
    counts = {len(label["boxes"]) for label in made.labels}
    assert 0 in counts
    assert max(counts) > 5
    for box in (box for label in made.labels for box in label["boxes"]):
        assert box["class"] == CLASS_NAME
        assert 0 <= box["x_min"] < box["x_max"] <= 160
        assert 0 <= box["y_min"] < box["y_max"] <= 120


def test_an_empty_clip_is_refused() -> None:
    """Where nobody walks, nobody can be cut out: TrainingError with a hint."""
    with pytest.raises(TrainingError, match="only 0 people") as caught:
        make_seed_frames(np.full((12, HEIGHT, WIDTH, 3), 128, np.uint8), 3, 0, HEIGHT, WIDTH)
    assert caught.value.hint
