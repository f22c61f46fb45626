"""Pictures on the way out and in: their sizes, and the folders they go to."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from PIL import Image, UnidentifiedImageError

from curate.catalog.boxes import LabelledBox, parse_boxes
from curate.catalog.models import DatasetVersion, Split
from curate.errors import CatalogError
from curate.interchange.models import BadEntryError, Fetch

FOLDERS = {Split.TRAIN: "train", Split.VALIDATION: "val", Split.TEST: "test", Split.EXCLUDED: "excluded"}
"""Each split in the word that other tools expect."""
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


@dataclass(frozen=True)
class OutgoingImage:
    """One item of a dataset version with its file."""

    sample_id: str
    camera_id: str
    file_name: str
    folder: str
    data: bytes
    width: int
    height: int
    boxes: tuple[LabelledBox, ...]


def outgoing_images(dataset: DatasetVersion, class_names: Collection[str], fetch: Fetch) -> Iterator[OutgoingImage]:
    """Fetch the version's images one at a time, by sample id, so that a version always gives the same order.

    Raises:
        CatalogError: a label holds no boxes, or some of unknown classes, or an image is not readable; names the sample.
    """
    for item in sorted(dataset.items, key=lambda item: item.sample_id):
        try:
            boxes = parse_boxes(item.label, class_names)
            data = fetch(item.image_key)
            width, height = _size(io.BytesIO(data))
        except (CatalogError, BadEntryError) as exc:
            raise CatalogError(f"sample {item.sample_id} cannot be exported: {exc}") from exc
        name = item.sample_id + PurePosixPath(item.image_key).suffix
        yield OutgoingImage(item.sample_id, item.camera_id, name, FOLDERS[item.split], data, width, height, boxes)


def open_folder(folder: Path) -> None:
    """Make an empty folder to write to.

    Raises:
        CatalogError: it holds something, which would be taken for part of the export, or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_empty = next(folder.iterdir(), None) is None
    except OSError as exc:
        raise CatalogError(f"cannot write to {folder}: {exc.strerror}") from exc
    if not is_empty:
        raise CatalogError(f"{folder} is not empty", hint="name a new folder")


def write_file(path: Path, data: bytes) -> Path:
    """Write a file and the folders above it.

    Raises:
        CatalogError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as exc:
        raise CatalogError(f"cannot write {path}: {exc.strerror}") from exc
    return path


def picture_size(path: Path) -> tuple[int, int]:
    """Return width and height, from the file's header.

    Raises:
        BadEntryError: there is no such file, or it is no picture.
    """
    try:
        with path.open("rb") as file:
            return _size(file)
    except OSError as exc:
        raise BadEntryError(f"the image cannot be read: {exc.strerror}") from exc


def _size(file: IO[bytes]) -> tuple[int, int]:
    try:
        with Image.open(file) as image:
            return image.size
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as exc:
        raise BadEntryError("the file is no readable picture") from exc
