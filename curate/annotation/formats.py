"""How each prediction kind is asked and answered in Label Studio's words. Pure: nothing here talks to a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from curate.annotation.box_format import BoxFormat
from curate.annotation.classification_format import ClassificationFormat
from curate.annotation.models import AnnotationTask, ImageSize
from curate.annotation.pages import Regions
from curate.catalog.labels import LabelSpec
from curate.contracts.prediction import Prediction
from curate.errors import AnnotationError

_NOTHING = "-"


class AnnotationFormat(Protocol):
    """One prediction kind in Label Studio."""

    @property
    def instruction(self) -> str:
        """What to do, in HTML, for people who annotate."""

    def label_config(self, labels: LabelSpec) -> str:
        """Return the XML of the labeling page. Its variables are keys of `task_data`.

        Raises:
            AnnotationError: the page cannot show the labels.
        """

    def pre_annotation(self, prediction: Prediction, labels: LabelSpec, size: ImageSize, /) -> dict[str, Any] | None:
        """Return Label Studio's prediction, None when there is none or it does not fit the labels (an older release's).

        `size` is the captured image's.
        """

    def encode(self, label: Mapping[str, Any], size: ImageSize | None = None, /) -> Regions:
        """Return the regions that say `label`, as the labeling page would.

        Raises:
            AnnotationError: the kind cannot do it without the image's size.
        """

    def parse(
        self, regions: Sequence[Mapping[str, Any]], labels: LabelSpec, size: ImageSize | None = None, /
    ) -> dict[str, Any]:
        """Return the label that an annotator's regions say; `size` is the captured image's where it is known.

        Raises:
            AnnotationError: they say nothing or something that is not among the labels.
        """


FORMATS: Mapping[str, AnnotationFormat] = {"classification": ClassificationFormat(), "detection": BoxFormat()}
"""The adapter of every kind that can be annotated."""


def format_of(labels: LabelSpec) -> AnnotationFormat:
    """Return the adapter of the labels' kind.

    Raises:
        AnnotationError: there is none.
    """
    if labels.kind not in FORMATS:
        raise AnnotationError(f"{labels.kind} cannot be annotated yet", hint=f"kinds: {', '.join(FORMATS)}")
    return FORMATS[labels.kind]


def task_data(task: AnnotationTask) -> dict[str, Any]:
    """Return a task's `data`: all that a labeling page shows, what finds the task again, and the whole context."""
    context = task.context
    place = [context.get("camera"), f"frame {context['frame']}" if "frame" in context else None]
    moment = context.get("captured_at", "").replace("T", " ").replace("+00:00", " UTC")
    headline = " · ".join(part for part in (*place, moment) if part)
    release = {"release": task.pre_annotation.release_id} if task.pre_annotation is not None else {}
    return {
        **release,
        **context,
        "image": task.image_url,
        "width": task.width,
        "height": task.height,
        "sample_id": task.sample_id,
        "rank": task.rank,
        "headline": headline or _NOTHING,
        "why": f"Asked because: {context.get('reasons') or _NOTHING}",
    }


def image_size(data: Mapping[str, Any]) -> ImageSize | None:
    """Return the size of the image that a task's `data` asks about; None for a task that does not say it."""
    width, height = data.get("width"), data.get("height")
    if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
        return ImageSize(width, height)
    return None


def import_request(task: AnnotationTask, labels: LabelSpec) -> dict[str, Any]:
    """Return the task as Label Studio imports it; what the device thought is its pre-annotation unless it is blind."""
    guess = None
    if task.pre_annotation is not None and not task.blind:
        guess = format_of(labels).pre_annotation(task.pre_annotation, labels, task.size)
    return {"data": task_data(task), "predictions": [guess] if guess is not None else []}
