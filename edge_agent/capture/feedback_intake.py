"""A person's verdict comes in: make it durable, and keep the frame it is about while that is still possible.

Not interesting is not wrong: a frame that is dismissed as `not_interesting` or `duplicate` is not captured for that.
Nobody has to label it, and it would count as an error where there is none. Its verdict travels alone, and says so.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from curate.contracts.feedback import NOT_WRONG, Feedback, FeedbackReason, MarkedBox, Verdict
from curate.contracts.ids import SafeName
from curate.errors import AgentError
from edge_agent.capture.feedback_limits import FeedbackLimits, FeedbackRefusedError
from edge_agent.capture.frame_ring import FrameRing, HeldFrame, LivePrediction, PredictionLog
from edge_agent.capture.keeper import Keeper
from edge_agent.capture.policy import Novelty, decide_dismissed
from edge_agent.config.sections import FeedbackConfig
from edge_agent.errors import SpoolUnavailableError
from edge_agent.spool.files import Receipt

MAX_WAIT_S: Final = 3.0
"""How long a verdict waits for its frame to reach the disk. Shorter than the patience of common HTTP clients."""


class UnknownBoxError(AgentError):
    """The verdict is about a box that its prediction does not have."""


class DrawnBox(MarkedBox):
    """A box in a request: on the wire unknown fields are tolerated, here they are mistakes."""

    model_config = ConfigDict(extra="forbid")


class FeedbackRequest(BaseModel):
    """The body of `POST /v1/predictions/{id}/feedback`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Verdict
    reason: FeedbackReason | None = None
    label: str | None = Field(default=None, min_length=1, max_length=256)
    user: str | None = Field(default=None, max_length=128)
    box_id: SafeName | None = None
    """The box that the verdict is about; without it, it is about the frame as a whole."""
    box: DrawnBox | None = None
    """With `corrected` and `label`: an object that the prediction missed, in pixels of the frame."""
    feedback_id: SafeName | None = None
    """The client's own id, unique in the fleet (a UUID): sending again with it counts once, also after a restart."""

    @model_validator(mode="after")
    def _box_is_explained(self) -> Self:
        if self.box is not None and (self.verdict is not Verdict.CORRECTED or not self.label or self.box_id):
            raise ValueError("`box` is an object that was missed: it needs `corrected` and `label`, and no `box_id`")
        return self


class FeedbackSink(Protocol):
    """Where feedback becomes durable; the spool."""

    def put_feedback(self, feedback: Feedback) -> None:
        """Store one verdict durably before returning.

        Raises:
            AgentError: it cannot be stored now.
        """

    def find_receipt(self, feedback_id: str) -> Receipt | None:
        """Return the receipt of a verdict that was stored earlier, by this process or one before."""

    def is_captured(self, prediction_id: str) -> bool:
        """Say whether the prediction's frame lies in the spool."""


class FeedbackIntake:
    """Takes verdicts, one at a time. Thread-safe. It may wait for the disk, and never makes the capture loop wait."""

    def __init__(
        self,
        sink: FeedbackSink,
        keeper: Keeper,
        ring: FrameRing,
        predictions: PredictionLog,
        *,
        limits: FeedbackLimits | None = None,
        novelty: Novelty | None = None,
        count: Callable[[str], None] = lambda _name: None,
        wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        max_wait_s: float = MAX_WAIT_S,
    ) -> None:
        """Join the parts. `novelty` is told of frames that a verdict made captures; `count` of `feedback_refused_user`,
        `_device` and `_quarantine`, and of `feedback_quarantined`."""
        self._limits = limits or FeedbackLimits(FeedbackConfig(), time.monotonic)
        self._novelty = novelty
        self._count = count
        self._sink = sink
        self._keeper = keeper
        self._ring = ring
        self._predictions = predictions
        self._wall_clock = wall_clock
        self._max_wait_s = max_wait_s
        self._lock = threading.Lock()

    def receive(self, prediction_id: str, request: FeedbackRequest) -> Receipt:
        """Store one verdict; when this returns, a power cut loses neither it nor its frame.

        The frame comes first: a dismissed frame that is still held becomes a capture, and a frame that an arm chose is
        waited for until it is durable or dropped. So a verdict on disk never promises a frame that a power cut can
        still take. A dropped frame is gone; the verdict is stored with `frame_available=False`. When the wait is too
        long nothing is stored, and the client tries again with the same `feedback_id`.
        Repeating a `feedback_id` returns what was answered then, and costs nothing of the limits.

        Raises:
            UnknownBoxError: the prediction is still known and has no box of that id.
            FeedbackRefusedError: there are too many; it says how long to wait.
            AgentError: the spool cannot store it, or its frame, now.
        """
        feedback_id = request.feedback_id or uuid.uuid4().hex
        if (receipt := self._sink.find_receipt(feedback_id)) is not None:
            return receipt
        prediction = self._predictions.get(prediction_id)
        _verify_box(prediction, request.box_id)
        quarantined = self._admit(request)
        # Before the lock: a frame that takes long holds up the verdicts about it only.
        if not self._keeper.wait_settled(prediction_id, self._max_wait_s):
            raise SpoolUnavailableError(
                "the frame is still on its way to the disk", hint="send it again with the same feedback_id"
            )
        with self._lock:
            if (receipt := self._sink.find_receipt(feedback_id)) is not None:
                return receipt
            available = self._secure_frame(prediction_id, request, quarantined=quarantined)
            feedback = Feedback(
                **request.model_dump(exclude={"feedback_id"}),
                feedback_id=feedback_id,
                prediction_id=prediction_id,
                camera_id=prediction.camera_id if prediction else None,
                release_id=prediction.release_id if prediction else None,
                received_at=self._wall_clock(),
                frame_available=available,
                quarantined=quarantined,
            )
            self._sink.put_feedback(feedback)
            return Receipt.of(feedback)

    def _admit(self, request: FeedbackRequest) -> bool:
        try:
            quarantined = self._limits.admit(request.user)
        except FeedbackRefusedError as exc:
            self._count(f"feedback_refused_{exc.scope}")
            raise
        if quarantined:
            self._count("feedback_quarantined")
        return quarantined

    def _secure_frame(self, prediction_id: str, request: FeedbackRequest, *, quarantined: bool) -> bool:
        """Capture a frame that no arm has kept and that somebody says is wrong; return whether it is durable."""
        obeyed = says_wrong(request) and not quarantined
        if obeyed and (frame := self._ring.claim(prediction_id)) is not None:
            return self._keep(frame, request)
        return self._sink.is_captured(prediction_id)

    def _keep(self, frame: HeldFrame, request: FeedbackRequest) -> bool:
        why = f" as {request.reason.value}" if request.reason else ""
        decision = decide_dismissed(frame.prediction.decision, f"dismissed: a person {request.verdict.value} it{why}")
        kept = self._keeper.keep_now(frame, decision)
        if kept:
            self._predictions.update_decision(frame.prediction.prediction_id, decision)
            if self._novelty is not None:
                self._novelty.remember(frame.answer.embedding, frame.prediction.release_id)
        return kept


def says_wrong(request: FeedbackRequest) -> bool:
    """Say whether the verdict claims that the model erred, so that the frame is worth a label."""
    dismissed = request.verdict is Verdict.DISMISSED and request.reason not in NOT_WRONG
    return dismissed or request.verdict is Verdict.CORRECTED


def _verify_box(prediction: LivePrediction | None, box_id: str | None) -> None:
    if prediction is not None and box_id is not None and box_id not in prediction.answer.box_ids:
        raise UnknownBoxError(f"prediction {prediction.prediction_id} has no box {box_id}")
