"""Scoring a demo's models and training its controls, with the real trainer, exporter and runtime on a tiny world."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from curate.catalog.labels import load_label_spec
from curate.catalog.models import Split
from curate.compression.export import export_onnx
from curate.compression.quantize import quantize_int8
from curate.training.architectures import NetworkShape
from curate.training.recipe import TrainingRecipe
from curate.training.tasks import task_of
from flows._blobs import put_model_file
from flows.sandbox import fashion_exam
from flows.sandbox.fashion_exam import FashionExam
from flows.sandbox.report_scores import score_models
from flows.sandbox.world_schedule import WorldConfig
from flows.train_candidate import load_split
from tests.demo_leftovers import LABELS_FILE, Leftovers, placeholder_garments

WORLD = WorldConfig(reserved_images=20)
RECIPE = TrainingRecipe(
    network=NetworkShape(stem_width=8, widths=(8, 16), depths=(1, 1), embedding_dim=8),
    epochs=2,
    steps_per_epoch=10,
    batch_size=16,
    threads=1,
)


def test_every_model_and_a_control_a_round_are_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each model gets its own accuracy in every cell, round 0's control is its model, later ones are trained apart."""
    monkeypatch.setattr(fashion_exam, "FRAMES_PER_CELL", 60)
    data = placeholder_garments(20)
    left = Leftovers(tmp_path, data, WORLD, window_frames=150, fps=10.0)
    facts = left.facts()
    settings = facts.wired.settings.model_copy(update={"training": RECIPE, "cache_dir": tmp_path / "cache"})
    wired = replace(facts.wired, settings=settings)
    dataset = left.catalog.latest_dataset_version()
    assert dataset is not None
    learned = load_split(wired, dataset, Split.TRAIN)
    validation = load_split(wired, dataset, Split.VALIDATION)
    model = task_of(RECIPE).train(learned, validation, load_label_spec(LABELS_FILE).class_names, RECIPE, seed=0)
    export_onnx(model, tmp_path / "float.onnx")
    quantize_int8(tmp_path / "float.onnx", learned.images, tmp_path / "int8.onnx")
    key = put_model_file(left.store, "model-int8.onnx", (tmp_path / "int8.onnx").read_bytes())
    for row in left.catalog.models():
        left.catalog.update_model(row.model_id, artifacts={"int8": key, "float": key})
    steps: list[str] = []
    scores = score_models(wired, FashionExam(wired, WORLD, data), 0, steps.append)
    cells = {"cam-1/day", "cam-2/day", "cam-3/day", "cam-3/dusk"}
    assert set(scores.models) == {"m0", "m1", "m2"}
    assert all(set(each.cells) == cells for each in [*scores.models.values(), *scores.controls.values()])
    assert scores.controls[0] == scores.models["m0"]
    assert set(scores.controls) == {0, 1, 2}
    assert sum(step.startswith("training") for step in steps) == 2
    left.catalog.close()
