"""Any number of boxes in one image, in Label Studio's words: percent of the image's width and height, per axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree as ET

from curate.annotation.models import ImageSize
from curate.annotation.pages import PREDICTION_SOURCE, Regions, add_context, add_options, page_text, verify_names
from curate.catalog.boxes import LabelledBox, boxes_label, clip_box, labelled_box, parse_boxes
from curate.catalog.labels import LabelSpec
from curate.contracts.prediction import DetectionPrediction, Prediction
from curate.errors import AnnotationError, CatalogError

_KIND = "rectanglelabels"
_PERCENT = 100.0


class BoxFormat:
    """The label is `{"boxes": [...]}` in pixels of the captured image; an empty list says that nothing is there."""

    instruction = (
        "<p>Draw a box around every object of the classes, as close as it goes, over the parts that you can see. The "
        "boxes that are there already are the camera's guess: correct, delete and add; the frame is asked because "
        "something is probably wrong. No object at all? Delete what is there and <b>submit</b> the empty frame. "
        "<b>Skip</b> only when it cannot be told.</p>"
    )

    def label_config(self, labels: LabelSpec) -> str:
        """Return a page with the image as large as it fits, the classes and their keys above it.

        Neither image nor boxes can be turned: the boxes of the model are upright. No class is chosen in advance:
        a click on a box that is there shall move it, not draw another.

        Raises:
            AnnotationError: a class name holds a `$`, which the page would take for a variable.
        """
        verify_names(labels)
        page = ET.Element("View", style="padding: 8px")
        ET.SubElement(page, "Header", value="Box everything that is there; submit the empty frame too", size="4")
        boxes = ET.SubElement(
            page,
            "RectangleLabels",
            name="label",
            toName="image",
            showInline="true",
            canRotate="false",
            strokeWidth="2",
            opacity="0.15",
        )
        add_options(boxes, "Label", labels)
        ET.SubElement(
            page,
            "Image",
            name="image",
            value="$image",
            defaultZoom="fit",
            zoom="true",
            zoomControl="true",
            brightnessControl="true",
            contrastControl="true",
            rotateControl="false",
            crosshair="true",
        )
        add_context(page)
        return page_text(page)

    def pre_annotation(self, prediction: Prediction, labels: LabelSpec, size: ImageSize, /) -> dict[str, Any] | None:
        """Return the boxes that users were shown, with their probabilities; large ones first, small ones lie on top.

        Its score is the least probability among them. None also when nothing was: an empty guess is an empty page.
        """
        if not isinstance(prediction, DetectionPrediction):
            return None
        regions: Regions = []
        for box in prediction.shown_boxes:
            try:
                inside = clip_box(labelled_box(box, labels.class_names), size.width, size.height)
            except CatalogError:  # an older release's classes
                return None
            if inside is not None:
                score = round(box.score, 4)
                regions.append(_region(box.box_id, inside, size) | {"score": score})
        if not regions:
            return None
        regions.sort(key=lambda region: -region["value"]["width"] * region["value"]["height"])
        score = min(region["score"] for region in regions)
        return {"model_version": PREDICTION_SOURCE, "score": score, "result": regions}

    def encode(self, label: Mapping[str, Any], size: ImageSize | None = None, /) -> Regions:
        """Return one region a box.

        Raises:
            AnnotationError: the size is not known, or the label cannot be read.
        """
        if size is None:
            raise AnnotationError("boxes are in percent of the image, whose size is not known")
        try:
            boxes = parse_boxes(label)
        except CatalogError as exc:
            raise AnnotationError(str(exc), hint=exc.hint) from exc
        return [_region(f"box-{number}", box, size) for number, box in enumerate(boxes, start=1)]

    def parse(
        self, regions: Sequence[Mapping[str, Any]], labels: LabelSpec, size: ImageSize | None = None, /
    ) -> dict[str, Any]:
        """Return `{"boxes": [...]}` in pixels, cut at the image's border; no regions are an answer too.

        A turned box becomes the smallest upright one around it. What has no area, or lies outside of the image
        altogether, marks nothing and is left out. `size=None`: each region says the size of its image.

        Raises:
            AnnotationError: a region is no box of a class of the labels, or its numbers make no sense.
        """
        found = (_parse_region(region, labels, size) for region in regions)
        return boxes_label(box for box in found if box is not None)


def _region(region_id: str, box: LabelledBox, size: ImageSize) -> dict[str, Any]:
    value = {
        "x": _PERCENT * box.x_min / size.width,
        "y": _PERCENT * box.y_min / size.height,
        "width": _PERCENT * box.width / size.width,
        "height": _PERCENT * box.height / size.height,
        "rotation": 0,
        _KIND: [box.class_name],
    }
    return {
        "id": region_id,
        "from_name": "label",
        "to_name": "image",
        "type": _KIND,
        "original_width": size.width,
        "original_height": size.height,
        "image_rotation": 0,
        "value": value,
    }


def _parse_region(region: Mapping[str, Any], labels: LabelSpec, size: ImageSize | None) -> LabelledBox | None:
    try:
        if region["type"] != _KIND or region.get("image_rotation", 0) % 360:
            raise AnnotationError(f"a region is not a box on the upright image: {region['type']!r}")
        value = region["value"]
        names, degrees = value[_KIND], float(value.get("rotation", 0.0))
        if size is None:
            size = ImageSize(int(region["original_width"]), int(region["original_height"]))
        x, width = (float(value[name]) / _PERCENT * size.width for name in ("x", "width"))
        y, height = (float(value[name]) / _PERCENT * size.height for name in ("y", "height"))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as exc:
        raise AnnotationError(f"a region is not a box: {exc!r}") from exc
    if not all(map(math.isfinite, (x, y, width, height, degrees))) or min(width, height) < 0:
        raise AnnotationError("a box has sides that are no lengths")
    if not isinstance(names, list) or len(names) != 1:
        raise AnnotationError(f"a box has not one class but {names!r}")
    if names[0] not in labels.class_names:
        raise AnnotationError(f"{names[0]!r} is not among the classes", hint="see labels.yaml")
    left, top, right, bottom = _upright(x, y, width, height, degrees)
    return clip_box(LabelledBox(names[0], left, top, right, bottom), size.width, size.height)


def _upright(x: float, y: float, width: float, height: float, degrees: float) -> tuple[float, float, float, float]:
    """Return the corners of the smallest upright box around one that was turned clockwise about its top left corner.

    All in pixels: in percent a turned box would be skewed wherever the image is not square.
    """
    if degrees % 360 == 0:  # without the small error of a turn by a full circle
        return x, y, x + width, y + height
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    across = (0.0, width * cos, -height * sin, width * cos - height * sin)
    down = (0.0, width * sin, height * cos, width * sin + height * cos)
    return x + min(across), y + min(down), x + max(across), y + max(down)
