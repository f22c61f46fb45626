"""COCO and YOLO folders: what goes out comes back, and what is bad is named."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from curate.catalog.boxes import LabelledBox, boxes_label
from curate.catalog.models import DatasetItem, DatasetVersion, Split
from curate.errors import CatalogError
from curate.interchange.coco import export_coco, read_coco
from curate.interchange.models import Imported
from curate.interchange.yolo import export_yolo, read_yolo

CLASSES = ("person", "dog")
WIDTH, HEIGHT = 64, 48


def picture(width: int = WIDTH, height: int = HEIGHT) -> bytes:
    """A grey JPEG."""
    buffer = io.BytesIO()
    Image.new("L", (width, height), 128).save(buffer, "JPEG")
    return buffer.getvalue()


PICTURE = picture()


def fetch(key: str) -> bytes:
    """The image of any key; the bucket of these tests."""
    assert key.startswith("captures/")
    return PICTURE


def item(number: int, boxes: list[LabelledBox], split: Split = Split.TRAIN) -> DatasetItem:
    """One labelled image."""
    sample_id = f"s-{number:03d}"
    key = f"captures/cam-1/{number}.jpg"
    return DatasetItem(sample_id, key, boxes_label(boxes), split, f"g{number}", "cam-1", "yard")


def dataset(*items: DatasetItem) -> DatasetVersion:
    """A version of these items."""
    return DatasetVersion("abc123", 2, datetime(2026, 3, 1, tzinfo=UTC), items)


@st.composite
def boxes(draw: st.DrawFn) -> LabelledBox:
    """A box inside the image, down to a hundredth of a pixel."""
    x, y = draw(st.floats(0, WIDTH - 0.01)), draw(st.floats(0, HEIGHT - 0.01))
    x_max, y_max = draw(st.floats(x + 0.009, WIDTH)), draw(st.floats(y + 0.009, HEIGHT))
    return LabelledBox(draw(st.sampled_from(CLASSES)), x, y, x_max, y_max)


VERSIONS = st.lists(st.tuples(st.lists(boxes(), max_size=4), st.sampled_from(Split)), max_size=4)


@contextlib.contextmanager
def empty_folder() -> Iterator[Path]:
    """A folder of its own for every example."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name) / "export"


def read_all_coco(folder: Path) -> dict[str, tuple[LabelledBox, ...]]:
    """Every image of an export by its sample id."""
    found: dict[str, tuple[LabelledBox, ...]] = {}
    for file in sorted((folder / "annotations").glob("*.json")):
        imported = read_coco(file, folder / "images", CLASSES)
        assert imported.problems == ()
        found |= {image.path.stem: image.boxes for image in imported.images}
    return found


def check_same(found: dict[str, tuple[LabelledBox, ...]], wanted: DatasetVersion, *, tolerance_px: float) -> None:
    """The same samples with the same boxes in the same order."""
    expected = {each.sample_id: each.label["boxes"] for each in wanted.items}
    assert set(found) == set(expected)
    for sample_id, sent in expected.items():
        assert [box.class_name for box in found[sample_id]] == [box["class"] for box in sent]
        for box, was in zip(found[sample_id], sent, strict=True):
            corners = [was[name] for name in ("x_min", "y_min", "x_max", "y_max")]
            assert box.corners == pytest.approx(corners, abs=tolerance_px, rel=0)


@settings(max_examples=40)
@given(VERSIONS)
def test_a_version_survives_coco(parts: list[tuple[list[LabelledBox], Split]]) -> None:
    """Exported and read again, every sample of every split has its boxes, within rounding of a sum."""
    version = dataset(*(item(number, found, split) for number, (found, split) in enumerate(parts)))
    with empty_folder() as folder:
        exported = export_coco(version, CLASSES, folder, fetch)
        check_same(read_all_coco(folder), version, tolerance_px=1e-6 * WIDTH)
    assert exported.images == len(parts)
    assert exported.boxes == sum(len(found) for found, _ in parts)


