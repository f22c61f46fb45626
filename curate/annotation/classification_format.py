"""One class for the whole image, in Label Studio's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree as ET

from curate.annotation.models import ImageSize
from curate.annotation.pages import PREDICTION_SOURCE, Regions, add_context, add_options, page_text, verify_names
from curate.catalog.labels import LabelSpec
from curate.contracts.prediction import ClassificationPrediction, Prediction
from curate.errors import AnnotationError

_IMAGE_SIDE_PX = 420


class ClassificationFormat:
    """The label is `{"class": name}`; the image's size does not matter."""

    instruction = (
        "<p>Choose the class of the object, with the mouse or its key. The choice that is set already is the camera's "
        "guess; it is often wrong, or nobody would ask. <b>Skip</b> when it cannot be told.</p>"
    )

    def label_config(self, labels: LabelSpec) -> str:
        """Return a page with the image, enlarged without smoothing, beside the classes and their keys.

        Raises:
            AnnotationError: a class name holds a `$`, which the page would take for a variable.
        """
        verify_names(labels)
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
        add_options(choices, "Choice", labels)
        add_context(right)
        return page_text(page)

    def pre_annotation(self, prediction: Prediction, labels: LabelSpec, _size: ImageSize, /) -> dict[str, Any] | None:
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

    def encode(self, label: Mapping[str, Any], _size: ImageSize | None = None, /) -> Regions:
        """Return the one region that chooses the class."""
        value = {"choices": [label["class"]]}
        return [{"from_name": "label", "to_name": "image", "type": "choices", "value": value}]

    def parse(
        self, regions: Sequence[Mapping[str, Any]], labels: LabelSpec, _size: ImageSize | None = None, /
    ) -> dict[str, Any]:
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
