"""The simulated world's pixels: real garments before three cameras, each frame a function of seed, camera and index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from curate.errors import ConfigError
from flows.sandbox.fashion_mnist import FashionMnist
from flows.sandbox.world_schedule import (
    Burst,
    CameraStyle,
    Condition,
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
_CENTRE_PX = (_GARMENT_PX + 2 * _MARGIN_PX - FRAME_PX) // 2
_CLASSES = 10
_GARMENT_LEVELS = 200.0  # the brightest cloth before gain and light, leaving headroom below 255

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
        style = config.cameras[self._number]
        self._looks = {"day": _look(config, style, "day"), "dusk": _look(config, style, "dusk")}
        self._schedule = Schedule(config, camera_id)
        streamed = len(data.train_labels) - config.reserved_images
        self._garments = _Garments(data.train_images[:streamed], data.train_labels[:streamed])
        self._in_view: tuple[int, Condition, _BurstView] | None = None
        self.drift_from_frame = drift_frame(config, camera_id)

    def frame(self, index: int) -> WorldFrame:
        """Frame `index` (from 0): the same in every process and in any order."""
        burst = self._schedule.burst_at(index)
        condition = condition_at(index, self.drift_from_frame)
        view = self._view(burst, condition)
        rng = _rng(self._config, self._number, _NOISE_STREAM, index)
        image = _expose(view, index - burst.first, self._looks[condition], rng)
        return WorldFrame(image, burst.label, burst.number, condition)

    def _view(self, burst: Burst, condition: Condition) -> _BurstView:
        if self._in_view is None or self._in_view[:2] != (burst.number, condition):
            garment = self._garments.pick(burst.label, burst.pick)
            rng = _rng(self._config, self._number, _BURST_STREAM, burst.number)
            view = _view_burst(garment, burst.length, self._config, self._looks[condition], rng)
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
    """`n` labelled day frames for the first model: any camera, its mix, garments that no stream ever shows.

    Raises `ConfigError` when the world reserves no images for them.
    """
    if config.reserved_images == 0:
        raise ConfigError("the world reserves no garment for seed samples", hint="set its reserved_images above 0")
    streamed = len(data.train_labels) - config.reserved_images
    garments = _Garments(data.train_images[streamed:], data.train_labels[streamed:])
    rngs = [_rng(config, seed, _SEED_STREAM, i) for i in range(n)]
    return _stack([_single_frame(config, int(rng.integers(len(config.cameras))), garments, "day", rng) for rng in rngs])


class _Garments:
    """Images of a split, found by class and a number in [0, 1)."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
        self._images = images
        self._by_class = [np.flatnonzero(labels == label) for label in range(_CLASSES)]

    def pick(self, label: int, pick: float) -> NDArray[np.uint8]:
        of_class = self._by_class[label]
        image: NDArray[np.uint8] = self._images[of_class[int(pick * len(of_class))]]
        return image


class _Look(NamedTuple):
    """A camera under one condition: `colour`, float32 [3], multiplies grey levels, then noise is added."""

    background: float
    colour: NDArray[np.float32]
    noise_levels: np.float32
    blur_px: float


class _BurstView(NamedTuple):
    """A burst's scene in grey levels, float32 [36, 36], and the place (pixels down, right) and light of each frame."""

    scene: NDArray[np.float32]
    shifts: NDArray[np.int64]
    lights: NDArray[np.float64]


def _single_frame(
    config: WorldConfig, camera_number: int, garments: _Garments, condition: Condition, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], int]:
    style = config.cameras[camera_number]
    look = _look(config, style, condition)
    label = int(rng.choice(_CLASSES, p=style.class_mix))
    view = _view_burst(garments.pick(label, rng.random()), 1, config, look, rng)
    return _expose(view, 0, look, rng), label


def _look(config: WorldConfig, style: CameraStyle, condition: Condition) -> _Look:
    colour = np.asarray(style.tint, dtype=np.float32) * np.float32(style.gain)
    if condition == "day":
        return _Look(style.background, colour, np.float32(style.noise_levels), 0.0)
    dusk = config.dusk
    dimmed = colour * np.asarray(dusk.tint, dtype=np.float32) * np.float32(dusk.light)
    return _Look(style.background, dimmed, np.float32(style.noise_levels + dusk.extra_noise_levels), dusk.blur_px)


def _stack(samples: list[tuple[NDArray[np.uint8], int]]) -> LabelledImages:
    images = np.array([image for image, _ in samples], dtype=np.uint8).reshape(-1, FRAME_PX, FRAME_PX, 3)
    return LabelledImages(images, np.array([label for _, label in samples], dtype=np.int64))


def _view_burst(
    garment: NDArray[np.uint8], length: int, config: WorldConfig, look: _Look, rng: np.random.Generator
) -> _BurstView:
    """Lay the garment out and plan how it moves: a smooth walk within the shift limit, in slowly changing light."""
    scene = _blur(_lay_out(garment, look.background), look.blur_px)
    limit = config.max_shift_px
    start = rng.uniform(-limit, limit, size=2)
    steps = rng.normal(0.0, 0.45, size=(length, 2))
    shifts = np.rint(_reflect(start + np.cumsum(steps, axis=0), limit)).astype(np.int64)
    level = 1.0 + rng.uniform(-config.light_range, config.light_range)
    sway = 0.06 * np.sin(rng.uniform(0.0, 2 * np.pi) + np.arange(length) * rng.uniform(0.1, 0.5))
    return _BurstView(scene, shifts, level * (1.0 + sway))


def _lay_out(garment: NDArray[np.uint8], background: float) -> NDArray[np.float32]:
    """The garment on a plain backdrop: grey levels, float32 [36, 36]."""
    cover = np.pad(garment, _MARGIN_PX).astype(np.float32) / np.float32(255)
    return np.float32(background) + np.float32(_GARMENT_LEVELS - background) * cover


def _reflect(path: NDArray[np.float64], limit: int) -> NDArray[np.float64]:
    """Fold a walk back into [-limit, limit], as a ball between two walls."""
    if limit == 0:
        return np.zeros_like(path)
    return limit - np.abs((path + limit) % (4 * limit) - 2 * limit)


def _expose(view: _BurstView, place: int, look: _Look, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The sensor's picture of one moment of the burst."""
    top, left = _CENTRE_PX + view.shifts[place]
    crop = view.scene[top : top + FRAME_PX, left : left + FRAME_PX]
    image = rng.standard_normal((FRAME_PX, FRAME_PX, 3), dtype=np.float32)
    image *= look.noise_levels
    image += crop[:, :, None] * (look.colour * np.float32(view.lights[place]))
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


def _rng(config: WorldConfig, *stream: int) -> np.random.Generator:
    return np.random.default_rng([config.seed, *stream])