@settings(max_examples=40)
@given(VERSIONS)
def test_a_version_survives_yolo(parts: list[tuple[list[LabelledBox], Split]]) -> None:
    """Every sample but the excluded ones comes back with its boxes, as exactly as its text can say."""
    version = dataset(*(item(number, found, split) for number, (found, split) in enumerate(parts)))
    with empty_folder() as folder:
        export_yolo(version, CLASSES, folder, fetch)
        imported = read_yolo(folder, CLASSES)
        assert imported.problems == ()
        named = dataset(*(each for each in version.items if each.split is not Split.EXCLUDED))
        check_same({image.path.stem: image.boxes for image in imported.images}, named, tolerance_px=1e-5 * HEIGHT)


def test_pycocotools_loads_the_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """COCO's own reader finds the images, the boxes, the areas and the classes in their order, by ids from 1."""
    box = LabelledBox("dog", 1.5, 2, 11.5, 6)
    version = dataset(item(1, [LabelledBox("person", 0, 0, 5, 5), box]), item(2, []), item(3, [box], Split.TEST))
    exported = export_coco(version, CLASSES, tmp_path / "out", fetch)
    assert [file.name for file in exported.files] == ["instances_test.json", "instances_train.json"]
    test, train = (COCO(str(file)) for file in exported.files)
    assert train.getCatIds() == [1, 2]
    assert [each["name"] for each in train.loadCats([1, 2])] == list(CLASSES)
    assert train.getImgIds() == [1, 2]
    assert train.getAnnIds(imgIds=[2]) == []
    (dog,) = train.loadAnns(train.getAnnIds(catIds=[2]))
    assert (dog["bbox"], dog["area"], dog["iscrowd"]) == ([1.5, 2, 10, 4], 40, 0)
    (last,) = test.loadImgs(test.getImgIds())
    assert (last["id"], last["width"], last["height"]) == (3, WIDTH, HEIGHT)
    assert (tmp_path / "out" / "images" / last["file_name"]).read_bytes() == PICTURE
    assert test.getAnnIds() == [3]


@pytest.mark.parametrize("export", [export_coco, export_yolo])
def test_an_export_is_the_same_every_time(export: Callable[..., Any], tmp_path: Path) -> None:
    """The order of the items changes no id and no byte."""
    items = [item(number, [LabelledBox("dog", number, 0, 9, 9)]) for number in range(4)]
    for name, order in (("a", items), ("b", items[::-1])):
        export(dataset(*order), CLASSES, tmp_path / name, fetch)
    first, second = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("a", "b")
    )
    assert first == second
    assert len(first) > len(items)


@pytest.mark.parametrize("export", [export_coco, export_yolo])
def test_what_cannot_be_exported_is_named(export: Callable[..., Any], tmp_path: Path) -> None:
    """Labels of another kind, unknown classes, broken pictures and folders in use are errors that say where."""
    classified = DatasetItem("s-9", "captures/x.jpg", {"class": "dog"}, Split.TRAIN, "g", "cam-1", "yard")
    with pytest.raises(CatalogError, match=r"s-9.*no list of boxes"):
        export(dataset(classified), CLASSES, tmp_path / "a", fetch)
    with pytest.raises(CatalogError, match=r"s-001.*'cat'"):
        export(dataset(item(1, [LabelledBox("cat", 0, 0, 1, 1)])), CLASSES, tmp_path / "b", fetch)
    with pytest.raises(CatalogError, match=r"s-001.*picture"):
        export(dataset(item(1, [])), CLASSES, tmp_path / "c", lambda key: b"no picture")
    with pytest.raises(CatalogError, match="not empty"):
        export(dataset(item(1, [])), CLASSES, tmp_path, fetch)


