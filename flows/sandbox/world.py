"""The simulated world's pixels: real garments before three cameras, deterministic from a seed, random access by frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flows.sandbox.fashion_mnist import FashionMnist
from flows.sandbox.world_schedule import (
    Burst,
    CameraStyle,
    Condition,
    Dusk,
    Schedule,
    Truth,
    WorldConfig,
    WorldControl,
    condition_at,
    drift_frame,
    truth,
)

__all__ = [
    "CameraWorld",
    "LabelledImages",
    "Truth",
    "WorldConfig",
    "WorldControl",
    "WorldFrame",
    "held_out",
    "seed_samples",
    "truth",
]

FRAME_PX = 32
_GARMENT_PX = 28
_MARGIN_PX = 4  # of the scene around the garment: half for the frame's border, half for the shifts
_SCENE_PX = _GARMENT_PX + 2 * _MARGIN_PX
_CENTRE_PX = (_SCENE_PX - FRAME_PX) // 2
_CLASSES = 10
_GARMENT_LEVELS = 200.0  # the brightest cloth before gain and light, leaving headroom below 255
_UNTINTED = (1.0, 1.0, 1.0)

# Streams of random numbers; the schedule owns 0.
_BURST_STREAM, _NOISE_STREAM, _HELD_OUT_STREAM, _SEED_STREAM = 1, 2, 3, 4


@dataclass(frozen=True)
class WorldFrame:
    """One camera frame, uint8 RGB [32, 32, 3], with what it really shows."""

    image: NDArray[np.uint8]
    label: int
    burst: int
    condition: Condition


class LabelledImages(NamedTuple):
    """Images uint8 RGB [n, 32, 32, 3] and labels int64 [n]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


class CameraWorld:
    """What one camera sees, frame by frame, from the train split without its reserved end.

    `drift_from_frame` (None: always day) may be set while frames are read; it never changes labels or bursts.
    Not thread-safe: the burst in view is cached.
    """

    def __init__(self, config: WorldConfig, camera_id: str, data: FashionMnist) -> None:
        self._config = config
        self._number = config.camera_number(camera_id)
        self._style = config.cameras[self._number]
        self._schedule = Schedule(config, camera_id)
        self._garments = _Garments(data.train_images[: -config.reserved_images], data.train_labels)
        self._in_view: tuple[int, Condition, _BurstView] | None = None
        self.drift_from_frame = drift_frame(config, camera_id)

    def frame(self, index: int) -> WorldFrame:
        """Frame `index` (from 0): the same in every process and in any order."""
        burst = self._schedule.burst_at(index)
        condition = condition_at(index, self.drift_from_frame)
        view = self._view(burst, condition)
        place = index - burst.first
        rng = _rng(self._config, self._number, _NOISE_STREAM, index)
        image = _expose(view, place, self._style, _dusk(self._config, condition), rng)
        return WorldFrame(image, burst.label, burst.number, condition)

    def _view(self, burst: Burst, condition: Condition) -> _BurstView:
        if self._in_view is None or self._in_view[:2] != (burst.number, condition):
            garment = self._garments.pick(burst.label, burst.pick)
            rng = _rng(self._config, self._number, _BURST_STREAM, burst.number)
            view = _view_burst(garment, burst.length, self._config, self._style, _dusk(self._config, condition), rng)
            self._in_view = (burst.number, condition, view)
        return self._in_view[2]


def held_out(config: WorldConfig, camera_id: str, condition: Condition, n: int, data: FashionMnist) -> LabelledImages:
    """`n` independent frames (bursts of one) of garments from the test split, in this camera's mix and style.

    A call for fewer gives the first of the same frames.
    """
    garments = _Garments(data.test_images, data.test_labels)
    number = config.camera_number(camera_id)
    rngs = (_rng(config, number, _HELD_OUT_STREAM, i) for i in range(n))
    return _stack([_single_frame(config, number, garments, condition, rng) for rng in rngs])


def seed_samples(config: WorldConfig, n: int, seed: int, data: FashionMnist) -> LabelledImages:
    """`n` labelled day frames for the first model: any camera, its mix, garments that no stream ever shows."""
    garments = _Garments(data.train_images[-config.reserved_images :], data.train_labels[-config.reserved_images :])
    rngs = [_rng(config, seed, _SEED_STREAM, i) for i in range(n)]
    return _stack([_single_frame(config, int(rng.integers(len(config.cameras))), garments, "day", rng) for rng in rngs])


