"""What a camera is and what it gives; and how pictures are decoded and encoded."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from curate.errors import AgentError

Pixels = NDArray[np.uint8]


class SkipReason(StrEnum):
    """Why a frame was seen and not inferred."""

    BACKPRESSURE = "backpressure"
    UNDECODABLE = "undecodable"
    NO_MODEL = "no_model"
    BAD_OUTPUT = "bad_output"
    UNCHANGED = "unchanged"
    """The scene gate let the last answer stand for it."""


class CameraState(StrEnum):
    """Whether a camera gives frames now."""

    STARTING = "starting"
    """Not one frame has come yet."""
    DELIVERING = "delivering"
    LOST = "lost"
    """The source does not answer; it is tried again."""
    ENDED = "ended"
    """A file was played to its end."""


class UndecodableError(AgentError):
    """A picture cannot be decoded, or is larger than allowed."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture in memory."""

    camera_id: str
    index: int
    """The camera's own running number."""
    image: Pixels
    """uint8, [height, width, 3], RGB."""
    captured_at: datetime
    monotonic_s: float
    """This process's monotonic clock when the frame was read."""
    encoded: bytes
    """PNG or JPEG: the camera's own encoding where it has one. Decodes to `image` again, for a video nearly so, and
    says what uploading it would cost."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """Frames that passed without reaching the model."""

    reason: SkipReason
    count: int


class Camera(Protocol):
    """A source of frames. `poll` never waits: it gives the next frame, what was skipped, or None for nothing new."""

    @property
    def camera_id(self) -> str:
        """The camera's name."""

    @property
    def state(self) -> CameraState:
        """Whether it gives frames now. May be asked from any thread."""

    @property
    def idle_s(self) -> float:
        """Seconds in which no frame can come, as far as it knows; 0 when it does not. Until then polling is in vain."""

    def poll(self) -> Frame | Skipped | None:
        """Return the next event in order, or None when there is none now."""

    def close(self) -> None:
        """Let go of what it holds, without waiting; there is nothing to poll afterwards."""

    def join(self, timeout_s: float) -> None:
        """Wait until what was closed has ended, at most so long; what waits for the network is left behind."""


def due_in_s(index: int, fps: float, played_s: float) -> float:
    """Return the seconds until frame `index` is due, at most 1, so that a slow camera still shows that it is read."""
    return min(1.0, max(0.0, index / fps - played_s))


def decode_image(encoded: bytes, *, max_pixels: int) -> Pixels:
    """Decode a PNG or JPEG into RGB pixels, uint8 [H, W, 3]; sixteen bits of grey are scaled to eight.

    Raises:
        UndecodableError: not such a picture, damaged, or more than `max_pixels`; the size is read from the
            header, so a decompression bomb is refused before it is unpacked.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as picture:
            if picture.width * picture.height > max_pixels:
                raise UndecodableError(f"{picture.width}x{picture.height} pixels are more than {max_pixels}")
            # Pillow would clip them: everything above the darkest 1/257 would be white.
            shown = picture.point(lambda level: level * (1 / 257)) if picture.mode.startswith("I") else picture
            return np.asarray(shown if shown.mode == "RGB" else shown.convert("RGB"), dtype=np.uint8)
    # Pillow's decoders raise whatever the damaged bytes lead them to.
    except (OSError, ValueError, SyntaxError, TypeError, LookupError, EOFError, struct.error, zlib.error) as exc:
        raise UndecodableError(f"cannot decode: {exc}") from exc
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise UndecodableError(str(exc)) from exc


def encode_jpeg(image: Pixels, *, quality: int) -> bytes:
    """Encode RGB pixels, uint8 [H, W, 3], as a JPEG without colour subsampling and without metadata."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
