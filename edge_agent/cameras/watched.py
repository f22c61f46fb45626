"""Watches a camera being read: whether somebody still polls it, and how many frames it gives."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from edge_agent.cameras.base import Camera, CameraState, Frame, Skipped

_WINDOW_FRAMES: Final = 32


class WatchedCamera:
    """A camera that remembers when it was polled and what it gave. Polled by one thread, asked about by any."""

    def __init__(self, camera: Camera, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._camera = camera
        self._monotonic = monotonic
        self._polled_s = monotonic()
        self._frame_times_s: deque[float] = deque(maxlen=_WINDOW_FRAMES)
        self._frames = 0

    @property
    def camera_id(self) -> str:
        """The camera's name."""
        return self._camera.camera_id

    @property
    def state(self) -> CameraState:
        """Whether it gives frames now."""
        return self._camera.state

    @property
    def idle_s(self) -> float:
        """Seconds in which no frame can come."""
        return self._camera.idle_s

    @property
    def unpolled_s(self) -> float:
        """Seconds since somebody asked for a frame: grows when the thread that reads it hangs."""
        return self._monotonic() - self._polled_s

    def poll(self) -> Frame | Skipped | None:
        """Return the next event of the camera."""
        self._polled_s = polled_s = self._monotonic()
        event = self._camera.poll()
        if isinstance(event, Frame):
            self._frames += 1
            self._frame_times_s.append(polled_s)
        return event

    def close(self) -> None:
        """Close the camera."""
        self._camera.close()

    def join(self, timeout_s: float) -> None:
        """Wait until it has ended."""
        self._camera.join(timeout_s)

    def describe(self) -> dict[str, Any]:
        """Return what the status says of this camera, as JSON values."""
        times_s = tuple(self._frame_times_s)
        return {
            "camera_id": self.camera_id,
            "state": self.state.value,
            "frames": self._frames,
            "fps": _rate(times_s),
            "last_frame_age_s": round(self._monotonic() - times_s[-1], 1) if times_s else None,
        }


def _rate(times_s: tuple[float, ...]) -> float | None:
    """Return frames a second over the newest frames, or None before there are two."""
    span_s = times_s[-1] - times_s[0] if len(times_s) > 1 else 0.0
    return round((len(times_s) - 1) / span_s, 2) if span_s > 0.0 else None
