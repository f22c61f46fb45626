"""What the scene gate saves and what it loses, on a clip that a detector watches with the gate and without.

One pass over the clip serves both: the gated stream sees an answer when the gate lets the frame through, else its last.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np

from curate.answers.base import Answer
from curate.answers.detection import DetectionAnswer
from curate.contracts.device_settings import SceneGateSpec
from curate.errors import AgentError
from edge_agent.bench.report import Bar, Figure, Section
from edge_agent.cameras.base import Pixels
from edge_agent.cameras.video import open_address
from edge_agent.capture.scene_gate import SceneGate
from edge_agent.capture.track_events import SeenBoxes, find_events, share_kept
from edge_agent.config.cameras import VideoCameraConfig
from edge_agent.models.inference import LoadedModel

FPS: Final = 25.0
STILL_FRAMES: Final = 1000
GRAIN: Final = 1.5
"""Standard deviation of the noise of a still scene, in grey levels: a sensor by day."""
SKIP_BAR: Final = Bar(0.5, at_least=True)
STILL_BAR: Final = Bar(0.95, at_least=True)
EVENTS_BAR: Final = Bar(0.98, at_least=True)


@dataclass
class _Streams:
    """What was seen without the gate and with it."""

    ungated: list[SeenBoxes] = field(default_factory=list)
    gated: list[SeenBoxes] = field(default_factory=list)
    threshold: float = 0.5
    width: int = 1
    look_s: list[float] = field(default_factory=list)


def measure_gate(clip: Path, model: LoadedModel, *, sensitivity: float) -> Section:
    """Return skipped shares, kept track events and the gate's own cost.

    Args:
        clip: a video file; its frames are taken as 25 a second.
        model: a detector.
        sensitivity: the gate's.

    Raises:
        AgentError: the clip has no frame, or the model is no detector.
    """
    if model.spec.kind != "detection":
        raise AgentError("the scene gate is measured with a detector", hint="Pass --detector FILE.")
    spec = SceneGateSpec(enabled=True, sensitivity=sensitivity)
    gate = SceneGate(np.random.default_rng(0))
    streams, first = _watch(clip, model, gate, spec)
    still = _skip_still(first, spec)
    return summarise(streams, gate.counts.skipped / max(1, gate.counts.frames), still, spec)


def summarise(streams: _Streams, skipped: float, still: float, spec: SceneGateSpec) -> Section:
    """Return the figures. Pure."""
    expected, found = (
        find_events(stream, shown_from=streams.threshold, width=streams.width)
        for stream in (streams.ungated, streams.gated)
    )
    clip = f"{len(streams.ungated)} frames taken as {FPS:g} a second, sensitivity {spec.sensitivity:g}"
    events = f"{len(expected)} events without the gate: births, deaths, crossings of the middle"
    noise = f"{STILL_FRAMES} frames of one picture with noise of {GRAIN:g} grey levels"
    return Section(
        "gate",
        (
            Figure("frames the gate skips on the clip", skipped, "", SKIP_BAR, clip),
            Figure("frames the gate skips on a still scene", still, "", STILL_BAR, noise),
            Figure("track events kept", share_kept(expected, found), "", EVENTS_BAR, events),
            Figure("one look of the gate", median(streams.look_s) * 1e3, "ms", detail="median of the clip's frames"),
        ),
    )


def _watch(clip: Path, model: LoadedModel, gate: SceneGate, spec: SceneGateSpec) -> tuple[_Streams, Pixels]:
    streams, first = _Streams(), None
    ungated, gated = model.kind.reader(model.spec), model.kind.reader(model.spec)
    last: Answer | None = None
    for number, image in enumerate(_frames(clip)):
        first = image if first is None else first
        at_s, (height, width) = number / FPS, image.shape[:2]
        outputs = model.infer(image).outputs
        streams.ungated.append(_seen(ungated.read(outputs, height, width), at_s))
        started_s = time.thread_time()
        look = gate.look(image, at_s, spec)
        streams.look_s.append(time.thread_time() - started_s)
        if look.skips and last is not None:
            gate.note_skipped()
        else:
            answer = gated.read(outputs, height, width)
            gate.note_answer(look, None if last is None else answer.agrees_with(last))
            last = answer
        streams.gated.append(_seen(last, at_s))
        streams.width = width
        streams.threshold = _as_boxes(last).score_threshold
    if first is None:
        raise AgentError(f"{clip} has no frame that can be decoded")
    return streams, first


def _skip_still(picture: Pixels, spec: SceneGateSpec) -> float:
    """Return the share of frames of one noisy picture that the gate skips; all their answers agree."""
    gate, rng = SceneGate(np.random.default_rng(0)), np.random.default_rng(1)
    for number in range(STILL_FRAMES):
        noisy = picture + rng.normal(0.0, GRAIN, picture.shape).astype(np.float32)
        look = gate.look(np.clip(noisy, 0, 255).astype(np.uint8), number / FPS, spec)
        if look.skips:
            gate.note_skipped()
        else:
            gate.note_answer(look, None if number == 0 else True)
    return gate.counts.skipped / gate.counts.frames


def _frames(clip: Path) -> Iterator[Pixels]:
    config = VideoCameraConfig.model_validate({"camera_id": "bench", "kind": "video", "source": str(clip)})
    with open_address(config) as stream:
        while stream.grab():
            if (bgr := stream.retrieve()) is not None:
                yield np.ascontiguousarray(bgr[:, :, ::-1])


def _seen(answer: Answer, at_s: float) -> SeenBoxes:
    found = _as_boxes(answer)
    return SeenBoxes(at_s, found.boxes, found.probabilities.max(axis=1, initial=0.0))


def _as_boxes(answer: Answer) -> DetectionAnswer:
    if not isinstance(answer, DetectionAnswer):
        raise AgentError("the scene gate is measured with a detector")
    return answer