def test_yolo_writes_what_trainers_expect(tmp_path: Path) -> None:
    """Centre boxes in shares of the image, an empty file for an empty frame, and an index of what is not excluded."""
    box = LabelledBox("dog", 16, 12, 48, 24)
    export_yolo(dataset(item(1, [box]), item(2, []), item(3, [], Split.EXCLUDED)), CLASSES, tmp_path / "out", fetch)
    assert (tmp_path / "out" / "labels" / "train" / "s-001.txt").read_text() == "1 0.5 0.375 0.5 0.25\n"
    assert (tmp_path / "out" / "labels" / "train" / "s-002.txt").read_text() == ""
    index = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())
    assert index == {"train": "images/train", "val": "images/val", "names": {0: "person", 1: "dog"}}
    assert (tmp_path / "out" / "images" / "excluded" / "s-003.jpg").exists()
    assert (tmp_path / "out" / "images" / "val").is_dir()


# -- foreign files ---------------------------------------------------------------------------------------------


def write_coco(folder: Path, annotations: list[Any], images: list[Any] | None = None, **changes: Any) -> Path:
    """An annotation file over three pictures `1.jpg` to `3.jpg`."""
    for number in (1, 2, 3):
        (folder / f"{number}.jpg").write_bytes(PICTURE)
    document = {
        "images": images if images is not None else [coco_image(number) for number in (1, 2, 3)],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "person"}, {"id": 9, "name": "dog"}, {"id": 11, "name": "cat"}],
    }
    file = folder / "instances.json"
    file.write_text(json.dumps(document | changes))
    return file


def coco_image(number: int, **changes: Any) -> dict[str, Any]:
    """One entry of `images`."""
    return {"id": number, "file_name": f"{number}.jpg", "width": WIDTH, "height": HEIGHT} | changes


def mark(number: int, image_id: Any, **changes: Any) -> dict[str, Any]:
    """One entry of `annotations`."""
    return {"id": number, "image_id": image_id, "category_id": 7, "bbox": [1, 2, 3, 4], "iscrowd": 0} | changes


def names(imported: Imported) -> list[str]:
    """The images that came in."""
    return [image.path.name for image in imported.images]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"category_id": 11}, "'cat' is not among the classes"),
        ({"category_id": 5}, "5 is not among the classes"),
        ({"bbox": [1, 2, float("nan"), 4]}, "not a finite number"),
        ({"bbox": [1, 2, -3, 4]}, "out of order"),
        ({"bbox": [1, 2, 0, 4]}, "no area"),
        ({"bbox": [60, 2, 30, 4]}, "out of the image"),
        ({"bbox": [1, 2, 3]}, "3 numbers"),
        ({"bbox": "all of it"}, "bbox"),
        ({"iscrowd": 1}, "crowd"),
        ({"bbox": None}, "neither box nor outline"),
        ({"bbox": [], "segmentation": {"counts": "abc", "size": [48, 64]}}, "mask"),
        ({"bbox": None, "segmentation": [[1, 2, 3, 4]]}, "4 coordinates"),
        ({"bbox": None, "segmentation": [[1, 2, 3, 4, 5, float("nan")]]}, "finite"),
        ({"id": 1}, "annotation id 1 repeats"),
    ],
)
def test_a_bad_mark_leaves_its_image_out(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    """The image with the bad mark is reported with the reason, never half labelled; the others come in."""
    other = 2 if changes == {"id": 1} else 1
    file = write_coco(tmp_path, [mark(1, other), mark(2, 2), mark(3, 2, **changes)])
    imported = read_coco(file, tmp_path, CLASSES)
    assert names(imported) == ["1.jpg", "3.jpg"]
    (problem,) = imported.problems
    assert problem.place == "2.jpg"
    assert reason in problem.reason


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (coco_image(2, file_name="gone.jpg"), "cannot be read"),
        (coco_image(2, file_name="instances.json"), "no readable picture"),
        (coco_image(2, file_name="../2.jpg"), "leads out"),
        (coco_image(2, file_name="/etc/hostname"), "leads out"),
        (coco_image(2, file_name="2\0.jpg"), "leads out"),
        (coco_image(2, width=WIDTH + 1), "pixels"),
        (coco_image(2, file_name="1.jpg"), "more than once"),
        (coco_image(1, file_name="2.jpg"), "image id 1 repeats"),
        ({"id": 2}, "file_name"),
        ("2.jpg", "image entry 1"),
    ],
)
def test_a_bad_image_is_named(entry: Any, reason: str, tmp_path: Path) -> None:
    """Missing, broken, doubled and strangely named images are reported; the good ones come in."""
    imported = read_coco(write_coco(tmp_path, [], [coco_image(1), entry, coco_image(3)]), tmp_path, CLASSES)
    shared = "repeats" in reason or "more than once" in reason
    assert names(imported) == (["3.jpg"] if shared else ["1.jpg", "3.jpg"])
    assert len(imported.problems) == 1 + shared
    assert all(reason in str(problem) for problem in imported.problems)


