"""What crosses between Gleaner and an annotation tool, in Gleaner's words."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from curate.contracts.prediction import Prediction


@dataclass(frozen=True)
class ImageSize:
    """Of the captured image, in pixels."""

    width: int
    height: int


@dataclass(frozen=True)
class AnnotationTask:
    """One question for a person: an image, what the device thought of it, and why it is asked."""

    sample_id: str
    image_url: str
    """`s3://bucket/key`, resolved when it is viewed."""
    rank: int
    width: int
    height: int
    pre_annotation: Prediction | None
    context: dict[str, str] = field(default_factory=dict)
    """What an annotator may want to read beside the image: camera, frame, time, reasons."""
    blind: bool = False
    """Ask without showing what the device thought: people lean towards what they are shown, so an answer that measures
    the model must not have seen the model's."""

    @property
    def size(self) -> ImageSize:
        """The image's size."""
        return ImageSize(self.width, self.height)


@dataclass(frozen=True)
class SentTask:
    """A task the backend holds."""

    sample_id: str
    backend_task_id: str
    is_answered: bool = False


@dataclass(frozen=True)
class BackendAnnotation:
    """One person's answer as collected. `label` is kind-specific JSON, None when the task was skipped.

    For classification `label` is `{"class": name}`, for detection `{"boxes": [{"class": name, "x_min": ...}, ...]}`.
    """

    annotation_id: str
    backend_task_id: str
    sample_id: str
    annotator: str | None
    label: dict[str, Any] | None
    was_cancelled: bool
    created_at: datetime
    updated_at: datetime
    lead_time_s: float | None = None


@dataclass(frozen=True)
class CollectedAnnotations:
    """One poll's worth of answers and the watermark to start the next poll from."""

    annotations: tuple[BackendAnnotation, ...]
    watermark: datetime
