"""Any dataset version as files that other tools read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from curate.catalog.models import DatasetVersion
from curate.errors import CatalogError
from curate.interchange.coco import export_coco
from curate.interchange.models import Exported, Fetch
from curate.interchange.yolo import export_yolo
from flows._blobs import MAX_IMAGE_BYTES
from flows._wiring import Services

EXPORTS: Final[Mapping[str, Callable[[DatasetVersion, Sequence[str], Path, Fetch], Exported]]] = {
    "coco": export_coco,
    "yolo": export_yolo,
}
"""Every format that a dataset version can be written in."""


def export_dataset(wired: Services, version: str | None, format_name: str, folder: Path) -> Exported:
    """Write a dataset version, by default the newest, with its images.

    Raises:
        CatalogError: no such version or format, or it cannot be written; says why.
        StorageError: an image cannot be fetched.
    """
    if format_name not in EXPORTS:
        raise CatalogError(f"there is no format {format_name}", hint=f"formats: {', '.join(EXPORTS)}")
    catalog = wired.catalog
    dataset = catalog.latest_dataset_version() if version is None else catalog.dataset_version(version)
    if dataset is None:
        raise CatalogError(f"there is no dataset version {version or 'yet'}", hint="a round makes one")
    names = wired.settings.labels.class_names
    return EXPORTS[format_name](dataset, names, folder, lambda key: wired.store.get(key, max_bytes=MAX_IMAGE_BYTES))
