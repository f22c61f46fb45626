"""Is the agent doing its job? It answers frames of every camera, or says in words why not. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CameraFacts:
    """How one camera stands."""

    camera_id: str
    last_frame_age_s: float | None
    """Seconds since its newest frame; None before the first."""
    last_answer_age_s: float | None
    """Seconds since the newest answer to one of its frames; None before the first."""


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the job is done, and what keeps it from being done."""

    reasons: tuple[str, ...]

    @property
    def is_healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.reasons

    @property
    def status(self) -> str:
        """`ok` or `unhealthy`."""
        return "ok" if self.is_healthy else "unhealthy"


def evaluate_health(
    cameras: Iterable[CameraFacts], *, has_model: bool, running_s: float, max_silence_s: float
) -> Health:
    """Judge the agent after `running_s` seconds; each camera may be silent for `max_silence_s`.

    A dead link, a full spool or a stopped upload is no reason: frames are answered all the same.
    """
    reasons = [] if has_model else ["there is no model yet"]
    for camera in cameras:
        frame_s = running_s if camera.last_frame_age_s is None else camera.last_frame_age_s
        answer_s = running_s if camera.last_answer_age_s is None else camera.last_answer_age_s
        if frame_s > max_silence_s:
            reasons.append(f"camera {camera.camera_id} has given no frame for {frame_s:.0f} s")
        elif has_model and answer_s > max_silence_s:
            reasons.append(f"frames of camera {camera.camera_id} have not been answered for {answer_s:.0f} s")
    return Health(tuple(reasons))
