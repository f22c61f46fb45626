"""Frame in, prediction out, and what is worth a label set aside. Nothing else in the agent can stop this loop."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import reduce
from typing import Final

import numpy as np

from curate.answers.base import Answer, AnswerReader, BadOutputError
from curate.contracts.assignment import CapturePolicySpec
from curate.contracts.device_settings import SceneGateSpec
from curate.contracts.telemetry import SceneGateState, UpdateEvent
from curate.errors import SelfCheckError
from edge_agent.cameras.base import Camera, Frame, Skipped, SkipReason
from edge_agent.capture.frame_ring import FrameRing, HeldFrame, LivePrediction, PredictionLog
from edge_agent.capture.keeper import Keeper
from edge_agent.capture.policy import CaptureDecision, CapturePolicy, verify_policy
from edge_agent.capture.scene_gate import GateCounts, GateLook, SceneGate
from edge_agent.latency import LatencyHistogram
from edge_agent.ledger import Ledger
from edge_agent.models.inference import LiveModel, LoadedModel
from edge_agent.models.swap_meter import Swap, SwapMeter
from edge_agent.report import DeviceReport

log = logging.getLogger(__name__)

MAX_GAP_FRAMES: Final = 5
"""After a longer gap a reader starts anew: what moved or went in between cannot be told."""
GATE_OFF: Final = SceneGateSpec(enabled=False)


class TellOnce:
    """Lets one of several cameras tell what concerns them all. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: dict[str, object] = {}

    def first(self, topic: str, subject: object) -> bool:
        """Say whether this subject differs from the one told last of the topic, and take it for told."""
        with self._lock:
            if self._told.get(topic) == subject:
                return False
            self._told[topic] = subject
            return True


@dataclass(frozen=True)
class CaptureParts:
    """What all cameras of one device share. Every part is thread-safe."""

    live: LiveModel
    keeper: Keeper
    ring: FrameRing
    predictions: PredictionLog
    ledger: Ledger
    report: DeviceReport
    boot_id: str
    gate_spec: Callable[[], SceneGateSpec] = lambda: GATE_OFF
    """Asked at every frame, so that a change needs no restart."""
    monotonic: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    """Number the predictions of all cameras; taking the next one is atomic."""
    once: TellOnce = field(default_factory=TellOnce)
    latencies: LatencyHistogram = field(default_factory=LatencyHistogram)


