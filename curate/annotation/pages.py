"""What the labeling pages of all kinds share, in Label Studio's words."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

from curate.catalog.labels import LabelSpec
from curate.errors import AnnotationError

Regions = list[dict[str, Any]]
"""Label Studio's `result`: one entry for each thing marked."""

PREDICTION_SOURCE = "device"
"""The one `model_version` of all pre-annotations. Label Studio shows only those of the version its project is set to,
so a version for each release would hide the newer releases' guesses; the release is part of the task's data."""

_HOTKEYS = "1234567890qwertyuiopasdfghjklzxcvbnm"


def verify_names(labels: LabelSpec) -> None:
    """Accept class names that a page can show.

    Raises:
        AnnotationError: one holds a `$`, which the page would take for a variable.
    """
    if odd := [name for name in labels.class_names if "$" in name]:
        raise AnnotationError(f"Label Studio cannot show {odd[0]!r}", hint="rename it in labels.yaml, without '$'")


def add_options(parent: ET.Element, tag: str, labels: LabelSpec) -> None:
    """Add one element for each class, with a key of its own while there are keys."""
    options = [ET.SubElement(parent, tag, value=name) for name in labels.class_names]
    for option, hotkey in zip(options, _HOTKEYS, strict=False):
        option.set("hotkey", hotkey)


def add_context(parent: ET.Element) -> None:
    """Add where and when the frame was taken, and why it is asked: variables of every task's data."""
    ET.SubElement(parent, "Header", value="$headline", size="5")
    ET.SubElement(parent, "Text", name="why", value="$why")


def page_text(page: ET.Element) -> str:
    """Return the page as the XML that a project is configured with."""
    ET.indent(page)
    return ET.tostring(page, encoding="unicode")
