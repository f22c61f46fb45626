"""The plaza as its cameras show it, by day and at dusk, and how to tell which frame of the clip a picture is.

Nobody relies on frame counters: annotators, users and the report get a picture and recognise it.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from flows.sandbox.plaza_clip import iterate_frames

Condition = Literal["day", "dusk"]
Pixels = NDArray[np.uint8]

SEED_FRAMES = (0, 198)
"""First and last frame of the clip that the first model's data is made of."""
FIELD_FRAMES = (199, 566)
"""What the cameras show, over and over."""
TEST_FRAMES = (597, 794)
"""What only the exam looks at, after a gap."""

# At 0.35 a first model with the product's augmentation loses nothing; at 0.15 its AP50 falls from 0.86 to 0.35.
DUSK_GAIN = 0.17
_DUSK_TINT = np.array([0.90, 0.96, 1.10], np.float32)  # red, green, blue
_DUSK_BLUR_PX = 1.3
_DUSK_NOISE_LEVELS = 7.0
_JPEG_QUALITY = 92
_DUSK_STREAM = 31

_GRID = (128, 96)
_DARKER_THAN = 0.5
"""A picture this much darker than the clip is at dusk: between its gain and the day's."""


class Scene(NamedTuple):
    """What a picture shows: a frame of the clip in some light."""

    frame: int
    condition: Condition

    def __str__(self) -> str:
        """`231/day`: how journals write it."""
        return f"{self.frame}/{self.condition}"

    @classmethod
    def parse(cls, text: str) -> Scene:
        """Read what `str` wrote. Raises ValueError for anything else."""
        frame, _, condition = text.partition("/")
        for known in ("day", "dusk"):
            if condition == known:
                return cls(int(frame), known)
        raise ValueError(f"{text!r} is no scene")


def show(frame: Pixels, number: int, condition: Condition, seed: int) -> Pixels:
    """Return the clip's frame uint8 [H, W, 3] as the camera's sensor sees it in that light: the same every time."""
    if condition == "day":
        return frame
    soft = Image.fromarray(frame).filter(ImageFilter.GaussianBlur(_DUSK_BLUR_PX))
    rng = np.random.default_rng([seed, _DUSK_STREAM, number])
    image = rng.standard_normal(frame.shape, dtype=np.float32)
    image *= np.float32(_DUSK_NOISE_LEVELS)
    image += np.asarray(soft, np.float32) * (np.float32(DUSK_GAIN) * _DUSK_TINT)
    return np.clip(image, 0, 255, out=image).astype(np.uint8)


def encode(image: Pixels) -> bytes:
    """Return the JPEG that the camera sends."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def decode(encoded: bytes) -> Pixels:
    """Return the picture of a JPEG or PNG as RGB uint8 [H, W, 3]. Raises ValueError when it is none."""
    try:
        with Image.open(io.BytesIO(encoded)) as picture:
            return np.asarray(picture.convert("RGB"))
    except OSError as exc:
        raise ValueError(f"no picture: {exc}") from exc


class ClipReader:
    """Recognises frames of the clip. Thread-safe."""

    def __init__(self, numbers: Iterable[int], frames: Iterable[Pixels]) -> None:
        """Learn what the frames uint8 [H, W, 3] with these numbers look like."""
        self._numbers = np.fromiter(numbers, np.int64)
        small = np.stack([_shrink(frame) for frame in frames])
        self._level = float(small.mean())
        self._empty = np.median(small, axis=0)
        self._signs = np.stack([self._sign(each) for each in small])

    @classmethod
    def of_field(cls, clip: Path) -> ClipReader:
        """Read the part of the clip that the cameras show. Raises `DatasetError` when it cannot be decoded."""
        first, last = FIELD_FRAMES
        return cls(range(first, last + 1), iterate_frames(clip, first, last))

    def recognise(self, image: Pixels) -> Scene:
        """Return which frame of the clip the picture, of any size, shows and in which light."""
        small = _shrink(image)
        condition: Condition = "dusk" if small.mean() < _DARKER_THAN * self._level else "day"
        return Scene(int(self._numbers[int(np.argmax(self._signs @ self._sign(small)))]), condition)

    def _sign(self, small: NDArray[np.float32]) -> NDArray[np.float32]:
        """What stands out from the empty plaza, whatever the light: a vector of length 1."""
        scale = float((small * self._empty).sum() / (self._empty**2).sum())
        rest = (small / scale - self._empty).ravel()
        return np.asarray(rest / max(float(np.linalg.norm(rest)), 1e-6), np.float32)


def _shrink(image: Pixels) -> NDArray[np.float32]:
    grey = Image.fromarray(image).convert("L").resize(_GRID, Image.Resampling.BOX)
    return np.asarray(grey, np.float32)
