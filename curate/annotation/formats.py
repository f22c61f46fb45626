"""How each prediction kind is asked and answered in Label Studio's words. Pure: nothing here talks to a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from xml.etree import ElementTree as ET

from curate.annotation.models import AnnotationTask
from curate.catalog.labels import LabelSpec
from curate.contracts.prediction import ClassificationPrediction, Prediction
from curate.errors import AnnotationError

Regions = list[dict[str, Any]]
"""Label Studio's `result`: one entry for each thing marked."""

PREDICTION_SOURCE = "device"
"""The one `model_version` of all pre-annotations. Label Studio shows only those of the version its project is set to,
so a version for each release would hide the newer releases' guesses; the release is part of the task's data."""

_NOTHING = "-"
_HOTKEYS = "1234567890qwertyuiopasdfghjklzxcvbnm"
_IMAGE_SIDE_PX = 420


class AnnotationFormat(Protocol):
    """One prediction kind in Label Studio."""

    def label_config(self, labels: LabelSpec) -> str:
        """Return the XML of the labeling page. Its variables are keys of `task_data`.

        Raises:
            AnnotationError: the page cannot show the labels.
        """

    def pre_annotation(self, prediction: Prediction, labels: LabelSpec) -> dict[str, Any] | None:
        """Return Label Studio's prediction, None for one that does not fit the labels (an older release's)."""

    def encode(self, label: Mapping[str, Any]) -> Regions:
        """Return the regions that say `label`, as the labeling page would."""

    def parse(self, regions: Sequence[Mapping[str, Any]], labels: LabelSpec) -> dict[str, Any]:
        """Return the label that an annotator's regions say.

        Raises:
            AnnotationError: they say nothing or something that is not among the labels.
        """


class ClassificationFormat:
    """One class for the whole image: `{"class": name}`."""

    def label_config(self, labels: LabelSpec) -> str:
        """Return a page with the image, enlarged without smoothing, beside the classes and their keys.

        Raises:
            AnnotationError: a class name holds a `$`, which the page would take for a variable.
        """
        if odd := [name for name in labels.class_names if "$" in name]:
            raise AnnotationError(f"Label Studio cannot show {odd[0]!r}", hint="rename it in labels.yaml, without '$'")
        page = ET.Element("View", style="display: flex; flex-wrap: wrap; gap: 24px; padding: 8px")
        left = ET.SubElement(page, "View", style=f"flex: 0 0 {_IMAGE_SIDE_PX}px")
        ET.SubElement(
            left,
            "Image",
            name="image",
            value="$image",
            width=f"{_IMAGE_SIDE_PX}px",
            maxWidth=f"{_IMAGE_SIDE_PX}px",
            smoothing="false",
            zoom="false",
            zoomControl="false",
            rotateControl="false",
        )
        right = ET.SubElement(page, "View", style="flex: 1 1 260px; min-width: 260px")
        ET.SubElement(right, "Header", value="What does the camera see?", size="4")
        choices = ET.SubElement(
            right,
            "Choices",
            name="label",
            toName="image",
            choice="single-radio",
            showInline="false",
            required="true",
            requiredMessage="Choose a class, or skip the task",
        )
        for name, hotkey in zip(labels.class_names, _padded(_HOTKEYS, len(labels.class_names)), strict=True):
            choice = ET.SubElement(choices, "Choice", value=name)
            if hotkey:
                choice.set("hotkey", hotkey)
        ET.SubElement(right, "Header", value="$headline", size="5")
        ET.SubElement(right, "Text", name="why", value="$why")
        ET.indent(page)
        return ET.tostring(page, encoding="unicode")

    def pre_annotation(self, prediction: Prediction, labels: LabelSpec) -> dict[str, Any] | None:
        """Return the most probable class, chosen already, with its probability as the score."""
        if not isinstance(prediction, ClassificationPrediction):
            return None
        if len(prediction.probabilities) != len(labels.class_names):
            return None
        best = prediction.class_index
        return {
            "model_version": PREDICTION_SOURCE,
            "score": round(prediction.probabilities[best], 4),
            "result": self.encode({"class": labels.class_names[best]}),
        }

    def encode(self, label: Mapping[str, Any]) -> Regions:
        """Return the one region that chooses the class."""
        value = {"choices": [label["class"]]}
        return [{"from_name": "label", "to_name": "image", "type": "choices", "value": value}]

    def parse(self, regions: Sequence[Mapping[str, Any]], labels: LabelSpec) -> dict[str, Any]:
        """Return `{"class": name}`.

        Raises:
            AnnotationError: not exactly one class was chosen, or one that the labels do not have.
        """
        try:
            chosen = [name for region in regions if region["type"] == "choices" for name in region["value"]["choices"]]
        except (KeyError, TypeError) as exc:
            raise AnnotationError(f"the answer is not a choice: {exc!r}") from exc
        if len(chosen) != 1:
            raise AnnotationError(f"{len(chosen)} classes were chosen instead of one")
        if chosen[0] not in labels.class_names:
            raise AnnotationError(f"{chosen[0]!r} is not among the classes", hint="see labels.yaml")
        return {"class": chosen[0]}


FORMATS: Mapping[str, AnnotationFormat] = {"classification": ClassificationFormat()}
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
        "sample_id": task.sample_id,
        "rank": task.rank,
        "headline": headline or _NOTHING,
        "why": f"Asked because: {context.get('reasons') or _NOTHING}",
    }


def import_request(task: AnnotationTask, labels: LabelSpec) -> dict[str, Any]:
    """Return the task as Label Studio imports it, with what the device thought as a pre-annotation."""
    guess = format_of(labels).pre_annotation(task.pre_annotation, labels) if task.pre_annotation is not None else None
    return {"data": task_data(task), "predictions": [guess] if guess is not None else []}


def _padded(keys: str, count: int) -> list[str]:
    return [*keys[:count], *[""] * (count - len(keys))]
