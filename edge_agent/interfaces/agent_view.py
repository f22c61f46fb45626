"""What every interface may ask of the agent: HTTP, gRPC, MQTT and the page see it through this."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from curate.contracts.telemetry import DeviceCounters
from edge_agent.capture.feedback_intake import FeedbackIntake
from edge_agent.capture.frame_finder import FrameFinder
from edge_agent.capture.frame_ring import LivePrediction, PredictionLog
from edge_agent.interfaces.captures import CaptureTracker
from edge_agent.interfaces.health import CameraFacts, Health, evaluate_health
from edge_agent.latency import Latencies
from edge_agent.switches import Switches


@dataclass(frozen=True, slots=True)
class AgentView:
    """Every part is safe to call from any thread, and none of them makes a camera's loop wait."""

    device_id: str
    boot_id: str
    camera_ids: tuple[str, ...]
    status: Callable[[], Mapping[str, Any]]
    """What `GET /v1/status` answers, as JSON values."""
    counters: Callable[[], DeviceCounters]
    latencies: Callable[[], Latencies]
    predictions: PredictionLog
    intake: FeedbackIntake
    frames: FrameFinder
    captures: CaptureTracker
    explain: Callable[[LivePrediction], Mapping[str, Any]]
    """Why a frame was kept or not, as JSON values."""
    switches: Switches
    health: Callable[[], Health]


def prediction_document(prediction: LivePrediction) -> dict[str, Any]:
    """Return one prediction as the interfaces tell it."""
    return {
        "cursor": prediction.cursor,
        "prediction_id": prediction.prediction_id,
        "camera_id": prediction.camera_id,
        "frame_index": prediction.frame_index,
        "captured_at": prediction.captured_at.isoformat(),
        "release_id": prediction.release_id,
        "kind": prediction.spec.kind,
        "scores": dict(prediction.answer.scores),
        "captured": prediction.decision.arms,
    } | prediction.describe()


def assess_health(
    status: Mapping[str, Any],
    predictions: PredictionLog,
    *,
    running_s: float,
    max_silence_s: float,
    monotonic: Callable[[], float] = time.monotonic,
) -> Health:
    """Judge the agent by its status and its newest answers."""
    now_s = monotonic()
    cameras = []
    for camera in status.get("cameras", ()):
        newest = predictions.newest(camera["camera_id"])
        answer_age_s = None if newest is None else now_s - newest.monotonic_s
        cameras.append(CameraFacts(camera["camera_id"], camera["last_frame_age_s"], answer_age_s))
    return evaluate_health(
        cameras, has_model=status.get("release") is not None, running_s=running_s, max_silence_s=max_silence_s
    )
