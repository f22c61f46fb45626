"""A person's verdict comes in: make it durable, and keep the frame it is about while that is still possible."""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Protocol

from pydantic import BaseModel, ConfigDict, Field

from curate.contracts.feedback import Feedback, FeedbackReason, Verdict
from curate.contracts.ids import SafeName
from edge_agent.capture_policy import decide_dismissed
from edge_agent.frame_ring import FrameRing, HeldFrame, PredictionLog
from edge_agent.keeper import Keeper

_REMEMBERED_IDS: Final = 4096


class FeedbackRequest(BaseModel):
    """The body of `POST /v1/predictions/{id}/feedback`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Verdict
    reason: FeedbackReason | None = None
    label: str | None = Field(default=None, min_length=1, max_length=256)
    user: str | None = Field(default=None, max_length=128)
    box_id: SafeName | None = None
    feedback_id: SafeName | None = None
    """The client's own id, unique in the fleet (a UUID): sending again with it counts once."""


class FeedbackSink(Protocol):
    """Where feedback becomes durable; the spool."""

    def put_feedback(self, feedback: Feedback) -> None:
        """Store one verdict durably before returning.

        Raises:
            AgentError: it cannot be stored now.
        """

    def is_captured(self, prediction_id: str) -> bool:
        """Say whether the prediction's frame lies in the spool."""


class FeedbackIntake:
    """Takes verdicts, one at a time. Thread-safe; never waits for the capture loop and never makes it wait."""

    def __init__(
        self,
        sink: FeedbackSink,
        keeper: Keeper,
        ring: FrameRing,
        predictions: PredictionLog,
        *,
        wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._sink = sink
        self._keeper = keeper
        self._ring = ring
        self._predictions = predictions
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._stored: OrderedDict[str, Feedback] = OrderedDict()

    def receive(self, prediction_id: str, request: FeedbackRequest) -> Feedback:
        """Store one verdict; when this returns, a power cut does not lose it.

        A dismissed frame that is still held becomes a capture first, so that the verdict tells the truth about it.
        Repeating a recent `feedback_id` returns what was stored then.

        Raises:
            AgentError: the spool cannot store it now.
        """
        with self._lock:
            feedback_id = request.feedback_id or uuid.uuid4().hex
            if (stored := self._stored.get(feedback_id)) is not None:
                return stored
            available = self._secure_frame(prediction_id, request)
            prediction = self._predictions.get(prediction_id)
            feedback = Feedback(
                **request.model_dump(exclude={"feedback_id"}),
                feedback_id=feedback_id,
                prediction_id=prediction_id,
                camera_id=prediction.camera_id if prediction else None,
                release_id=prediction.release_id if prediction else None,
                received_at=self._wall_clock(),
                frame_available=available,
            )
            self._sink.put_feedback(feedback)
            self._stored[feedback_id] = feedback
            if len(self._stored) > _REMEMBERED_IDS:
                self._stored.popitem(last=False)
            return feedback

    def _secure_frame(self, prediction_id: str, request: FeedbackRequest) -> bool:
        """Capture a dismissed frame that no arm has kept; return whether the cloud can expect the frame."""
        if request.verdict is not Verdict.CONFIRMED and (frame := self._ring.claim(prediction_id)) is not None:
            return self._keep(frame, request)
        # In this order: a frame leaves the keeper's queue only after the spool has it.
        return self._keeper.is_queued(prediction_id) or self._sink.is_captured(prediction_id)

    def _keep(self, frame: HeldFrame, request: FeedbackRequest) -> bool:
        why = f" as {request.reason.value}" if request.reason else ""
        decision = decide_dismissed(frame.prediction.decision, f"dismissed: a person {request.verdict.value} it{why}")
        kept = self._keeper.keep_now(frame, decision)
        if kept:
            self._predictions.update_decision(frame.prediction.prediction_id, decision)
        return kept
