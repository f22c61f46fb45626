"""Self-made data for the plaza's first model: people cut out of the clip's first quarter, pasted on its empty ground.

Nothing here knows a truth file: the empty ground is the median over time, people are what differs from it, and the
boxes are exact because the pasting decides them. What such pictures lack (crowds in depth, people behind posts,
clothes nobody wore in the first twenty seconds) is what the loop has to learn from the field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from curate.errors import TrainingError
from curate.training.data import LabelledFrames

Pixels: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float32]

CLASS_NAME = "person"
_FRAME_STEP = 4
_DIFFERENCE = 30
"""Least difference from the empty ground, in grey levels of the most different colour, that is somebody."""


@dataclass(frozen=True)
class Cutout:
    """Somebody, cut out: colours 0..255 [h, w, 3] and opacity 0..1 [h, w], in pixels of the clip."""

    colours: Floats
    opacity: Floats
    foot_x: float
    foot_y: float


@dataclass(frozen=True)
class Scene:
    """All that seed frames are made of. A person whose feet are at row y is `slope * y + offset` pixels high."""

    ground: Pixels
    cutouts: tuple[Cutout, ...]
    slope: float
    offset: float


def make_seed_frames(
    frames: Pixels, count: int, seed: int, height: int, width: int, *, most_people: int = 12
) -> LabelledFrames:
    """Make `count` frames of `height` x `width` from the clip's first frames, uint8 RGB [N, H, W, 3].

    Each shows none to `most_people`; few teach little about crowds. The same arguments give the same frames. Raises
    TrainingError when nobody can be cut out.
    """
    scene = cut_scene(frames)
    rng = np.random.default_rng(seed)
    made = [_compose(scene, rng, (height, width), most_people) for _ in range(count)]
    return LabelledFrames(np.stack([image for image, _ in made]), tuple(label for _, label in made))


def cut_scene(frames: Pixels) -> Scene:
    """Take apart frames uint8 RGB [N, H, W, 3] of a fixed camera.

    Raises TrainingError when nobody can be cut out.
    """
    chosen = frames[::_FRAME_STEP]
    ground = np.median(chosen, axis=0).astype(np.uint8)
    found = [cutout for frame in chosen for cutout in _cut_frame(frame, ground)]
    if len(found) < 10:
        raise TrainingError(f"only {len(found)} people stand free in these frames", hint="give more of the clip")
    slope, offset, plausible = _fit_perspective(found)
    return Scene(ground, plausible, slope, offset)


def _cut_frame(frame: Pixels, ground: Pixels) -> list[Cutout]:
    """People who stand free: upright blobs of a plausible size, away from the border and from other blobs."""
    difference = np.abs(frame.astype(np.int16) - ground).max(axis=2)
    mask = ndimage.binary_opening(ndimage.gaussian_filter(difference.astype(np.float32), 1.0) > _DIFFERENCE)
    mask = ndimage.binary_fill_holes(ndimage.binary_closing(mask, iterations=3))
    regions, _ = ndimage.label(mask)
    found = []
    for index, region in enumerate(ndimage.find_objects(regions), start=1):
        if region is not None and _stands_free(region, regions, index):
            found.append(_cut(frame, regions == index, region))
    return found


def _stands_free(region: tuple[slice, slice], regions: NDArray[Any], index: int) -> bool:
    rows, columns = region
    tall, wide = rows.stop - rows.start, columns.stop - columns.start
    if not (45 <= tall <= 200 and 14 <= wide <= 90 and 1.6 <= tall / wide <= 4.5):
        return False
    margin = 6
    if min(rows.start, columns.start) < margin:
        return False
    if rows.stop > regions.shape[0] - margin or columns.stop > regions.shape[1] - margin:
        return False
    around = regions[rows.start - margin : rows.stop + margin, columns.start - margin : columns.stop + margin]
    if int(((around != 0) & (around != index)).sum()) > 15:
        return False
    return bool((regions[region] == index).mean() > 0.35)


def _cut(frame: Pixels, mask: NDArray[np.bool_], region: tuple[slice, slice]) -> Cutout:
    rows, columns = region
    window = (slice(rows.start - 2, rows.stop + 2), slice(columns.start - 2, columns.stop + 2))
    # Blurring before the threshold has widened the blob by about a pixel: a rim of the old ground would give it away.
    tight = ndimage.binary_erosion(mask[window])
    soft = ndimage.gaussian_filter(tight.astype(np.float32), 0.8)
    foot_x = (columns.start + columns.stop) / 2.0
    return Cutout(frame[window].astype(np.float32), soft, foot_x, float(rows.stop))


def _fit_perspective(found: Sequence[Cutout]) -> tuple[float, float, tuple[Cutout, ...]]:
    """Height against the row of the feet, a line through the middle of what was found; outliers are two people or half.

    Two passes of least squares, the second without those more than a fifth off.
    """
    feet = np.array([cutout.foot_y for cutout in found])
    heights = np.array([cutout.opacity.shape[0] - 4.0 for cutout in found])
    kept = np.ones(len(found), bool)
    slope, offset = 0.0, float(np.median(heights))
    for _ in range(2):
        slope, offset = np.polyfit(feet[kept], heights[kept], 1)
        kept = np.abs(heights / np.maximum(slope * feet + offset, 1.0) - 1.0) < 0.2
    return float(slope), float(offset), tuple(cutout for cutout, keep in zip(found, kept, strict=True) if keep)


def _compose(
    scene: Scene, rng: np.random.Generator, size: tuple[int, int], most_people: int
) -> tuple[Pixels, dict[str, Any]]:
    """One frame with its label, the near people in front of the far ones."""
    height, width = size
    ground = np.asarray(Image.fromarray(scene.ground).resize((width, height), Image.Resampling.BOX), np.float32)
    scale = (width / scene.ground.shape[1], height / scene.ground.shape[0])
    canvas = ground.copy()
    boxes = []
    for foot_x, foot_y in sorted(_places(scene, rng, most_people), key=lambda place: place[1]):
        cutout = scene.cutouts[int(rng.integers(len(scene.cutouts)))]
        colours, opacity = _vary(cutout, scene, foot_y, scale, rng)
        box = _paste(canvas, colours, opacity, foot_x * scale[0], foot_y * scale[1])
        if box is not None:
            boxes.append({"class": CLASS_NAME, **box})
    light = rng.uniform(0.8, 1.2)
    return (canvas * light).clip(0, 255).astype(np.uint8), {"boxes": boxes}


def _places(scene: Scene, rng: np.random.Generator, most_people: int) -> list[tuple[float, float]]:
    """Feet, in pixels of the clip: near where somebody stood, anywhere, or beside the one before."""
    rows, columns = scene.ground.shape[:2]
    feet = np.array([(cutout.foot_x, cutout.foot_y) for cutout in scene.cutouts])
    highest = feet[:, 1].min() - 15.0
    places: list[tuple[float, float]] = []
    for _ in range(int(rng.integers(0, most_people + 1))):
        draw = rng.random()
        if places and draw < 0.3:
            x, y = np.array(places[-1]) + rng.normal(0.0, (28.0, 10.0))
        elif draw < 0.7:
            x, y = feet[int(rng.integers(len(feet)))] + rng.normal(0.0, (60.0, 25.0))
        else:
            x, y = rng.uniform(0, columns), rng.uniform(highest, rows)
        places.append((float(np.clip(x, 5.0, columns - 5.0)), float(np.clip(y, highest, rows + 20.0))))
    return places


def _vary(
    cutout: Cutout, scene: Scene, foot_y: float, scale: tuple[float, float], rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """The cutout as it looks at another place: its size, perhaps mirrored, in other light, a little soft."""
    tall, wide = cutout.opacity.shape
    zoom = (scene.slope * foot_y + scene.offset) / (tall - 4.0) * rng.uniform(0.88, 1.12)
    size = (max(3, round(wide * zoom * scale[0])), max(6, round(tall * zoom * scale[1])))
    colours = np.stack([_resize(cutout.colours[..., channel], size) for channel in range(3)], axis=2)
    opacity = _resize(cutout.opacity, size).clip(0.0, 1.0)
    if rng.random() < 0.5:
        colours, opacity = colours[:, ::-1], opacity[:, ::-1]
    softness = rng.uniform(0.0, 0.6)
    colours = ndimage.gaussian_filter(colours, (softness, softness, 0.0))
    tint = rng.uniform(0.65, 1.4) * rng.uniform(0.85, 1.15, 3)
    return (colours * tint).astype(np.float32), opacity


def _resize(values: Floats, size: tuple[int, int]) -> Floats:
    return np.asarray(Image.fromarray(values, mode="F").resize(size, Image.Resampling.BILINEAR), np.float32)


def _paste(canvas: Floats, colours: Floats, opacity: Floats, foot_x: float, foot_y: float) -> dict[str, float] | None:
    """Blend onto the canvas with the feet at a place; the box around what is more than half opaque and inside."""
    tall, wide = opacity.shape
    top, left = round(foot_y) - tall, round(foot_x - wide / 2.0)
    rows = slice(max(top, 0), min(top + tall, canvas.shape[0]))
    columns = slice(max(left, 0), min(left + wide, canvas.shape[1]))
    if rows.stop - rows.start < tall // 2 or columns.stop - columns.start < wide // 2:
        return None
    part = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
    solid = opacity[part] > 0.5
    if not solid.any():
        return None
    canvas[rows, columns] += (colours[part] - canvas[rows, columns]) * opacity[part][..., None]
    ys, xs = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    return {
        "x_min": float(columns.start + xs[0]),
        "y_min": float(rows.start + ys[0]),
        "x_max": float(columns.start + xs[-1] + 1),
        "y_max": float(rows.start + ys[-1] + 1),
    }