def test_a_mark_of_no_image_is_not_lost(tmp_path: Path) -> None:
    """It is reported by its place in the file, and so is one that is no mark at all."""
    imported = read_coco(write_coco(tmp_path, [mark(1, 99), "mark", mark(2, None)]), tmp_path, CLASSES)
    assert names(imported) == ["1.jpg", "2.jpg", "3.jpg"]
    assert [problem.place for problem in imported.problems] == [f"annotation entry {number}" for number in range(3)]


def test_an_outline_counts_as_the_box_around_it_and_a_rounded_box_is_cut(tmp_path: Path) -> None:
    """What other tools write is understood: outlines without boxes, half a pixel over the border, classes to ignore."""
    outline = mark(1, 1, bbox=None, segmentation=[[1, 2, 9, 2, 5, 8], [3, 1, 4, 1, 4, 2]])
    over = mark(2, 2, bbox=[60, 40, 4.5, 8.5], category_id=9)
    ignored = [mark(3, 3, category_id=11), mark(4, 3, category_id=11, bbox=[1, 2, -3, 4])]
    imported = read_coco(write_coco(tmp_path, [outline, over, *ignored]), tmp_path, CLASSES, ignore={"cat"})
    assert imported.problems == ()
    assert [image.boxes for image in imported.images] == [
        (LabelledBox("person", 1, 1, 9, 8),),
        (LabelledBox("dog", 60, 40, 64, 48),),
        (),
    ]
    assert imported.images[0].label == boxes_label([LabelledBox("person", 1, 1, 9, 8)])


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        '{"images": [], "annotations": []}',
        '{"images": [], "annotations": [], "categories": [{"id": 1}]}',
        '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
        '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}',
    ],
)
def test_what_is_no_annotation_file_is_refused(text: str, tmp_path: Path) -> None:
    """Nothing can be taken from it, so it is an error and not a problem among others."""
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(CatalogError):
        read_coco(file, tmp_path, CLASSES)
    with pytest.raises(CatalogError):
        read_coco(tmp_path / "missing.json", tmp_path, CLASSES)


def write_yolo(folder: Path, lines: dict[str, str | None], **index: Any) -> Path:
    """Pictures in `images/train` with their label files; None for no file."""
    for part in ("images", "labels"):
        (folder / part / "train").mkdir(parents=True, exist_ok=True)
    for name, text in lines.items():
        (folder / "images" / "train" / f"{name}.jpg").write_bytes(PICTURE)
        if text is not None:
            (folder / "labels" / "train" / f"{name}.txt").write_text(text)
    known = {"train": "images/train", "names": ["person", "dog", "cat"]}
    (folder / "data.yaml").write_text(yaml.safe_dump(known | index))
    return folder


