"""Labelled pictures as people bring them: a folder of class folders, COCO, YOLO. One reader a kind of label."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from curate.errors import CatalogError
from curate.interchange.coco import read_coco
from curate.interchange.models import Imported, Problem
from curate.interchange.yolo import INDEX, read_yolo

PICTURES: Final = {".jpg", ".jpeg", ".png"}


@dataclass(frozen=True)
class LabelledPicture:
    """A picture and the label that somebody gave it, as the catalog keeps labels."""

    path: Path
    label: dict[str, Any]


@dataclass(frozen=True)
class Source:
    """Everything found: pictures with their labels, and what was left out."""

    pictures: tuple[LabelledPicture, ...]
    problems: tuple[Problem, ...] = ()


def read_source(kind: str, place: Path, class_names: Sequence[str]) -> Source:
    """Read labelled pictures of a kind; whether the pictures themselves can be decoded is not looked at.

    Classification: `place/<class>/<picture>`. Detection: COCO's annotation file with its images beside it or in
    `../images`, a folder with `annotations/*.json` and `images/`, or YOLO's folder with `data.yaml`.

    Raises:
        CatalogError: it is nothing of the kind, or labels of this kind cannot be brought in.
    """
    if kind not in SOURCES:
        raise CatalogError(f"{kind} labels cannot be imported yet", hint=f"kinds: {', '.join(SOURCES)}")
    return SOURCES[kind](place, class_names)


def _read_class_folders(place: Path, class_names: Sequence[str]) -> Source:
    if not place.is_dir():
        raise CatalogError(f"{place} is no folder", hint="expected <class>/<picture>.jpg or .png")
    unknown = sorted(path.name for path in place.iterdir() if path.is_dir() and path.name not in class_names)
    if unknown:
        raise CatalogError(f"folders that are no class: {unknown}", hint=f"the classes are {list(class_names)}")
    pictures = [
        LabelledPicture(path, {"class": name})
        for name in class_names
        if (place / name).is_dir()
        for path in sorted((place / name).iterdir())
        if path.suffix.lower() in PICTURES
    ]
    return Source(tuple(pictures))


def _read_boxes(place: Path, class_names: Collection[str]) -> Source:
    parts = _box_parts(place, class_names)
    pictures = [LabelledPicture(image.path, image.label) for part in parts for image in part.images]
    return Source(tuple(pictures), tuple(problem for part in parts for problem in part.problems))


def _box_parts(place: Path, class_names: Collection[str]) -> list[Imported]:
    if place.is_file():
        sibling = place.parent.parent / "images"
        return [read_coco(place, sibling if sibling.is_dir() else place.parent, class_names)]
    if (place / INDEX).is_file():
        return [read_yolo(place, class_names)]
    files = sorted((place / "annotations").glob("*.json"))
    if not files:
        raise CatalogError(
            f"{place} holds no boxes", hint=f"expected COCO's annotations/*.json with images/, or YOLO's {INDEX}"
        )
    return [read_coco(file, place / "images", class_names) for file in files]


SOURCES: Final[Mapping[str, Callable[[Path, Sequence[str]], Source]]] = {
    "classification": _read_class_folders,
    "detection": _read_boxes,
}
