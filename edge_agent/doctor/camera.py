"""Looks through the cameras: do frames come, how fast, bright and sharp enough?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from curate.errors import Error
from edge_agent.cameras.base import Frame, Pixels
from edge_agent.cameras.registry import close_cameras, describe_camera, open_camera
from edge_agent.config.cameras import CameraConfig
from edge_agent.doctor.findings import Finding, fail, ok, warn

LOOK_S: Final = 3.0
ENOUGH_FRAMES: Final = 10
DARK: Final = 16.0
GLARING: Final = 240.0
BLURRED: Final = 15.0
"""Variance of the Laplacian below which a picture has hardly an edge. A bare wall has none either, so it only warns."""
_LUMA: Final = np.array([0.299, 0.587, 0.114], np.float32)
_PAUSE_S: Final = 0.01
_CLOSE_TIMEOUT_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen in a few seconds."""

    frames: int
    fps: float | None
    width: int
    height: int
    brightness: float
    """Mean luminance, 0 to 255."""
    sharpness: float
    """Variance of the Laplacian (Pech-Pacheco et al., ICPR 2000)."""


def examine_camera(config: CameraConfig, *, look_s: float = LOOK_S) -> Iterator[Finding]:
    """Open the camera and look for some seconds; not for one that a running agent holds."""
    name = f"camera {config.camera_id}"
    try:
        found = describe_camera(config)
        look = _look(config, look_s)
    except Error as exc:
        yield fail(name, str(exc), exc.hint or "Look at camera in the configuration.")
        return
    if look is None:
        yield fail(name, f"{found}, but no frame came in {look_s:g} s", "Is the program or camera behind it running?")
    else:
        yield judge_look(name, look)


def judge_look(name: str, look: Look) -> Finding:
    """Judge what was seen."""
    rate = "one frame" if look.fps is None else f"{look.fps:.1f} frames a second"
    size = f"{look.width}x{look.height} pixels"
    text = f"{rate}, {size}, brightness {look.brightness:.0f} of 255, sharpness {look.sharpness:.0f}"
    if look.brightness < DARK:
        return warn(name, f"{text}: nearly black", "Lens cap, night, or exposure? Look at the picture at /.")
    if look.brightness > GLARING:
        return warn(name, f"{text}: nearly white", "Light into the lens, or exposure? Look at the picture at /.")
    if look.sharpness < BLURRED:
        return warn(name, f"{text}: hardly an edge", "Focus the lens and clean it, unless it looks at a bare wall.")
    return ok(name, text)


def judge_running_camera(camera: dict[str, Any]) -> Finding:
    """Judge a camera by what the running agent says of it in its status."""
    name = f"camera {camera['camera_id']}"
    age_s, fps = camera.get("last_frame_age_s"), camera.get("fps")
    text = f"{camera['state']}, as the running agent sees it"
    if camera["state"] in {"lost", "starting"}:
        return fail(name, text, "Is it powered and on the network? The agent tries it again by itself.")
    if age_s is None or fps is None:
        return warn(name, f"{text}; not two frames have come yet", "Wait some seconds and ask again.")
    return ok(name, f"{text}: {fps:.1f} frames a second, the last {age_s:.0f} s ago")


def measure_picture(image: Pixels) -> tuple[float, float]:
    """Return (mean luminance, variance of the Laplacian) of an RGB picture, uint8 [H, W, 3]."""
    luma: NDArray[np.float32] = image.astype(np.float32) @ _LUMA
    if min(luma.shape) < 3:
        return float(luma.mean()), 0.0
    centre = luma[1:-1, 1:-1]
    edges = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4.0 * centre
    return float(luma.mean()), float(edges.var())


def _look(config: CameraConfig, look_s: float) -> Look | None:
    camera = open_camera(config)
    times_s: list[float] = []
    last: Frame | None = None
    deadline_s = time.monotonic() + look_s
    try:
        while time.monotonic() < deadline_s and len(times_s) < ENOUGH_FRAMES:
            event = camera.poll()
            if isinstance(event, Frame):
                last = event
                times_s.append(time.monotonic())
            elif event is None:
                time.sleep(_PAUSE_S)
    finally:
        close_cameras([camera], timeout_s=_CLOSE_TIMEOUT_S)
    if last is None:
        return None
    height, width = last.image.shape[:2]
    span_s = times_s[-1] - times_s[0]
    fps = (len(times_s) - 1) / span_s if span_s > 0.0 else None
    return Look(len(times_s), fps, int(width), int(height), *measure_picture(last.image))