GOOD = "0 0.5 0.5 0.25 0.25\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "no label file"),
        (GOOD + "2 0.5 0.5 0.1 0.1", "line 2: 'cat' is not among"),
        ("3 0.5 0.5 0.1 0.1", "no class 3"),
        ("x 0.5 0.5 0.1 0.1", "cannot be read"),
        ("0 0.5 0.5 0.1 wide", "cannot be read"),
        ("0 nan 0.5 0.1 0.1", "not a finite number"),
        ("0 0.5 0.5 -0.1 0.1", "out of order"),
        ("0 0.5 0.5 0 0.1", "no area"),
        ("0 0.98 0.5 0.2 0.1", "out of the image"),
        ("0 0.5 0.5 0.1", "3 coordinates"),
        ("0 0.5 0.5 0.1 0.1 0.9", "5 coordinates"),
        ("0 0.1 0.1 nan 0.1 0.2 0.2", "finite"),
        ("0", "0 coordinates"),
    ],
)
def test_a_bad_line_leaves_its_image_out(text: str | None, reason: str, tmp_path: Path) -> None:
    """The image is reported with the line and the reason; the images beside it come in."""
    imported = read_yolo(write_yolo(tmp_path, {"a": GOOD, "b": text, "c": ""}), CLASSES)
    assert names(imported) == ["a.jpg", "c.jpg"]
    (problem,) = imported.problems
    assert problem.place == str(Path("images/train/b.jpg"))
    assert reason in problem.reason


def test_yolo_in_all_its_dialects(tmp_path: Path) -> None:
    """Outlines, names as a map, lists of images, paths seen from below and classes to ignore are understood."""
    outline = "0 0.125 0.125 0.5 0.125 0.25 0.5\n2 9 9 9 9\n"
    folder = write_yolo(
        tmp_path,
        {"a": outline, "b": GOOD},
        names={0: "person", 1: "dog", 2: "cat"},
        path="nowhere",
        train="../list.txt",
        val=None,
    )
    (tmp_path / "list.txt").write_text("./images/train/a.jpg\nimages/train/b.jpg\n\n")
    imported = read_yolo(folder, CLASSES, ignore=("cat",))
    assert imported.problems == ()
    assert [(image.split, image.boxes) for image in imported.images] == [
        ("train", (LabelledBox("person", 8, 6, 32, 24),)),
        ("train", (LabelledBox("person", 24, 18, 40, 30),)),
    ]


def test_a_missing_label_file_may_mean_an_empty_frame(tmp_path: Path) -> None:
    """Only when whoever imports says so."""
    imported = read_yolo(write_yolo(tmp_path, {"a": None}), CLASSES, missing_is_empty=True)
    assert [(image.boxes, image.width, image.height) for image in imported.images] == [((), WIDTH, HEIGHT)]


def test_nothing_of_a_yolo_folder_is_lost(tmp_path: Path) -> None:
    """Missing folders, missing, broken and doubled images, two to a label file and none to one: all are named."""
    folder = write_yolo(tmp_path, {"a": GOOD, "b": GOOD, "c": GOOD}, val=["list.txt", "gone"], test="none.txt")
    (tmp_path / "list.txt").write_text("images/train/a.jpg\nimages/val/away.jpg\n")
    (tmp_path / "images" / "train" / "b.jpg").write_bytes(b"broken")
    (tmp_path / "images" / "train" / "c.png").write_bytes(PICTURE)
    (tmp_path / "labels" / "train" / "alone.txt").write_text(GOOD)
    imported = read_yolo(folder, CLASSES)
    assert names(imported) == []
    told = [str(problem) for problem in imported.problems]
    for place, reason in [
        ("gone", "no such folder"),
        ("none.txt", "cannot be read"),
        ("a.jpg", "more than once"),
        ("away.jpg", "cannot be read"),
        ("b.jpg", "no readable picture"),
        ("c.jpg", "share one label file"),
        ("c.png", "share one label file"),
        ("alone.txt", "no image"),
    ]:
        assert [line for line in told if place in line and reason in line], (place, reason, told)
    assert len(told) == 8


@pytest.mark.parametrize("text", [None, "- a", "names: []", "names: [a, a]", "train: x", "names: {a: b", "names: 3"])
def test_what_is_no_yolo_folder_is_refused(text: str | None, tmp_path: Path) -> None:
    """Without an index that names the classes nothing can be read."""
    if text is not None:
        (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(CatalogError):
        read_yolo(tmp_path, CLASSES)
