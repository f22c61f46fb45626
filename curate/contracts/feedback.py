"""A person's verdict on a prediction. "Not interesting" is not "wrong": the reason keeps them apart."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Self

from pydantic import Field, model_validator

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


NOT_WRONG: Final = frozenset({FeedbackReason.NOT_INTERESTING, FeedbackReason.DUPLICATE})
"""Who dismisses for these reasons finds nothing wrong with the prediction."""


class MarkedBox(Document):
    """A box that a person drew, in pixels of the captured image."""

    x_min: float = Field(ge=0.0)
    y_min: float = Field(ge=0.0)
    x_max: float
    y_max: float

    @model_validator(mode="after")
    def _has_an_area(self) -> Self:
        if self.x_max <= self.x_min or self.y_max <= self.y_min:
            raise ValueError("the box has no area, or its corners are out of order")
        return self


class Feedback(Document):
    """One verdict on one prediction, on one box of it, or on something it missed."""

    feedback_id: SafeName
    prediction_id: SafeName
    camera_id: SafeName | None = None
    release_id: SafeName | None = None
    verdict: Verdict
    reason: FeedbackReason | None = None
    label: str | None = Field(default=None, max_length=256)
    box_id: SafeName | None = None
    box: MarkedBox | None = None
    """With `corrected` and a label: an object that has no box in the prediction."""
    user: str | None = Field(default=None, max_length=128)
    received_at: UtcDatetime
    frame_available: bool
    """Whether the frame was captured or could still be captured when the verdict came."""
    quarantined: bool = False
    """It came in a flood: kept for a person to look at, and evidence of nothing until then."""
