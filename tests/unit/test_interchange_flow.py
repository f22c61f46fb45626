"""Boxes from other tools' folders into the catalog and out again."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image

from curate.catalog.boxes import LabelledBox, boxes_label, parse_boxes
from curate.catalog.models import DatasetItem, DatasetVersion, Split
from curate.errors import CatalogError
from curate.interchange.sources import read_source
from flows._wiring import Services
from flows.export_dataset import EXPORTS, export_dataset
from tests.fakes.wiring import local_services

LABELS = Path(__file__).parents[2] / "configs" / "labels-detection.yaml"
BOX = LabelledBox("person", 1.25, 2, 30, 20.5)


@pytest.fixture
def wired(tmp_path: Path) -> Iterator[Services]:
    """Real parts on this disk, with one dataset version; nobody talks to Label Studio."""
    buffer = io.BytesIO()
    Image.new("L", (64, 48), 128).save(buffer, "JPEG")
    with local_services(tmp_path, labels_file=LABELS) as services:
        services.store.put("captures/cam-1/x.jpg", buffer.getvalue())
        yield services


def _version() -> DatasetVersion:
    item = DatasetItem("s-1", "captures/cam-1/x.jpg", boxes_label([BOX]), Split.TRAIN, "g", "cam-1", "yard")
    return DatasetVersion("v1", 1, datetime(2026, 3, 1, tzinfo=UTC), (item,))


@pytest.mark.parametrize("name", sorted(EXPORTS))
def test_a_version_is_written_and_read_in_every_format(name: str, wired: Services, tmp_path: Path) -> None:
    """The newest version goes out, and what was written is recognised by what it is."""
    wired.catalog.save_dataset_version(_version())
    exported = export_dataset(wired, None, name, tmp_path / "out")
    assert (exported.images, exported.boxes) == (1, 1)
    for place in {tmp_path / "out", exported.files[0] if name == "coco" else tmp_path / "out"}:
        imported = read_source("detection", place, ("person",))
        assert imported.problems == ()
        (box,) = parse_boxes(imported.pictures[0].label)
        assert box.corners == pytest.approx(BOX.corners)


def test_what_is_not_there_cannot_be_exported(wired: Services, tmp_path: Path) -> None:
    """An unknown format, an unknown version and a catalog without any are errors."""
    for version, name in ((None, "coco"), ("v9", "yolo"), (None, "voc")):
        with pytest.raises(CatalogError):
            export_dataset(wired, version, name, tmp_path / "out")


def test_images_lie_beside_the_annotations_or_in_the_folder_next_to_theirs(tmp_path: Path) -> None:
    """COCO's file names are looked up beside the file, or in `images` where that is beside its folder."""
    entry = {"id": 1, "file_name": "1.jpg", "width": 64, "height": 48}
    document = {"images": [entry], "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    file = tmp_path / "sub" / "instances.json"
    for folder in (file.parent, tmp_path / "images"):
        folder.mkdir()
        file.write_text(json.dumps(document))
        assert [str(problem) for problem in read_source("detection", file, ("person",)).problems]
        Image.new("L", (64, 48), 128).save(folder / "1.jpg")
        assert len(read_source("detection", file, ("person",)).pictures) == 1


def test_a_folder_that_holds_nothing_of_the_kind_says_what_is_expected(tmp_path: Path) -> None:
    """Neither COCO nor YOLO, a folder that is no class, a kind without labels: each is an error with its reason."""
    (tmp_path / "shoe").mkdir()
    with pytest.raises(CatalogError, match="holds no boxes"):
        read_source("detection", tmp_path, ("person",))
    with pytest.raises(CatalogError, match="no class"):
        read_source("classification", tmp_path, ("boot", "bag"))
    with pytest.raises(CatalogError, match="cannot be imported"):
        read_source("segmentation", tmp_path, ("person",))
