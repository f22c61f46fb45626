"""Labels saved, measured with a real training, a real export and real pictures."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from curate.catalog.models import (
    IMPORTED,
    DatasetItem,
    DatasetVersion,
    ModelRow,
    ModelStatus,
    SelectedRow,
    SelectionRole,
    Split,
)
from curate.errors import CatalogError
from curate.training.recipe import TrainingRecipe
from flows._blobs import put_model_file
from flows._field_report import SAVINGS_FACT
from flows._wiring import Services
from flows.measure_savings import field_labels, keep_only, measure_round, newest_unmeasured
from tests.catalog_builders import NOW, imported
from tests.fakes.tiny_model import CLASSES, tiny_model
from tests.fakes.wiring import local_services

SIZE = 32
TAUGHT, AUDITS = 12, 40
EXACT = 1e-9
RECIPE = TrainingRecipe(epochs=2, steps_per_epoch=10, batch_size=16, threads=1)


@pytest.fixture
def wired(tmp_path: Path) -> Iterator[Services]:
    """Two rounds that each taught a model, half of it explored, and audits. What was not explored has no picture."""
    names = ", ".join(CLASSES)
    (tmp_path / "labels.yaml").write_text(f"class_names: [{names}]\nheight: {SIZE}\nwidth: {SIZE}\n")
    with local_services(tmp_path, labels_file=tmp_path / "labels.yaml", training=RECIPE) as services:
        audits = [item(services, f"t{number}", number, Split.TEST) for number in range(AUDITS)]
        taught: list[DatasetItem] = []
        for number, bias in ((1, -1.5), (2, 0.0)):
            mine = [item(services, f"r{number}-{i}", i, Split.TRAIN, pictured=i % 2 == 0) for i in range(TAUGHT)]
            taught += mine
            choose(services, number, mine)
            release(services, number, (*audits, *taught), bias)
        yield services


def item(wired: Services, name: str, number: int, split: Split, *, pictured: bool = True) -> DatasetItem:
    """A labelled frame: dark, middle or bright."""
    level, key = number % 3, f"captures/cam-1/{name}.jpg"
    if pictured:
        pixels = np.random.default_rng(number).normal(40 + 85 * level, 8, (SIZE, SIZE, 3)).clip(0, 255)
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG")
        wired.store.put(key, buffer.getvalue())
    probability = 0.01 if split is Split.TEST else None
    return DatasetItem(
        name, key, {"class": CLASSES[level]}, split, f"g{number // 2}", "cam-1", "front", 1.0, probability
    )


def choose(wired: Services, number: int, items: list[DatasetItem]) -> None:
    """Have the items selected, those with a picture as explored."""
    wired.catalog.add_samples([replace(imported(0), sample_id=each.sample_id) for each in items])
    wired.catalog.open_round(number, budget=TAUGHT, seed=0, now=NOW)
    rows = [
        SelectedRow(number, each.sample_id, rank, SelectionRole.ACTIVE, 0.1, None, (), explored=rank % 2 == 0)
        for rank, each in enumerate(items)
    ]
    wired.catalog.save_selection(number, rows)


def release(wired: Services, number: int, items: tuple[DatasetItem, ...], bias: float) -> None:
    """Keep a model of the round's labels; a bias of -1.5 makes it right on the bright frames only."""
    model = tiny_model(SIZE, bias=bias)
    about = {
        "kind": "classification",
        "class_names": str(CLASSES).replace("'", '"'),
        "frame_shape": f"[{SIZE}, {SIZE}, 3]",
    }
    onnx.helper.set_model_props(model, about)
    key = put_model_file(wired.store, "model-float.onnx", model.SerializeToString())
    wired.catalog.save_dataset_version(DatasetVersion(f"v{number}", number, NOW, items))
    wired.catalog.save_model(
        ModelRow(f"m{number}", number, f"v{number}", NOW, ModelStatus.CANDIDATE, {"float": key}, {})
    )


def test_the_control_learns_from_explored_labels_alone(wired: Services) -> None:
    """Only explored labels have pictures, so the control is taught with half of what our newest model had."""
    found = measure_round(wired, 2)
    assert (found["control_labels"], found["frames"]) == (TAUGHT, AUDITS)
    if found["share"] is None:
        assert found["why"]
    else:
        low, high = found["ci95"]
        assert 1.0 - EXACT <= low <= found["share"] + EXACT
        assert found["share"] <= high + EXACT <= 2.0 + 2 * EXACT


def test_one_round_is_no_curve(wired: Services) -> None:
    """After the first round nothing is trained and nothing is told, with the reason."""
    found = measure_round(wired, 1)
    assert (found["share"], found["control_labels"]) == (None, TAUGHT // 2)
    assert "two rounds" in found["why"]


def test_a_round_is_measured_once(wired: Services) -> None:
    """The newest round that taught a model is next, until its facts hold the measure; a round without one is told."""
    assert newest_unmeasured(wired) == 2
    phase = wired.catalog.rounds()[-1].phase
    wired.catalog.advance_round(2, phase, {SAVINGS_FACT: measure_round(wired, 1)}, now=NOW)
    assert newest_unmeasured(wired) is None
    wired.catalog.open_round(3, budget=1, seed=0, now=NOW)
    assert newest_unmeasured(wired) is None
    for number, words in ((3, "taught no model"), (9, "no round 9")):
        with pytest.raises(CatalogError, match=words):
            measure_round(wired, number)


def test_imported_labels_count_for_neither_side(wired: Services) -> None:
    """What was imported stays with the control, and is not counted; of the field only the named samples stay."""
    dataset = wired.catalog.dataset_version("v1")
    assert dataset is not None
    seeds = replace(dataset.items[-1], sample_id="i", device_id=IMPORTED, split=Split.TRAIN)
    mixed = replace(dataset, items=(*dataset.items, seeds))
    assert field_labels(mixed) == TAUGHT
    kept = keep_only(mixed, {"r1-0", "t3"})
    assert [each.sample_id for each in kept.items] == ["t3", "r1-0", "i"]
    assert field_labels(kept) == 1
