"""Verdicts as they come over MQTT: what a message means, and what is answered."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from curate.contracts.feedback import Verdict
from curate.contracts.ids import SafeName
from curate.errors import AgentError
from edge_agent.capture.feedback_intake import FeedbackRequest
from edge_agent.interfaces.agent_view import AgentView
from edge_agent.interfaces.mqtt_topics import Topics
from edge_agent.interfaces.refusals import explain_invalid


class PostedVerdict(FeedbackRequest):
    """The payload of the feedback topic."""

    prediction_id: SafeName


class VerdictDesk:
    """Takes one message after the other. One that is delivered twice is the same verdict, and counts once."""

    def __init__(self, view: AgentView, topics: Topics, last_told: Callable[[str], str | None]) -> None:
        """`last_told` names the prediction that was last told of a camera."""
        self._view = view
        self._topics = topics
        self._last_told = last_told

    def receive(self, topic: str, payload: bytes) -> dict[str, Any]:
        """Store the verdict; return what is answered.

        Raises:
            Error: it cannot be taken, or not now.
        """
        verdict = self._read(topic, payload)
        request = FeedbackRequest.model_validate(verdict.model_dump(exclude={"prediction_id"}))
        receipt = self._view.intake.receive(verdict.prediction_id, request)
        return {
            "accepted": True,
            "prediction_id": verdict.prediction_id,
            "feedback_id": receipt.feedback_id,
            "frame_available": receipt.frame_available,
        }

    def _read(self, topic: str, payload: bytes) -> PostedVerdict:
        if topic != self._topics.feedback:
            return self._read_press(topic)
        try:
            verdict = PostedVerdict.model_validate_json(payload)
        except ValidationError as exc:
            raise AgentError(explain_invalid(exc)) from exc
        feedback_id = verdict.feedback_id or f"mqtt-{hashlib.sha256(payload).hexdigest()[:40]}"
        return verdict.model_copy(update={"feedback_id": feedback_id})

    def _read_press(self, topic: str) -> PostedVerdict:
        """A button was pressed: what was told last is what the person saw."""
        camera_id = next((name for name in self._view.camera_ids if topic == self._topics.dismiss(name)), None)
        prediction_id = None if camera_id is None else self._last_told(camera_id)
        if prediction_id is None:
            raise AgentError("no answer of this camera was told yet")
        feedback_id = f"mqtt-dismissed-{prediction_id}"
        return PostedVerdict(prediction_id=prediction_id, verdict=Verdict.DISMISSED, feedback_id=feedback_id[:128])
