"""The second look from the catalog to the decision, with real models, pictures and a real catalog."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from curate.catalog.models import (
    AnnotationRow,
    DatasetItem,
    DatasetVersion,
    ModelRow,
    ModelStatus,
    SampleStatus,
    SelectionRole,
    Split,
)
from curate.contracts.capture import Arm, ArmOutcome, CaptureRecord
from curate.contracts.paths import capture_key
from curate.contracts.prediction import ClassificationPrediction
from curate.errors import CatalogError
from flows._blobs import put_model_file
from flows._gate import decide, fetch_draw
from flows._wiring import Services
from flows.second_look import is_open, queue_contested
from tests.catalog_builders import NOW, batch, capture, embedding, plan
from tests.fakes.tiny_model import CLASSES, EMBEDDING_DIM, tiny_model
from tests.fakes.wiring import local_services

SIZE = 32
CAPTURES, TAUGHT = 90, 6
KEPT_WITH = 0.05


@pytest.fixture
def wired(tmp_path: Path) -> Iterator[Services]:
    """A released model that sees everything too dark, a candidate that does not, and no audits."""
    (tmp_path / "labels.yaml").write_text(f"class_names: [{', '.join(CLASSES)}]\nheight: {SIZE}\nwidth: {SIZE}\n")
    with local_services(tmp_path, labels_file=tmp_path / "labels.yaml") as services:
        records = [frame(services, number) for number in range(CAPTURES)]
        services.catalog.admit_batch(plan(batch(captures=records)))
        items = tuple(item(record, Split.TRAIN) for record in records[:TAUGHT])
        services.catalog.save_dataset_version(DatasetVersion("v", 1, NOW, items))
        services.catalog.open_round(1, budget=1, seed=0, now=NOW)
        label(services, [record.capture_id for record in records[:TAUGHT]])
        for name, number, bias, status in (
            ("old", 0, 1.0, ModelStatus.RELEASED),
            ("new", 1, 0.0, ModelStatus.CANDIDATE),
        ):
            keep_model(services, name, number, bias, status)
        yield services


def frame(wired: Services, number: int) -> CaptureRecord:
    """A random-arm capture, dark, middle or bright, minutes from the next, that the released model has answered."""
    pixels = np.random.default_rng(number).normal(40 + 85 * (number % 3), 8, (SIZE, SIZE, 3)).clip(0, 255)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    said = ClassificationPrediction(
        prediction_id=f"p-{number}",
        release_id="old",
        probabilities=[0.5, 0.3, 0.2],
        scores={"margin": 0.5},
        embedding=embedding(number, EMBEDDING_DIM),
    )
    record = capture(
        number,
        prediction=said,
        arms=[ArmOutcome(arm=Arm.RANDOM, probability=KEPT_WITH, kept=True)],
        inclusion_probability=KEPT_WITH,
        captured_at=NOW - timedelta(minutes=5 * (CAPTURES - number)),
    )
    wired.store.put(key_of(record), buffer.getvalue())
    return record


def key_of(record: CaptureRecord) -> str:
    """Where its picture lies."""
    return capture_key("cam-1", record.image.sha256)


def item(record: CaptureRecord, split: Split) -> DatasetItem:
    """The capture as part of a dataset version."""
    number = record.frame_index
    shown = {"class": CLASSES[number % 3]}
    return DatasetItem(record.capture_id, key_of(record), shown, split, f"g{number}", "cam-1", "front", 1.0)


def keep_model(wired: Services, name: str, number: int, bias: float, status: ModelStatus) -> None:
    """A model whose int8 and float files are one: what it costs is not the question."""
    model = tiny_model(SIZE, bias=bias)
    names = ", ".join(f'"{each}"' for each in CLASSES)
    about = {"kind": "classification", "class_names": f"[{names}]", "frame_shape": f"[{SIZE}, {SIZE}, 3]"}
    onnx.helper.set_model_props(model, about)
    files = {"int8": put_model_file(wired.store, "model-int8.onnx", model.SerializeToString())}
    measured = {"int8_bytes": 1, "float_bytes": 4, "parity": 1.0}
    released = (name, 1) if status is ModelStatus.RELEASED else (None, None)
    wired.catalog.save_model(ModelRow(name, number, "v", NOW, status, files, measured, *released))


def frame_numbers(wired: Services, sample_ids: list[str]) -> dict[str, int]:
    """Frame numbers by sample."""
    return {sample.sample_id: sample.frame_index for sample in wired.catalog.samples(ids=sample_ids)}


def label(wired: Services, sample_ids: list[str], wrong: bool = False) -> None:
    """Have samples answered with what they show, or with what the released model takes them for: one level darker."""
    numbers = frame_numbers(wired, sample_ids)
    levels = {name: max(number % 3 - wrong, 0) for name, number in numbers.items()}
    rows = [
        AnnotationRow(f"a-{name}", name, "ann", {"class": CLASSES[level]}, False, NOW, NOW)
        for name, level in levels.items()
    ]
    wired.catalog.save_annotations(rows)


def test_people_are_asked_where_the_models_differ(wired: Services) -> None:
    """Dark frames are in no doubt; nothing like what the candidate was taught with is asked; the round knows it all."""
    assert is_open(wired, "new")
    draw = queue_contested(wired, "new")
    seen = frame_numbers(wired, [each.sample_id for each in draw.captures])
    numbers = {sample_id: seen[sample_id] for sample_id in draw.asked}
    assert CAPTURES - 2 * TAUGHT < len(draw.captures) <= CAPTURES - TAUGHT
    assert min(numbers.values()) >= TAUGHT
    assert {number % 3 for number in numbers.values()} == {1, 2}
    assert len(draw.asked) == len(draw.differing) == sum(number % 3 > 0 for number in seen.values())
    rows = wired.catalog.selection(1)
    assert {row.role for row in rows} == {SelectionRole.CONTESTED}
    assert [row.inclusion_probability for row in rows] == pytest.approx([KEPT_WITH] * len(rows))
    assert [row.rank for row in rows] == list(range(1, len(rows) + 1))
    assert len(wired.catalog.tasks(round_number=1)) == len(draw.asked)


def test_asking_again_changes_nothing(wired: Services) -> None:
    """After a crash the same draw goes on, though the pool has grown and the samples are queued by now."""
    draw = queue_contested(wired, "new")
    rows = wired.catalog.selection(1)
    late = replace(wired.catalog.samples(ids=[draw.captures[0].sample_id])[0], sample_id="late", frame_index=1)
    wired.catalog.add_samples([replace(late, status=SampleStatus.POOL)])
    assert is_open(wired, "new")
    assert queue_contested(wired, "new") == draw == fetch_draw(wired, wired.catalog.models()[1])
    assert wired.catalog.selection(1) == rows


@pytest.mark.parametrize("wrong", [False, True])
def test_the_answers_decide(wired: Services, wrong: bool) -> None:
    """The candidate is let through when people say what it says, and refused for good when they say the other thing."""
    candidate = next(model for model in wired.catalog.models() if model.model_id == "new")
    assert "not enough evidence" in decide(wired, candidate).reasons[0]
    draw = queue_contested(wired, "new")
    label(wired, list(draw.asked), wrong)
    decision = decide(wired, candidate)
    assert decision.promote is not wrong
    assert not decision.is_open
    share = len(draw.asked) / len(draw.captures)
    assert decision.difference == pytest.approx(-share if wrong else share)


def test_there_is_no_second_look_where_it_could_not_help(wired: Services) -> None:
    """It can be switched off, a decision that stands is not opened again, and a first release differs from nothing."""
    off = wired.settings.model_copy(update={"gate": wired.settings.gate.model_copy(update={"second_look_labels": 0})})
    assert not is_open(replace(wired, settings=off), "new")
    wired.catalog.update_model("new", gate={"promote": False})
    assert not is_open(wired, "new")
    wired.catalog.update_model("old", status=ModelStatus.REFUSED)
    with pytest.raises(CatalogError, match="no release"):
        queue_contested(wired, "new")
