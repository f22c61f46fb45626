"""What a model said about one frame. The kind is a discriminated union: a new kind is one more class here."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from curate.contracts.document import Document
from curate.contracts.embedding import Embedding
from curate.contracts.ids import SafeName

Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class _Prediction(Document):
    prediction_id: SafeName
    release_id: SafeName
    scores: dict[str, float] = Field(default_factory=dict)
    """Named uncertainty scores, each higher when the model is less sure."""
    embedding: Embedding | None = None


class ClassificationPrediction(_Prediction):
    """One distribution over the release's classes, in the release's class order."""

    kind: Literal["classification"] = "classification"
    probabilities: list[Probability] = Field(min_length=2)

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        if abs(sum(self.probabilities) - 1.0) > 0.02:
            raise ValueError("probabilities do not sum to 1")
        return self

    @property
    def class_index(self) -> int:
        """Index of the most probable class."""
        return max(range(len(self.probabilities)), key=self.probabilities.__getitem__)


class DetectedBox(Document):
    """One box in pixels of the captured image, with a distribution over the release's classes."""

    box_id: SafeName
    x_min: float
    y_min: float
    x_max: float
    y_max: float
    probabilities: list[Probability] = Field(min_length=1)
    embedding: Embedding | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.x_max < self.x_min or self.y_max < self.y_min:
            raise ValueError("box corners are out of order")
        return self

    @property
    def class_index(self) -> int:
        """Index of the most probable class."""
        return max(range(len(self.probabilities)), key=self.probabilities.__getitem__)

    @property
    def score(self) -> float:
        """Probability of the most probable class."""
        return max(self.probabilities)


class DetectionPrediction(_Prediction):
    """Zero or more boxes; none is a legitimate answer.

    Faint boxes travel too, for precision-recall curves: only those from `score_threshold` on were shown to people.
    """

    kind: Literal["detection"] = "detection"
    boxes: list[DetectedBox] = Field(default_factory=list)
    score_threshold: Probability | None = None
    """From this score on a box is shown; None means that all are."""

    @property
    def shown_boxes(self) -> tuple[DetectedBox, ...]:
        """The boxes that people were shown, in their order."""
        threshold = self.score_threshold or 0.0
        return tuple(box for box in self.boxes if box.score >= threshold)


Prediction = Annotated[ClassificationPrediction | DetectionPrediction, Field(discriminator="kind")]
