"""COCO's JSON (Lin et al. 2014, the format of its object detection task), out and in.

A box is `[x, y, width, height]` in pixels; all ids begin with 1, because its tools take an annotation with the id 0
for no match at all.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from curate.catalog.boxes import LabelledBox
from curate.catalog.models import DatasetVersion
from curate.errors import CatalogError
from curate.interchange.models import BadEntryError, BoxedImage, Exported, Fetch, Imported, Problem, around, fit_box
from curate.interchange.pictures import OutgoingImage, open_folder, outgoing_images, picture_size, write_file

Id = int | str


class _Category(BaseModel):
    id: Id
    name: str


class _Image(BaseModel):
    id: Id
    file_name: str = Field(min_length=1)
    width: int | None = None
    height: int | None = None


class _Annotation(BaseModel):
    id: Id | None = None
    image_id: Id
    category_id: Id
    bbox: list[float] | None = None
    segmentation: Any = None
    iscrowd: int = 0


def export_coco(dataset: DatasetVersion, class_names: Sequence[str], folder: Path, fetch: Fetch) -> Exported:
    """Write `annotations/instances_<split>.json` and `images/<split>/<sample id>` under an empty folder.

    Ids count through all splits in the order of sample ids, and categories in the order of the classes, so a version
    gives the same files every time.

    Raises:
        CatalogError: the folder is in use, or a label has no boxes, or an image is not readable.
        StorageError: what `fetch` raises.
    """
    open_folder(folder)
    parts: defaultdict[str, tuple[list[Any], list[Any]]] = defaultdict(lambda: ([], []))
    image_count = box_count = 0
    for image_count, image in enumerate(outgoing_images(dataset, class_names, fetch), start=1):
        write_file(folder / "images" / image.folder / image.file_name, image.data)
        images, annotations = parts[image.folder]
        images.append(_image_entry(image_count, image))
        annotations += [
            _annotation_entry(box_count + number, image_count, class_names.index(box.class_name) + 1, box)
            for number, box in enumerate(image.boxes, start=1)
        ]
        box_count += len(image.boxes)
    header = {
        "info": {
            "description": f"Gleaner dataset version {dataset.version}",
            "version": dataset.version,
            "date_created": dataset.created_at.isoformat(),
        },
        "licenses": [],
        "categories": [{"id": number, "name": name} for number, name in enumerate(class_names, start=1)],
    }
    files = [
        write_file(
            folder / "annotations" / f"instances_{name}.json",
            json.dumps(header | {"images": images, "annotations": annotations}).encode(),
        )
        for name, (images, annotations) in sorted(parts.items())
    ]
    return Exported(image_count, box_count, tuple(files))


def read_coco(
    annotation_file: Path, image_folder: Path, class_names: Collection[str], *, ignore: Collection[str] = ()
) -> Imported:
    """Read one annotation file and look for its images under `image_folder`.

    Boxes of the classes to `ignore` are left out on purpose. An outline without a box counts as the box around it. A
    crowd is reported: it stands for objects that nobody told apart.

    Raises:
        CatalogError: it is no annotation file at all, or two of its categories share an id or a name.
    """
    document = _load(annotation_file)
    reading = _Reading(_categories(document), frozenset(class_names), frozenset(ignore))
    for position, raw in enumerate(document["images"]):
        reading.take_image(position, raw)
    for position, raw in enumerate(document["annotations"]):
        reading.take_annotation(position, raw)
    reading.report_repeated_ids()
    found = [reading.finish(position, image_folder) for position in reading.images]
    problems = [*reading.problems, *(each for each in found if isinstance(each, Problem))]
    return Imported(tuple(each for each in found if isinstance(each, BoxedImage)), tuple(problems))


@dataclass(frozen=True)
class _Found:
    annotation: _Annotation
    class_name: str


class _Reading:
    """What has been read of one file: everything ends in an image or in a problem."""

    def __init__(self, categories: Mapping[Id, str], class_names: frozenset[str], ignore: frozenset[str]) -> None:
        self._categories = categories
        self._class_names = class_names
        self._ignore = ignore
        self.images: dict[int, _Image] = {}
        """By position in the file: ids may repeat."""
        self.problems: list[Problem] = []
        """Of what belongs to no image."""
        self._positions: defaultdict[Id, list[int]] = defaultdict(list)
        self._reasons: defaultdict[Id, list[str]] = defaultdict(list)
        self._found: defaultdict[Id, list[_Found]] = defaultdict(list)
        self._images_of_annotation: defaultdict[Id, list[Id]] = defaultdict(list)

    def take_image(self, position: int, raw: Any) -> None:
        """Note one entry of `images`."""
        try:
            image = _Image.model_validate(raw)
        except ValidationError as exc:
            self.problems.append(Problem(f"image entry {position}", _first(exc)))
            return
        self.images[position] = image
        self._positions[image.id].append(position)

    def take_annotation(self, position: int, raw: Any) -> None:
        """Note one entry of `annotations` with the image it belongs to, or why it cannot be used."""
        try:
            annotation = _Annotation.model_validate(raw)
        except ValidationError as exc:
            image_id = raw.get("image_id") if isinstance(raw, dict) else None
            self._refuse(position, image_id if isinstance(image_id, int | str) else None, _first(exc))
            return
        name = self._categories.get(annotation.category_id)
        if annotation.image_id not in self._positions:
            self._refuse(position, None, f"there is no image {annotation.image_id!r}")
        elif name is None or name not in self._class_names | self._ignore:
            self._reasons[annotation.image_id].append(f"{name or annotation.category_id!r} is not among the classes")
        elif name not in self._ignore:
            self._found[annotation.image_id].append(_Found(annotation, name))
        if annotation.id is not None:
            self._images_of_annotation[annotation.id].append(annotation.image_id)

    def report_repeated_ids(self) -> None:
        """Note ids and file names that more than one entry has: nobody knows which is meant."""
        names = Counter(image.file_name for image in self.images.values())
        for image in self.images.values():
            if len(self._positions[image.id]) > 1:
                self._reasons[image.id].append(f"the image id {image.id!r} repeats")
            if names[image.file_name] > 1:
                self._reasons[image.id].append("the file is listed more than once")
        for annotation_id, image_ids in self._images_of_annotation.items():
            if len(image_ids) > 1:
                for image_id in dict.fromkeys(image_ids):
                    self._reasons[image_id].append(f"the annotation id {annotation_id!r} repeats")

    def finish(self, position: int, folder: Path) -> BoxedImage | Problem:
        """Return the image with its boxes, or why it was left out."""
        image = self.images[position]
        reasons = list(self._reasons[image.id])
        try:
            path, width, height = _open(image, folder)
        except BadEntryError as exc:
            return Problem(image.file_name, "; ".join(dict.fromkeys([*reasons, str(exc)])))
        boxes = []
        for found in self._found[image.id]:
            try:
                boxes.append(fit_box(_box(found), width, height))
            except BadEntryError as exc:
                reasons.append(str(exc))
        if reasons:
            return Problem(image.file_name, "; ".join(dict.fromkeys(reasons)))
        return BoxedImage(path, width, height, tuple(boxes))

    def _refuse(self, position: int, image_id: Id | None, reason: str) -> None:
        if image_id is not None and image_id in self._positions:
            self._reasons[image_id].append(f"annotation entry {position}: {reason}")
        else:
            self.problems.append(Problem(f"annotation entry {position}", reason))


def _load(path: Path) -> dict[str, list[Any]]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as exc:
        raise CatalogError(f"cannot read {path}: {exc}", hint="expected COCO's annotation file, JSON") from exc
    names = ("images", "annotations", "categories")
    if not isinstance(document, dict) or not all(isinstance(document.get(name), list) for name in names):
        raise CatalogError(f"{path} is no COCO annotation file: it needs the lists {', '.join(names)}")
    return {name: document[name] for name in names}


def _categories(document: Mapping[str, list[Any]]) -> dict[Id, str]:
    try:
        found = [_Category.model_validate(raw) for raw in document["categories"]]
    except ValidationError as exc:
        raise CatalogError(f"a category cannot be read: {_first(exc)}") from exc
    by_id = {category.id: category.name for category in found}
    if len(by_id) != len(found) or len(set(by_id.values())) != len(found):
        raise CatalogError("two categories share an id or a name")
    return by_id


def _open(image: _Image, folder: Path) -> tuple[Path, int, int]:
    path = folder / image.file_name
    if "\0" in image.file_name or not path.resolve().is_relative_to(folder.resolve()):
        raise BadEntryError("the file name leads out of the folder of images")
    width, height = picture_size(path)
    if (image.width or width, image.height or height) != (width, height):
        raise BadEntryError(f"the image has {width} x {height} pixels, not {image.width} x {image.height}")
    return path, width, height


def _box(found: _Found) -> LabelledBox:
    annotation, name = found.annotation, found.class_name
    if annotation.iscrowd:
        raise BadEntryError(f"a crowd of {name!r} is not told apart")
    if annotation.bbox:
        if len(annotation.bbox) != 4:
            raise BadEntryError(f"a box of {name!r} has {len(annotation.bbox)} numbers instead of 4")
        x, y, width, height = annotation.bbox
        return LabelledBox(name, x, y, x + width, y + height)
    try:
        points = [float(value) for outline in annotation.segmentation or () for value in outline]
    except (TypeError, ValueError) as exc:  # a run-length mask
        raise BadEntryError(f"{name!r} is marked by a mask only, without a box") from exc
    if not points:
        raise BadEntryError(f"a mark of {name!r} has neither box nor outline")
    return around(name, points)


def _image_entry(image_id: int, image: OutgoingImage) -> dict[str, Any]:
    return {
        "id": image_id,
        "file_name": f"{image.folder}/{image.file_name}",
        "width": image.width,
        "height": image.height,
        "sample_id": image.sample_id,
        "camera_id": image.camera_id,
    }


def _annotation_entry(annotation_id: int, image_id: int, category_id: int, box: LabelledBox) -> dict[str, Any]:
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [box.x_min, box.y_min, box.width, box.height],
        "area": box.width * box.height,
        "iscrowd": 0,
    }


def _first(error: ValidationError) -> str:
    """The first complaint, without the input it quotes."""
    complaint = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, complaint["loc"]))
    return f"{place}: {complaint['msg']}" if place else str(complaint["msg"])
