"""A person's verdict on a prediction. "Not interesting" is not "wrong": the reason keeps them apart."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from curate.contracts.document import Document, UtcDatetime
from curate.contracts.ids import SafeName


class Verdict(StrEnum):
    """What the person did with the prediction."""

    DISMISSED = "dismissed"
    CONFIRMED = "confirmed"
    CORRECTED = "corrected"


class FeedbackReason(StrEnum):
    """Why, in the person's words."""

    NOT_THERE = "not_there"
    WRONG_CLASS = "wrong_class"
    WRONG_PLACE = "wrong_place"
    NOT_INTERESTING = "not_interesting"
    DUPLICATE = "duplicate"
    OTHER = "other"


class Feedback(Document):
    """One verdict on one prediction, or on one box of it."""

    feedback_id: SafeName
    prediction_id: SafeName
    camera_id: SafeName | None = None
    release_id: SafeName | None = None
    verdict: Verdict
    reason: FeedbackReason | None = None
    label: str | None = Field(default=None, max_length=256)
    box_id: SafeName | None = None
    user: str | None = Field(default=None, max_length=128)
    received_at: UtcDatetime
    frame_available: bool
    """Whether the frame was captured or could still be captured when the verdict came."""
