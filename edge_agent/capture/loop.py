"""Frame in, prediction out, and what is worth a label set aside. Nothing else in the agent can stop this loop."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from curate.answers.base import Answer, AnswerReader, BadOutputError
from curate.contracts.assignment import CapturePolicySpec
from curate.contracts.telemetry import UpdateEvent
from curate.errors import SelfCheckError
from edge_agent.cameras.base import Camera, Frame, Skipped, SkipReason
from edge_agent.capture.frame_ring import FrameRing, HeldFrame, LivePrediction, PredictionLog
from edge_agent.capture.keeper import Keeper
from edge_agent.capture.policy import CapturePolicy, verify_policy
from edge_agent.ledger import Ledger, Totals
from edge_agent.models.inference import LiveModel, LoadedModel
from edge_agent.models.swap_meter import Swap, SwapMeter
from edge_agent.report import DeviceReport

log = logging.getLogger(__name__)

MAX_GAP_FRAMES: Final = 5
"""After a longer gap a reader starts anew: what moved or went in between cannot be told."""


class CaptureLoop:
    """One camera's stream. `turn` belongs to one thread; `replace_policy` may be called from any."""

    def __init__(
        self,
        *,
        camera: Camera,
        live: LiveModel,
        policy: CapturePolicy,
        keeper: Keeper,
        ring: FrameRing,
        predictions: PredictionLog,
        ledger: Ledger,
        report: DeviceReport,
        boot_id: str,
        poll_interval_s: float,
        monotonic: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._camera = camera
        self._live = live
        self._policy = policy
        self._keeper = keeper
        self._ring = ring
        self._predictions = predictions
        self._ledger = ledger
        self._report = report
        self._boot_id = boot_id
        self._poll_interval_s = poll_interval_s
        self._monotonic = monotonic
        self._wall_clock = wall_clock
        self._meter = SwapMeter()
        self._next_policy = policy.spec
        self._count = 0
        self._reader: AnswerReader | None = None
        self._read_model: LoadedModel | None = None
        self._last_index = 0
        self._replaced_score: tuple[str, str] | None = None

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

    def turn(self) -> bool:
        """Handle one event of the camera; False when there was none."""
        event = self._camera.poll()
        if event is None:
            return False
        if isinstance(event, Skipped):
            self._skip(event.reason, event.count)
            return True
        model = self._live.current()
        if model is None:
            self._skip(SkipReason.NO_MODEL)
            return True
        try:
            answer = self._read(event, model)
        except (SelfCheckError, BadOutputError) as exc:
            self._skip(SkipReason.BAD_OUTPUT)
            self._report.count_error(type(exc).__name__)
            return True
        self._ledger.frame_inferred(len(event.encoded))
        self._note_answer(model)
        self._remember(event, model, answer)
        return True

    def run(self, stop: threading.Event) -> None:
        """Turn until told to stop; a failing turn is counted and the next one begins."""
        while not stop.is_set():
            try:
                busy = self.turn()
            except Exception as exc:
                log.exception("capture turn failed")
                self._report.count_error(type(exc).__name__)
                busy = False
            if not busy:
                stop.wait(self._poll_interval_s)

    def _skip(self, reason: SkipReason, count: int = 1) -> None:
        self._ledger.add(Totals(frames_skipped={reason.value: count}))
        self._meter.note_skipped(count)

    def _read(self, frame: Frame, model: LoadedModel) -> Answer:
        """Answer the frame. A reader belongs to one model and one stretch of the stream."""
        gap = frame.index - self._last_index
        self._last_index = frame.index
        if self._reader is None or model is not self._read_model or not 0 < gap <= MAX_GAP_FRAMES:
            self._reader, self._read_model = model.kind.reader(model.spec), model
        height, width = frame.image.shape[:2]
        return self._reader.read(model.infer(frame.image).outputs, int(height), int(width))

    def _note_answer(self, model: LoadedModel) -> None:
        swap = self._meter.note_answer(model.release_id, self._monotonic())
        if swap is not None:
            self._policy.forget_scores()
            self._report.record_update(_swap_event(swap, self._wall_clock()))
            log.info("model swapped", extra={"release_id": model.release_id, "swap_gap_ms": round(swap.gap_ms, 3)})

    def _remember(self, frame: Frame, model: LoadedModel, answer: Answer) -> None:
        """Let the arms decide, then keep the frame or hold it, and tell the pollers last."""
        if self._next_policy is not self._policy.spec:
            self._policy.replace_spec(self._next_policy)
        decision = self._policy.decide(answer.scores, self._choose_score(answer, model))
        self._count += 1
        prediction = LivePrediction(
            cursor=self._count,
            prediction_id=f"{self._boot_id}-{self._count}",
            camera_id=frame.camera_id,
            frame_index=frame.index,
            captured_at=frame.captured_at,
            monotonic_s=frame.monotonic_s,
            release_id=model.release_id,
            spec=model.spec,
            answer=answer,
            decision=decision,
        )
        held = HeldFrame(prediction, frame.encoded)
        if not decision.kept:
            self._ring.put(held)
        elif not self._keeper.offer(held, decision):
            log.warning("capture dropped: the disk does not keep up")
        self._predictions.append(replace(prediction, answer=answer.without_embeddings()))

    def _choose_score(self, answer: Answer, model: LoadedModel) -> str:
        """Return the score the policy asks for, or the kind's own when its answers have none of that name."""
        wanted = self._policy.spec.uncertainty_score
        if wanted in answer.scores:
            return wanted
        default = model.kind.default_score
        if (told := (wanted, model.release_id)) != self._replaced_score:
            self._replaced_score = told
            detail = f"answers of release {model.release_id} have no {wanted}; {default} decides instead"
            log.warning("the policy's uncertainty score is replaced", extra={"detail": detail})
            self._report.record_update(_replaced_event(model.release_id, detail, self._wall_clock()))
        return default


def _replaced_event(release_id: str, detail: str, now: datetime) -> UpdateEvent:
    return UpdateEvent(at=now, outcome="score_replaced", release_id=release_id, detail=detail)


def _swap_event(swap: Swap, now: datetime) -> UpdateEvent:
    return UpdateEvent(
        at=now,
        outcome="swapped",
        release_id=swap.new_release_id,
        detail=f"from {swap.old_release_id}",
        swap_gap_ms=swap.gap_ms,
        frames_lost=swap.frames_lost,
    )
