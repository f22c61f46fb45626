"""YOLO's folders, out and in: `data.yaml`, and beside each `images/.../x.jpg` a `labels/.../x.txt`.

A line of a label file is `class x_centre y_centre width height`, the class counted from 0 and the rest in shares of
the image's width and height; or `class x1 y1 x2 y2 x3 y3 ...`, an outline.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from curate.catalog.boxes import LabelledBox
from curate.catalog.models import DatasetVersion
from curate.errors import CatalogError
from curate.interchange.models import BadEntryError, BoxedImage, Exported, Fetch, Imported, Problem, around, fit_box
from curate.interchange.pictures import (
    SUFFIXES,
    OutgoingImage,
    open_folder,
    outgoing_images,
    picture_size,
    write_file,
)

INDEX = "data.yaml"
_SPLITS = ("train", "val", "test")


def export_yolo(dataset: DatasetVersion, class_names: Sequence[str], folder: Path, fetch: Fetch) -> Exported:
    """Write `images/<split>/`, `labels/<split>/` and `data.yaml` under an empty folder.

    A frame without boxes gets an empty label file. Excluded samples get their folders, but `data.yaml` does not name
    them.

    Raises:
        CatalogError: the folder is in use, or a label has no boxes, or an image is not readable.
        StorageError: what `fetch` raises.
    """
    open_folder(folder)
    image_count = box_count = 0
    used = {"train", "val"}  # what trains wants both, even when one is empty
    for image in outgoing_images(dataset, class_names, fetch):
        write_file(folder / "images" / image.folder / image.file_name, image.data)
        lines = "".join(_line(class_names.index(box.class_name), box, image) for box in image.boxes)
        label_file = (folder / "labels" / image.folder / image.file_name).with_suffix(".txt")
        write_file(label_file, lines.encode())
        image_count, box_count = image_count + 1, box_count + len(image.boxes)
        used.add(image.folder)
    index = {name: f"images/{name}" for name in _SPLITS if name in used}
    index_file = write_file(
        folder / INDEX,
        yaml.safe_dump(index | {"names": dict(enumerate(class_names))}, sort_keys=False, allow_unicode=True).encode(),
    )
    for place in index.values():
        (folder / place).mkdir(parents=True, exist_ok=True)
    return Exported(image_count, box_count, (index_file,))


def read_yolo(
    folder: Path, class_names: Collection[str], *, ignore: Collection[str] = (), missing_is_empty: bool = False
) -> Imported:
    """Read what `folder/data.yaml` names.

    Boxes of the classes to `ignore` are left out on purpose. An image without a label file is reported, unless
    `missing_is_empty` says that the source means "nothing is there" by it.

    Raises:
        CatalogError: there is no `data.yaml`, or it names no classes or the same one twice.
    """
    index = _load(folder / INDEX)
    names = _names(index)
    root = folder / str(index.get("path") or "")
    root = root if root.is_dir() else folder
    listed: list[tuple[str, Path]] = []
    problems: list[Problem] = []
    for split in _SPLITS:
        for place in _places(index.get(split)):
            try:
                listed += [(split, path) for path in _list_images(root, place)]
            except BadEntryError as exc:
                problems.append(Problem(place, str(exc)))
    times = Counter(path for _, path in listed)
    sharing = Counter(map(_label_file, times))
    images: list[BoxedImage] = []
    for split, path in dict.fromkeys(listed):
        try:
            _verify_single(times[path], sharing[_label_file(path)])
            width, height = picture_size(path)
            marks = _marks(_lines(_label_file(path), missing_is_empty), names, class_names, ignore)
            images.append(BoxedImage(path, width, height, _boxes(marks, width, height), split))
        except BadEntryError as exc:
            problems.append(Problem(str(path.relative_to(root) if path.is_relative_to(root) else path), str(exc)))
    problems += [Problem(str(file), "there is no image to this label file") for file in _orphans(sharing)]
    return Imported(tuple(images), tuple(dict.fromkeys(problems)))


def _line(class_index: int, box: LabelledBox, image: OutgoingImage) -> str:
    shares = (
        (box.x_min + box.x_max) / 2 / image.width,
        (box.y_min + box.y_max) / 2 / image.height,
        box.width / image.width,
        box.height / image.height,
    )
    return f"{class_index} {' '.join(f'{share:.12g}' for share in shares)}\n"


def _load(path: Path) -> Mapping[str, Any]:
    try:
        index = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as exc:
        raise CatalogError(f"cannot read {path}: {exc}", hint="expected the data.yaml of a YOLO dataset") from exc
    if not isinstance(index, dict):
        raise CatalogError(f"{path} is no YOLO index", hint="it names the classes and the folders of images")
    return index


def _names(index: Mapping[str, Any]) -> dict[int, str]:
    names = index.get("names")
    pairs = names.items() if isinstance(names, dict) else enumerate(names) if isinstance(names, list) else ()
    found = {int(number): str(name) for number, name in pairs if str(number).isdigit()}
    if not found or len(set(found.values())) != len(names or ()):
        raise CatalogError(f"{INDEX} names no classes, or one twice", hint="names: [person, ...]")
    return found


def _places(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(place) for place in value] if isinstance(value, list) else [str(value)]


def _list_images(root: Path, place: str) -> list[Path]:
    """Return the images of a folder, or those that a text file lists."""
    path = root / place
    if not path.exists() and place.startswith("../"):  # written as seen from a folder below
        path = root / place.removeprefix("../")
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    if path.suffix != ".txt":
        raise BadEntryError("there is no such folder")
    try:
        return [root / line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as exc:
        raise BadEntryError(f"the list of images cannot be read: {exc}") from exc


def _label_file(image: Path) -> Path:
    """`a/images/b/c.jpg` to `a/labels/b/c.txt`, or beside the image where no folder is called so."""
    parts = list(image.parts)
    for position in range(len(parts) - 2, -1, -1):
        if parts[position] == "images":
            parts[position] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _verify_single(times_listed: int, images_of_label: int) -> None:
    if times_listed > 1:
        raise BadEntryError("the image is listed more than once")
    if images_of_label > 1:
        raise BadEntryError("several images share one label file")


def _lines(path: Path, missing_is_empty: bool) -> list[str]:
    if not path.exists():
        if missing_is_empty:
            return []
        raise BadEntryError("there is no label file (an empty one says that nothing is there)")
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as exc:
        raise BadEntryError(f"the label file cannot be read: {exc}") from exc


@dataclass(frozen=True)
class _Mark:
    """One line of a label file."""

    number: int
    class_name: str
    shares: list[float]


def _marks(
    lines: Sequence[str], names: Mapping[int, str], class_names: Collection[str], ignore: Collection[str]
) -> list[_Mark]:
    found = [_parse_line(number, line, names) for number, line in enumerate(lines, start=1)]
    for mark in found:
        if mark.class_name not in class_names and mark.class_name not in ignore:
            raise BadEntryError(f"line {mark.number}: {mark.class_name!r} is not among the classes")
    return [mark for mark in found if mark.class_name not in ignore]


def _parse_line(number: int, line: str, names: Mapping[int, str]) -> _Mark:
    class_text, *shares = line.split()
    try:
        return _Mark(number, names[int(class_text)], [float(share) for share in shares])
    except ValueError as exc:
        raise BadEntryError(f"line {number} cannot be read: {exc}") from exc
    except KeyError as exc:
        raise BadEntryError(f"line {number}: there is no class {exc}") from exc


def _boxes(marks: Sequence[_Mark], width: int, height: int) -> tuple[LabelledBox, ...]:
    boxes = []
    for mark in marks:
        try:
            boxes.append(fit_box(_box(mark, width, height), width, height))
        except BadEntryError as exc:
            raise BadEntryError(f"line {mark.number}: {exc}") from exc
    return tuple(boxes)


def _box(mark: _Mark, width: int, height: int) -> LabelledBox:
    if len(mark.shares) != 4:
        scaled = [share * (height if position % 2 else width) for position, share in enumerate(mark.shares)]
        return around(mark.class_name, scaled)
    x, y, across, down = (share * side for share, side in zip(mark.shares, (width, height) * 2, strict=True))
    return LabelledBox(mark.class_name, x - across / 2, y - down / 2, x + across / 2, y + down / 2)


def _orphans(known: Collection[Path]) -> Iterator[Path]:
    """Label files without an image, in the folders where others have one."""
    for folder in sorted({path.parent for path in known}):
        if folder.is_dir() and "labels" in folder.parts:
            yield from sorted(path for path in folder.glob("*.txt") if path not in known)