class CaptureLoop:
    """One camera's stream. `turn` belongs to one thread; `replace_policy` and the properties to any."""

    def __init__(
        self,
        camera: Camera,
        parts: CaptureParts,
        *,
        policy: CapturePolicy,
        rng: np.random.Generator,
        poll_interval_s: float,
    ) -> None:
        """Join a camera and what is its own, `policy` and the scene gate's coins from `rng`, to the shared parts."""
        self._camera = camera
        self._parts = parts
        self._policy = policy
        self._poll_interval_s = poll_interval_s
        self._meter = SwapMeter()
        self._gate = SceneGate(rng)
        self._next_policy = self._policy_spec = policy.spec
        self._score_name: str | None = None
        """What the policy goes by; None to find out anew, after a change of model or policy."""
        self._reader: AnswerReader | None = None
        self._read_model: LoadedModel | None = None
        self._last_index = 0
        self._last: HeldFrame | None = None
        """The last frame that the model has seen; only while there is a gate."""

    def replace_policy(self, spec: CapturePolicySpec) -> None:
        """Follow another capture policy from the next frame on.

        Raises:
            PolicyRefusedError: the policy cannot be followed; the old one stays.
        """
        verify_policy(spec)
        self._next_policy = spec

    @property
    def policy_spec(self) -> CapturePolicySpec:
        """The policy followed from the next frame on."""
        return self._next_policy

    @property
    def gate_counts(self) -> GateCounts:
        """What the scene gate did so far."""
        return self._gate.counts

    def turn(self) -> bool:
        """Handle one event of the camera; False when there was none."""
        event = self._camera.poll()
        if event is None:
            return False
        if isinstance(event, Skipped):
            self._skip(event.reason, event.count)
            return True
        model = self._parts.live.current()
        if model is None:
            self._skip(SkipReason.NO_MODEL)
        else:
            self._see(event, model)
        return True

    def run(self, stop: threading.Event) -> None:
        """Turn until told to stop; a failing turn is counted and the next one begins."""
        while not stop.is_set():
            try:
                busy = self.turn()
            except Exception as exc:
                log.exception("capture turn failed")
                self._parts.report.count_error(type(exc).__name__)
                busy = False
            if not busy:
                stop.wait(max(self._poll_interval_s, self._camera.idle_s))

    def _skip(self, reason: SkipReason, count: int = 1) -> None:
        self._parts.ledger.frame_skipped(reason.value, count)
        self._meter.note_skipped(count)

    def _see(self, frame: Frame, model: LoadedModel) -> None:
        """Answer the frame, or let the last answer stand for it.

        The random arm draws from every frame, before the gate looks: what it draws is answered afresh, so its captures
        stay a fair sample of all that the camera saw, each with the arm's own probability. The arms with a
        budget see only what the model has seen, and their budgets are shares of that. What they keep of an unchanged
        frame that was forced through they would have kept once in `force_every` such frames, and their outcomes say so.
        """
        if self._next_policy is not self._policy_spec:
            self._policy.replace_spec(self._next_policy)
            self._policy_spec, self._score_name = self._policy.spec, None
        drawn = self._policy.draw()
        look = self._look(frame, model)
        if look is not None and look.skips and not drawn and self._last is not None:
            self._reuse(frame, model, look, self._last)
            return
        try:
            answer = self._read(frame, model)
        except (SelfCheckError, BadOutputError) as exc:
            self._gate.forget()
            self._last = None
            self._skip(SkipReason.BAD_OUTPUT)
            self._parts.report.count_error(type(exc).__name__)
            return
        self._parts.ledger.frame_inferred(len(frame.encoded))
        self._note_answer(model)
        decision = self._decide(model, answer, look, drawn=drawn)
        held = self._hold(frame, model, answer, answer.without_embeddings(), decision, look=look)
        if look is not None:
            self._gate.note_answer(look, None if self._last is None else answer.agrees_with(self._last.answer))
            self._last = held
        self._remember(held)

    def _look(self, frame: Frame, model: LoadedModel) -> GateLook | None:
        """Let the gate look, when there is one; another model's answer stands for nothing."""
        spec = self._parts.gate_spec()
        if self._last is not None and not (spec.enabled and model is self._read_model):
            self._gate.forget()
            self._last = None
        return self._gate.look(frame.image, frame.monotonic_s, spec) if spec.enabled else None

    def _reuse(self, frame: Frame, model: LoadedModel, look: GateLook, last: HeldFrame) -> None:
        """Let the last answer stand. For the reader no frame is missing: nothing has moved."""
        self._last_index = frame.index
        self._gate.note_skipped()
        self._parts.ledger.frame_skipped(SkipReason.UNCHANGED.value)
        self._note_answer(model)
        decision = self._policy.decide_unchanged()
        light, reused_from = last.prediction.answer, last.prediction.prediction_id
        self._remember(self._hold(frame, model, last.answer, light, decision, look=look, reused_from=reused_from))

    def _read(self, frame: Frame, model: LoadedModel) -> Answer:
        """Answer the frame. A reader belongs to one model and one stretch of the stream."""
        gap = frame.index - self._last_index
        self._last_index = frame.index
        if self._reader is None or model is not self._read_model or not 0 < gap <= MAX_GAP_FRAMES:
            self._reader, self._read_model, self._score_name = model.kind.reader(model.spec), model, None
        height, width, _ = frame.image.shape
        outputs, seconds = model.infer(frame.image)
        self._parts.latencies.observe(seconds)
        return self._reader.read(outputs, height, width)

    def _note_answer(self, model: LoadedModel) -> None:
        swap = self._meter.note_answer(model.release_id, self._parts.monotonic())
        if swap is None:
            return
        self._policy.forget_scores()
        event = _swap_event(swap, self._camera.camera_id, self._parts.wall_clock())
        self._parts.report.note_update(event)
        log.info("model swapped", extra=event.model_dump(mode="json", exclude={"at", "outcome"}))

    def _decide(self, model: LoadedModel, answer: Answer, look: GateLook | None, *, drawn: bool) -> CaptureDecision:
        name = self._score_name or self._choose_score(model)
        return self._policy.decide(
            answer.scores_with(name),
            name,
            embedding=answer.embedding,
            space=model.release_id,
            drawn=drawn,
            reach=1.0 if look is None else look.reach,
        )

    def _hold(
        self,
        frame: Frame,
        model: LoadedModel,
        answer: Answer,
        light: Answer,
        decision: CaptureDecision,
        *,
        look: GateLook | None,
        reused_from: str | None = None,
    ) -> HeldFrame:
        """Join all that is known of a frame; `light` is the answer without embeddings."""
        parts = self._parts
        prediction = LivePrediction(
            prediction_id=f"{parts.boot_id}-{next(parts.numbers)}",
            camera_id=frame.camera_id,
            frame_index=frame.index,
            captured_at=frame.captured_at,
            monotonic_s=frame.monotonic_s,
            release_id=model.release_id,
            spec=model.spec,
            answer=light,
            decision=decision,
            look=look,
            reused_from=reused_from,
        )
        return HeldFrame(prediction, answer, frame.encoded, parts.keeper.may_keep())

    def _remember(self, held: HeldFrame) -> None:
        """Keep the frame or hold it, and tell the pollers last."""
        parts, prediction = self._parts, held.prediction
        if not prediction.decision.kept:
            parts.ring.put(held)
        elif parts.keeper.offer(held, prediction.decision):
            self._policy.remember(held.answer.embedding, prediction.release_id)
        parts.predictions.append(prediction)

    def _choose_score(self, model: LoadedModel) -> str:
        """Return the score the policy asks for, or the kind's own when its answers have none of that name."""
        wanted, default = self._policy.spec.uncertainty_score, model.kind.default_score
        self._score_name = wanted if wanted in model.kind.score_names else default
        if self._score_name == wanted:
            return wanted
        if self._parts.once.first("score", (wanted, model.release_id)):
            detail = f"answers of release {model.release_id} have no {wanted}; {default} decides instead"
            log.warning("the policy's uncertainty score is replaced", extra={"detail": detail})
            self._parts.report.note_update(_replaced_event(model.release_id, detail, self._parts.wall_clock()))
        return default


def total_gate(counts: Iterable[GateCounts]) -> SceneGateState:
    """Return what the gates of several cameras did, as it is reported."""
    total = reduce(GateCounts.plus, counts, GateCounts())
    return SceneGateState(frames=total.frames, skipped=total.skipped, checked=total.checked, wrong=total.wrong)


def _replaced_event(release_id: str, detail: str, now: datetime) -> UpdateEvent:
    return UpdateEvent(at=now, outcome="score_replaced", release_id=release_id, detail=detail)


def _swap_event(swap: Swap, camera_id: str, now: datetime) -> UpdateEvent:
    return UpdateEvent(
        at=now,
        outcome="swapped",
        release_id=swap.new_release_id,
        camera_id=camera_id,
        detail=f"from {swap.old_release_id}",
        swap_gap_ms=swap.gap_ms,
        frames_lost=swap.frames_lost,
    )
