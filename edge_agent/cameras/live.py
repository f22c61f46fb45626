"""A camera that goes on whether anybody reads or not: an address or a USB device, followed on a thread of its own."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from edge_agent.backoff import BackoffPolicy, decide_delay_s
from edge_agent.cameras.base import CameraState, Frame, Pixels, Skipped, SkipReason
from edge_agent.cameras.video import Shot, VideoStream, develop
from edge_agent.config.cameras import LiveCameraConfig

log = logging.getLogger(__name__)

INDEX_GAP_AFTER_LOSS: Final = 1000
"""Frame numbers leave this gap after a lost stream, so that nobody takes the frames on both sides for neighbours."""


class RateLimit:
    """Lets through at most `fps` frames a second of a faster stream; all of them without a limit. Not thread-safe."""

    def __init__(self, fps: float | None) -> None:
        self._interval_s = 1.0 / fps if fps else 0.0
        self._due_s = float("-inf")

    def due_in_s(self, now_s: float) -> float:
        """Return the seconds in which no frame will be let through. May be asked from any thread."""
        return max(0.0, self._due_s - now_s)

    def admits(self, now_s: float) -> bool:
        """Say whether the frame of this moment is one to look at."""
        if now_s < self._due_s:
            return False
        # From when it was due, so that the rate is kept on average; never in arrears by more than a frame.
        self._due_s = max(self._due_s, now_s - self._interval_s) + self._interval_s
        return True


class LiveVideo:
    """Follows a stream on a thread of its own and keeps the newest frames.

    Frames that came while the newest `max_queued_frames` waited are skipped for backpressure, and those that cannot be
    decoded are counted. A lost stream is opened again, after growing waits. With `fps` set the stream is thinned out
    to that rate first, as if the camera were slower. The index counts the frames of this run, with a gap where the
    stream was lost.
    """

    def __init__(
        self,
        config: LiveCameraConfig,
        open_stream: Callable[[], VideoStream],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        rng: random.Random | None = None,
    ) -> None:
        """Prepare; the stream is opened with the first poll."""
        self._config = config
        self._open = open_stream
        self._monotonic = monotonic
        self._wall_clock = wall_clock
        self._rng = rng or random.Random()
        self._rate = RateLimit(config.fps)
        self._backoff = BackoffPolicy(cap_s=config.max_reconnect_s)
        self._lock = threading.Lock()
        self._waiting: deque[Shot] = deque()
        self._passed_over = dict.fromkeys((SkipReason.BACKPRESSURE, SkipReason.UNDECODABLE), 0)
        self._next_index = 0
        self._state = CameraState.STARTING
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"video-{config.camera_id}", daemon=True)
        self._is_started = False

    @property
    def camera_id(self) -> str:
        """The camera's name."""
        return self._config.camera_id

    @property
    def state(self) -> CameraState:
        """Whether the stream delivers; also told while nobody polls."""
        return self._state

    @property
    def idle_s(self) -> float:
        """Until the stream, thinned out to `fps`, lets another frame through; 0 while one waits."""
        if self._waiting or any(self._passed_over.values()):
            return 0.0
        return min(1.0, self._rate.due_in_s(self._monotonic()))

    def poll(self) -> Frame | Skipped | None:
        """Return what was passed over, the oldest frame that waits, or None."""
        if not self._is_started:
            self._is_started = True
            self._thread.start()
        with self._lock:
            for reason, count in self._passed_over.items():
                if count:
                    self._passed_over[reason] = 0
                    return Skipped(reason, count)
            shot = self._waiting.popleft() if self._waiting else None
        return develop(self._config, shot) if shot else None

    def close(self) -> None:
        """Tell the thread to end."""
        self._stop.set()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread; one that waits for the network is left behind."""
        if self._is_started:
            self._thread.join(timeout_s)

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
        with self._open() as stream:
            while not self._stop.is_set() and stream.grab():
                if self._rate.admits(self._monotonic()):
                    self._take(stream.retrieve())
        if not self._stop.is_set():
            self._note_lost()
        came = self._next_index > first_index
        self._next_index += INDEX_GAP_AFTER_LOSS if came else 0
        return came

    def _take(self, bgr: Pixels | None) -> None:
        if bgr is None:
            with self._lock:
                self._passed_over[SkipReason.UNDECODABLE] += 1
            return
        self._note_back()
        # OpenCV gives a new array for each frame, so the queue may hold it.
        shot = Shot(self._next_index, bgr, self._wall_clock(), self._monotonic())
        self._next_index += 1
        with self._lock:
            self._waiting.append(shot)
            if len(self._waiting) > self._config.max_queued_frames:
                self._waiting.popleft()
                self._passed_over[SkipReason.BACKPRESSURE] += 1

    def _note_lost(self) -> None:
        if self._state is not CameraState.LOST:
            log.warning("the video stream is lost", extra=self._told())
        self._state = CameraState.LOST

    def _note_back(self) -> None:
        if self._state is CameraState.LOST:
            log.info("the video stream is back", extra=self._told())
        self._state = CameraState.DELIVERING

    def _told(self) -> dict[str, str]:
        return {"camera_id": self._config.camera_id, "source": self._config.public_source}
