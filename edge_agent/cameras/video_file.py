"""A video file as a camera."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from curate.errors import ConfigError
from edge_agent.cameras.base import CameraState, Frame, Skipped, SkipReason, due_in_s
from edge_agent.cameras.video import Shot, VideoStream, develop, open_address
from edge_agent.config.cameras import VideoCameraConfig

log = logging.getLogger(__name__)

_MAX_SKIPPED_AT_ONCE: Final = 25
"""Passing over a frame costs its decoding; one poll must stay short. After so many one is given all the same: a device
that decodes more slowly than the file plays would else only ever skip."""


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
            raise ConfigError(f"{config.public_source} does not state its frame rate", hint="Set camera.fps.")
        self._fps = fps
        self._started_s: float | None = None
        self._next_index = 0
        self._pass_started_at = 0
        self._has_just_skipped = False

    @property
    def camera_id(self) -> str:
        """The camera's name."""
        return self._config.camera_id

    @property
    def state(self) -> CameraState:
        """Playing until its end."""
        return CameraState.ENDED if self._stream is None else CameraState.DELIVERING

    @property
    def idle_s(self) -> float:
        """Until the next frame is due."""
        if self._stream is None:
            return 1.0
        if self._started_s is None:
            return 0.0
        return due_in_s(self._next_index, self._fps, self._monotonic() - self._started_s)

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
        self._has_just_skipped = due > self._config.max_lag_frames and not self._has_just_skipped
        if self._has_just_skipped:
            return self._skip(min(due - 1, _MAX_SKIPPED_AT_ONCE))
        return self._read(now_s)

    def close(self) -> None:
        """Let go of the file."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def join(self, timeout_s: float) -> None:
        """Nothing goes on after the end."""

    def _read(self, now_s: float) -> Frame | Skipped | None:
        if not self._advance() or self._stream is None:
            return None
        bgr = self._stream.retrieve()
        if bgr is None:
            return Skipped(SkipReason.UNDECODABLE, 1)
        return develop(self._config, Shot(self._next_index - 1, bgr, self._wall_clock(), now_s))

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
        stream = open_address(self._config)
        if not stream.is_open:
            is_file = Path(self._config.address).is_file()
            reason = "is no video that OpenCV can play" if is_file else "is not a file"
            raise ConfigError(
                f"{self._config.public_source} {reason}",
                hint="Set camera.source to a video file or to an address with ://.",
            )
        return stream