class _Garments:
    """Images of a split, found by class and a number in [0, 1)."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
        self._images = images
        self._by_class = [np.flatnonzero(labels[: len(images)] == label) for label in range(_CLASSES)]

    def pick(self, label: int, pick: float) -> NDArray[np.uint8]:
        of_class = self._by_class[label]
        return self._images[of_class[int(pick * len(of_class))]]


class _BurstView(NamedTuple):
    """A garment before the camera: the scene in grey levels, float32 [36, 36], and where and how bright each frame is."""

    scene: NDArray[np.float32]
    shifts: NDArray[np.int64]
    lights: NDArray[np.float64]


def _single_frame(
    config: WorldConfig, camera_number: int, garments: _Garments, condition: Condition, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], int]:
    style, dusk = config.cameras[camera_number], _dusk(config, condition)
    label = int(rng.choice(_CLASSES, p=style.class_mix))
    view = _view_burst(garments.pick(label, rng.random()), 1, config, style, dusk, rng)
    return _expose(view, 0, style, dusk, rng), label


def _stack(samples: list[tuple[NDArray[np.uint8], int]]) -> LabelledImages:
    images = np.array([image for image, _ in samples], dtype=np.uint8).reshape(-1, FRAME_PX, FRAME_PX, 3)
    return LabelledImages(images, np.array([label for _, label in samples], dtype=np.int64))


def _view_burst(
    garment: NDArray[np.uint8],
    length: int,
    config: WorldConfig,
    style: CameraStyle,
    dusk: Dusk | None,
    rng: np.random.Generator,
) -> _BurstView:
    """Lay the garment on the backdrop and plan how it moves: a smooth walk within the shift limit, slowly changing light."""
    cover = np.zeros((_SCENE_PX, _SCENE_PX), dtype=np.float32)
    cover[_MARGIN_PX:-_MARGIN_PX, _MARGIN_PX:-_MARGIN_PX] = garment / np.float32(255)
    scene = style.background + (_GARMENT_LEVELS - style.background) * cover
    if dusk is not None:
        scene = _blur(scene, dusk.blur_px)
    limit = config.max_shift_px
    start = rng.uniform(-limit, limit, size=2)
    steps = rng.normal(0.0, 0.45, size=(length, 2))
    shifts = np.rint(_reflect(start + np.cumsum(steps, axis=0), limit)).astype(np.int64)
    level = 1.0 + rng.uniform(-config.light_range, config.light_range)
    sway = 0.06 * np.sin(rng.uniform(0.0, 2 * np.pi) + np.arange(length) * rng.uniform(0.1, 0.5))
    return _BurstView(scene, shifts, level * (1.0 + sway))


def _reflect(path: NDArray[np.float64], limit: int) -> NDArray[np.float64]:
    """Fold a walk back into [-limit, limit], as a ball between two walls."""
    if limit == 0:
        return np.zeros_like(path)
    return limit - np.abs((path + limit) % (4 * limit) - 2 * limit)


def _expose(
    view: _BurstView, place: int, style: CameraStyle, dusk: Dusk | None, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """The sensor's picture of one moment of the burst."""
    top, left = _CENTRE_PX + view.shifts[place]
    crop = view.scene[top : top + FRAME_PX, left : left + FRAME_PX]
    tint = np.asarray(style.tint) * (dusk.tint if dusk else _UNTINTED)
    colour = (tint * style.gain * view.lights[place] * (dusk.light if dusk else 1.0)).astype(np.float32)
    noise_levels = style.noise_levels + (dusk.extra_noise_levels if dusk else 0.0)
    image = rng.standard_normal((FRAME_PX, FRAME_PX, 3), dtype=np.float32)
    image *= np.float32(noise_levels)
    image += crop[:, :, None] * colour
    return np.clip(image, 0, 255, out=image).astype(np.uint8)


def _blur(scene: NDArray[np.float32], sigma_px: float) -> NDArray[np.float32]:
    """Separable Gaussian blur, radius 3 sigma; the border repeats the backdrop."""
    if sigma_px <= 0:
        return scene
    radius = int(np.ceil(3 * sigma_px))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma_px) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        wide = np.pad(scene, [(radius, radius) if each == axis else (0, 0) for each in (0, 1)], mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(wide, len(kernel), axis=axis)
        scene = (windows @ kernel).astype(np.float32)
    return scene


def _dusk(config: WorldConfig, condition: Condition) -> Dusk | None:
    return config.dusk if condition == "dusk" else None


def _rng(config: WorldConfig, *stream: int) -> np.random.Generator:
    return np.random.default_rng([config.seed, *stream])
