"""Video as a camera: a file at its own rate, or a live address. The one home of OpenCV, which is loaded on first use.

A video frame has no encoding of its own to hold, so each frame that reaches the model is encoded once as JPEG: the ring
then holds a tenth of the pixels' memory, and `bytes_seen` stays what uploading every frame would have cost.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from curate.errors import AgentError, ConfigError
from edge_agent.backoff import BackoffPolicy, decide_delay_s
from edge_agent.cameras.base import Camera, Frame, Pixels, Skipped, SkipReason
from edge_agent.config.cameras import VideoCameraConfig

log = logging.getLogger(__name__)

_MAX_FPS: Final = 240.0
_MAX_SKIPPED_AT_ONCE: Final = 25
"""Passing over a frame costs its decoding; one poll must stay short."""
INDEX_GAP_AFTER_LOSS: Final = 1000
"""Frame numbers leave this gap after a lost stream, so that nobody takes the frames on both sides for neighbours."""
_JOIN_TIMEOUT_S: Final = 1.0


def open_video(config: VideoCameraConfig) -> Camera:
    """Build the camera that plays a file or follows a live address.

    Raises:
        ConfigError: OpenCV is not installed, or the file cannot be played. A live address may come later.
    """
    _load_cv2()
    return LiveVideo(config) if config.is_live else VideoFile(config)


def describe_video(config: VideoCameraConfig) -> str:
    """Open the source, read one frame and say what it is.

    Raises:
        ConfigError: OpenCV is not installed, or the file is missing.
        AgentError: the source gives no frame.
    """
    _load_cv2()
    if not config.is_live and not Path(config.address).is_file():
        raise ConfigError(f"{config.address} is not a file", hint="camera.source is a path, or an address with ://.")
    with VideoStream(config.address, timeout_s=config.timeout_s) as stream:
        image = stream.retrieve() if stream.grab() else None
    if image is None:
        raise AgentError(
            f"{config.public_source} gives no frame", hint="Try the same address with a player such as ffplay."
        )
    return f"{config.public_source} gives frames of {image.shape[1]}x{image.shape[0]} pixels"


def _load_cv2() -> ModuleType:
    try:
        import cv2  # noqa: PLC0415 - a device without a video camera does without it
    except ImportError as exc:
        raise ConfigError(
            "a camera of kind video needs OpenCV, which is not installed",
            hint="pip install 'edge-gleaner[agent,video]'",
        ) from exc
    cv2.setNumThreads(1)
    return cv2


class VideoStream:
    """An opened source. Nothing here raises: a stream that fails gives no more frames. Not thread-safe."""

    def __init__(self, address: str, *, timeout_s: float) -> None:
        """Open the source; when that fails, `grab` is false at once. Waits at most about `timeout_s`."""
        self._cv2: Any = _load_cv2()
        timeout_ms = int(timeout_s * 1000)
        settings = {"OPEN_TIMEOUT_MSEC": timeout_ms, "READ_TIMEOUT_MSEC": timeout_ms, "N_THREADS": 1}
        flat = [value for name, setting in settings.items() for value in (self._property(name), setting)]
        self._capture = self._cv2.VideoCapture(address, self._cv2.CAP_FFMPEG, flat)

    def _property(self, name: str) -> int:
        return int(getattr(self._cv2, f"CAP_PROP_{name}"))

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

    def __enter__(self) -> VideoStream:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


@dataclass(frozen=True, slots=True)
class _Shot:
    """A decoded frame that nobody has looked at yet."""

    index: int
    bgr: Pixels
    captured_at: datetime
    monotonic_s: float


def _develop(config: VideoCameraConfig, shot: _Shot) -> Frame | Skipped:
    """Turn a shot into a frame: RGB, and encoded."""
    cv2 = _load_cv2()
    height, width = shot.bgr.shape[:2]
    if height * width > config.max_image_pixels:
        log.warning("frame is larger than allowed", extra={"width": width, "height": height})
        return Skipped(SkipReason.UNDECODABLE, 1)
    try:
        image = cv2.cvtColor(shot.bgr, cv2.COLOR_BGR2RGB)
        encoded = cv2.imencode(".jpg", shot.bgr, [cv2.IMWRITE_JPEG_QUALITY, config.jpeg_quality])[1].tobytes()
    except cv2.error as exc:
        log.warning("frame cannot be encoded", extra={"error": str(exc)})
        return Skipped(SkipReason.UNDECODABLE, 1)
    return Frame(config.camera_id, shot.index, image, shot.captured_at, shot.monotonic_s, encoded)


class VideoFile:
    """Plays a file at its own rate, or at `fps`, once or over and over.

    Like a real camera it does not wait for its reader: when more than `max_lag_frames` are due, those before the newest
    are skipped for backpressure. The index is the frame's position in the file; in a loop it goes on growing.
    `captured_at` is the time of reading.
    """

    def __init__(
        self,
        config: VideoCameraConfig,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Open the file; it starts to play with the first poll.

        Raises:
            ConfigError: the file is missing, no video, or does not state its rate while `fps` is not set.
        """
        self._config = config
        self._monotonic = monotonic
        self._wall_clock = wall_clock
        self._stream: VideoStream | None = self._open()
        fps = config.fps or self._stream.fps
        if fps is None:
            raise ConfigError(f"{config.address} does not state its frame rate", hint="Set camera.fps.")
        self._fps = fps
        self._started_s: float | None = None
        self._next_index = 0
        self._pass_started_at = 0

    @property
    def camera_id(self) -> str:
        """The camera's name."""
        return self._config.camera_id

    def poll(self) -> Frame | Skipped | None:
        """Return the next frame when it is due, what was skipped, or None; None for ever after the end."""
        if self._stream is None:
            return None
        now_s = self._monotonic()
        if self._started_s is None:
            self._started_s = now_s
        due = int((now_s - self._started_s) * self._fps) + 1 - self._next_index
        if due <= 0:
            return None
        if due > self._config.max_lag_frames:
            return self._skip(min(due - 1, _MAX_SKIPPED_AT_ONCE))
        return self._read(now_s)

    def close(self) -> None:
        """Let go of the file."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _read(self, now_s: float) -> Frame | Skipped | None:
        if not self._advance() or self._stream is None:
            return None
        bgr = self._stream.retrieve()
        if bgr is None:
            return Skipped(SkipReason.UNDECODABLE, 1)
        return _develop(self._config, _Shot(self._next_index - 1, bgr, self._wall_clock(), now_s))

    def _skip(self, count: int) -> Skipped | None:
        passed = 0
        while passed < count and self._advance():
            passed += 1
        return Skipped(SkipReason.BACKPRESSURE, passed) if passed else None

    def _advance(self) -> bool:
        """Go to the next frame, in a loop perhaps the first one again; False, and closed, at the end."""
        if self._stream is None:
            return False
        if not self._stream.grab() and not self._rewind():
            log.info("the video has ended", extra={"source": self._config.public_source, "frames": self._next_index})
            self.close()
            return False
        self._next_index += 1
        return True

    def _rewind(self) -> bool:
        """Open the file anew and go to its first frame, unless it is played once or the last pass had no frame."""
        if not self._config.loop or self._next_index == self._pass_started_at:
            return False
        self._pass_started_at = self._next_index
        self.close()
        try:
            self._stream = self._open()
        except ConfigError as exc:
            log.warning("the video cannot be played again", extra={"error": str(exc)})
            return False
        return self._stream.grab()

    def _open(self) -> VideoStream:
        address = self._config.address
        stream = VideoStream(address, timeout_s=self._config.timeout_s)
        if not stream.is_open:
            reason = "is no video that OpenCV can play" if Path(address).is_file() else "is not a file"
            raise ConfigError(
                f"{address} {reason}", hint="Set camera.source to a video file or to an address with ://."
            )
        return stream


class RateLimit:
    """Lets through at most `fps` frames a second of a faster stream; all of them without a limit. Not thread-safe."""

    def __init__(self, fps: float | None) -> None:
        self._interval_s = 1.0 / fps if fps else 0.0
        self._due_s = float("-inf")

    def admits(self, now_s: float) -> bool:
        """Say whether the frame of this moment is one to look at."""
        if now_s < self._due_s:
            return False
        # From when it was due, so that the rate is kept on average; never in arrears by more than a frame.
        self._due_s = max(self._due_s, now_s - self._interval_s) + self._interval_s
        return True


class LiveVideo:
    """Follows a live address on a thread of its own and keeps the newest frames.

    Frames that came while the newest `max_queued_frames` waited are skipped for backpressure. A lost stream is opened
    again, after growing waits. With `fps` set the stream is thinned out to that rate first, as if the camera were
    slower. The index counts the frames of this run, with a gap where the stream was lost.
    """

    def __init__(
        self,
        config: VideoCameraConfig,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        rng: random.Random | None = None,
    ) -> None:
        """Prepare; the stream is opened with the first poll."""
        self._config = config
        self._monotonic = monotonic
        self._wall_clock = wall_clock
        self._rng = rng or random.Random()
        self._rate = RateLimit(config.fps)
        self._backoff = BackoffPolicy(cap_s=config.max_reconnect_s)
        self._lock = threading.Lock()
        self._waiting: deque[_Shot] = deque()
        self._passed_over = 0
        self._next_index = 0
        self._lost = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="video", daemon=True)
        self._is_started = False

    @property
    def camera_id(self) -> str:
        """The camera's name."""
        return self._config.camera_id

    def poll(self) -> Frame | Skipped | None:
        """Return what was passed over, the oldest frame that waits, or None."""
        if not self._is_started:
            self._is_started = True
            self._thread.start()
        with self._lock:
            passed, self._passed_over = self._passed_over, 0
            shot = self._waiting.popleft() if self._waiting and not passed else None
        if passed:
            return Skipped(SkipReason.BACKPRESSURE, passed)
        return _develop(self._config, shot) if shot else None

    def close(self) -> None:
        """End the thread; one that waits for the network is left behind."""
        self._stop.set()
        if self._is_started:
            self._thread.join(_JOIN_TIMEOUT_S)

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                failures = 0 if self._follow() else failures
            except Exception:
                log.exception("video turn failed")
            failures += 1
            delay_s = decide_delay_s(self._backoff, failures=failures, retryable=True, rng=self._rng)
            self._stop.wait(delay_s)

    def _follow(self) -> bool:
        """Read until the stream is lost; return whether there was a frame."""
        first_index = self._next_index
        with VideoStream(self._config.address, timeout_s=self._config.timeout_s) as stream:
            while not self._stop.is_set() and stream.grab():
                if self._rate.admits(self._monotonic()) and (bgr := stream.retrieve()) is not None:
                    self._note_back()
                    self._put(bgr)
        if not self._stop.is_set():
            self._note_lost()
        came = self._next_index > first_index
        self._next_index += INDEX_GAP_AFTER_LOSS if came else 0
        return came

    def _put(self, bgr: Pixels) -> None:
        # OpenCV gives a new array for each frame, so the queue may hold it.
        shot = _Shot(self._next_index, bgr, self._wall_clock(), self._monotonic())
        self._next_index += 1
        with self._lock:
            self._waiting.append(shot)
            if len(self._waiting) > self._config.max_queued_frames:
                self._waiting.popleft()
                self._passed_over += 1

    def _note_lost(self) -> None:
        if not self._lost:
            log.warning("the video stream is lost", extra={"source": self._config.public_source})
        self._lost = True

    def _note_back(self) -> None:
        if self._lost:
            log.info("the video stream is back", extra={"source": self._config.public_source})
        self._lost = False
