"""What OpenCV does for cameras: open a file, an address or a USB device, and decode. Its only home, loaded on use.

A video frame has no encoding of its own to hold, so each frame that reaches the model is encoded once as JPEG: the ring
then holds a tenth of the pixels' memory, and `bytes_seen` stays what uploading every frame would have cost.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from datetime import datetime
from types import ModuleType
from typing import Any, Final, Self

import numpy as np

from curate.errors import ConfigError
from edge_agent.cameras.base import Frame, Pixels, Skipped, SkipReason
from edge_agent.config.cameras import LiveCameraConfig, UsbCameraConfig, VideoCameraConfig

log = logging.getLogger(__name__)

_MAX_FPS: Final = 240.0


def load_cv2() -> ModuleType:
    """Return OpenCV.

    Raises:
        ConfigError: it is not installed.
    """
    # Its decoders write to standard error on their own, at every failed attempt and with the address's password.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
    try:
        import cv2  # noqa: PLC0415 - a device without a video camera does without it
    except ImportError as exc:
        raise ConfigError(
            "a camera of kind video or usb needs OpenCV, which is not installed",
            hint="pip install 'edge-gleaner[agent,video]'",
        ) from exc
    cv2.setNumThreads(1)
    return cv2


class VideoStream:
    """An opened source. Nothing here raises: a stream that fails gives no more frames. Not thread-safe."""

    def __init__(self, source: str | int, backend: str, settings: dict[str, float]) -> None:
        """Open the source by OpenCV's backend `CAP_…`, with its properties `CAP_PROP_…`; when that fails, `grab` is
        false at once."""
        self._cv2: Any = load_cv2()
        named = {getattr(self._cv2, f"CAP_PROP_{name}"): int(setting) for name, setting in settings.items()}
        flat = [value for pair in named.items() for value in pair]
        self._capture = self._cv2.VideoCapture(source, getattr(self._cv2, f"CAP_{backend}"), flat)

    @property
    def is_open(self) -> bool:
        """Whether the source could be opened."""
        return bool(self._capture.isOpened())

    @property
    def fps(self) -> float | None:
        """The source's own frame rate, when it states a plausible one."""
        value = float(self._capture.get(self._cv2.CAP_PROP_FPS))
        return value if 0.0 < value <= _MAX_FPS else None

    def grab(self) -> bool:
        """Go to the next frame; False at the end or when the stream is lost."""
        try:
            return bool(self._capture.grab())
        except self._cv2.error as exc:
            log.debug("grab failed: %s", exc)
            return False

    def retrieve(self) -> Pixels | None:
        """Return the grabbed frame, uint8 [H, W, 3] in OpenCV's BGR order; None when it cannot be decoded."""
        try:
            found, image = self._capture.retrieve()
        except self._cv2.error as exc:
            log.debug("retrieve failed: %s", exc)
            return None
        fits = found and image is not None and image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
        return np.asarray(image) if fits else None

    def close(self) -> None:
        """Let go of the source."""
        self._capture.release()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def open_address(config: VideoCameraConfig) -> VideoStream:
    """Open a file or an address; waits at most about `config.timeout_s`.

    Raises:
        ConfigError: OpenCV is not installed, or the address stands in a variable that is not set.
    """
    timeout_ms = config.timeout_s * 1000
    settings = {"OPEN_TIMEOUT_MSEC": timeout_ms, "READ_TIMEOUT_MSEC": timeout_ms, "N_THREADS": 1.0}
    return VideoStream(config.address, "FFMPEG", settings)


def open_device(config: UsbCameraConfig) -> VideoStream:
    """Open a USB camera, asking for its size and rate; the driver may give the nearest it has.

    Raises:
        ConfigError: OpenCV is not installed.
    """
    wanted = {"FRAME_WIDTH": config.width, "FRAME_HEIGHT": config.height, "FPS": config.fps}
    settings = {name: value for name, value in wanted.items() if value is not None}
    return VideoStream(config.device, "V4L2", settings)


@dataclass(frozen=True, slots=True)
class Shot:
    """A decoded frame that nobody has looked at yet."""

    index: int
    bgr: Pixels
    captured_at: datetime
    monotonic_s: float


def develop(config: LiveCameraConfig, shot: Shot) -> Frame | Skipped:
    """Turn a shot into a frame: RGB, and encoded. What is too large or does not encode is skipped as undecodable."""
    cv2 = load_cv2()
    height, width = shot.bgr.shape[:2]
    if height * width > config.max_image_pixels:
        log.warning("frame is larger than allowed", extra={"width": width, "height": height})
        return Skipped(SkipReason.UNDECODABLE, 1)
    try:
        image = cv2.cvtColor(shot.bgr, cv2.COLOR_BGR2RGB)
        done, encoded = cv2.imencode(".jpg", shot.bgr, [cv2.IMWRITE_JPEG_QUALITY, config.jpeg_quality])
    except cv2.error as exc:
        log.warning("frame cannot be encoded", extra={"error": str(exc)})
        return Skipped(SkipReason.UNDECODABLE, 1)
    if not done:
        log.warning("frame cannot be encoded", extra={"width": width, "height": height})
        return Skipped(SkipReason.UNDECODABLE, 1)
    return Frame(config.camera_id, shot.index, image, shot.captured_at, shot.monotonic_s, encoded.tobytes())
