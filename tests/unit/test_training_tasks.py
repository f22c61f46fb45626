"""The registry of what can be trained, and a user's own detector by import path."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from curate.answers.boxes import pairwise_iou
from curate.compression.export import export_onnx
from curate.compression.inference import OnnxModel
from curate.errors import ConfigError, TrainingError
from curate.training.data import LabelledFrames
from curate.training.detector_recipe import DetectorRecipe
from curate.training.recipe import NetworkShape, TrainingRecipe
from curate.training.tasks import TASKS, TrainedModel, TrainingTask, task_of
from tests.unit.detector_world import NAMES, SHORT, blocks

GUIDE = Path(__file__).parents[2] / "docs" / "own-detector.md"
CLASSIFIER = TrainingRecipe(
    network=NetworkShape(stem_width=8, widths=(8, 16), depths=(1, 1), embedding_dim=8),
    epochs=1,
    steps_per_epoch=2,
    batch_size=4,
    threads=1,
)


def shades(count: int) -> LabelledFrames:
    """Frames that are bright or dark as a whole."""
    levels = np.array([230, 20], np.uint8)[np.arange(count) % 2]
    images = np.broadcast_to(levels[:, None, None, None], (count, 16, 16, 3)).copy()
    return LabelledFrames(images, tuple({"class": NAMES[index % 2]} for index in range(count)))


@pytest.fixture
def guide_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The guide's example as a module that can be imported; its import path."""
    code = re.search(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert code is not None
    (tmp_path / "plaza_spots.py").write_text(code[1])
    (tmp_path / "broken_spots.py").write_text("import a_library_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "plaza_spots", raising=False)
    return "plaza_spots:SpotTask"


@pytest.mark.parametrize(
    ("recipe", "frames", "none"),
    [(CLASSIFIER, shades(4), LabelledFrames.empty(16, 16)), (SHORT, blocks(4, 0), LabelledFrames.empty(64, 64))],
    ids=["classification", "detection"],
)
def test_every_kind_keeps_the_same_promises(
    recipe: TrainingRecipe | DetectorRecipe, frames: LabelledFrames, none: LabelledFrames, tmp_path: Path
) -> None:
    """Whatever the kind: it trains from frames and labels, is a TrainedModel of that kind, and survives the disk."""
    task = task_of(recipe)
    assert isinstance(task, TrainingTask)
    trained = task.train(frames, none, NAMES, recipe, seed=0)
    assert isinstance(trained, TrainedModel)
    assert trained.kind == recipe.kind
    assert trained.class_names == NAMES
    assert trained.frame_shape == frames.images.shape[1:]
    trained.persist(tmp_path / "model")
    assert task.load(tmp_path / "model").frame_shape == trained.frame_shape
    assert task.train(frames, none, NAMES, recipe, seed=0, warm_start=trained).class_names == NAMES


def test_models_of_one_kind_are_no_files_of_another(tmp_path: Path) -> None:
    """A classifier's file is refused by detection, and its recipe too."""
    trained = TASKS["classification"].train(shades(4), LabelledFrames.empty(16, 16), NAMES, CLASSIFIER, seed=0)
    trained.persist(tmp_path / "model")
    with pytest.raises(TrainingError, match="not of a Gleaner detector"):
        TASKS["detection"].load(tmp_path / "model")
    with pytest.raises(TrainingError, match="DetectorRecipe"):
        TASKS["detection"].train(blocks(2, 0), LabelledFrames.empty(64, 64), NAMES, CLASSIFIER, seed=0)


def test_labels_of_another_class_are_refused() -> None:
    """A classification label that names no known class raises TrainingError with that name."""
    with pytest.raises(TrainingError, match="dark"):
        TASKS["classification"].train(shades(4), LabelledFrames.empty(16, 16), ("bright", "x"), CLASSIFIER, seed=0)


def test_the_guides_detector_works_as_written(guide_task: str, tmp_path: Path) -> None:
    """The worked example learns bright blocks, is kept and read back, and exports to a file that finds them."""
    recipe = DetectorRecipe(
        plugin=guide_task, plugin_options={"width": 16}, epochs=2, steps_per_epoch=60, learning_rate=1e-2, threads=1
    )
    task = task_of(recipe)
    frames = blocks(12, 0)
    trained = task.train(frames, LabelledFrames.empty(64, 64), NAMES, recipe, seed=0)
    assert isinstance(trained, TrainedModel)
    trained.persist(tmp_path / "model")
    export_onnx(task.load(tmp_path / "model"), tmp_path / "model.onnx")
    answers = OnnxModel(tmp_path / "model.onnx").run(frames.images)
    assert answers["boxes"].shape == (12, 32, 4)
    best = answers["probabilities"][:, :, 0].argmax(axis=1)
    found = [
        float(pairwise_iou(answers["boxes"][index, best[index]][None], corners(frames, index))[0, 0]) > 0.3
        for index in range(12)
        if frames.labels[index]["boxes"]
    ]
    assert sum(found) >= 7


def corners(frames: LabelledFrames, index: int) -> np.ndarray:
    """Corners [1, 4] of a frame's bright block."""
    bright = next(box for box in frames.labels[index]["boxes"] if box["class"] == "bright")
    return np.array([[bright[side] for side in ("x_min", "y_min", "x_max", "y_max")]], np.float32)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_package_at_all:Task", "cannot be imported"),
        ("broken_spots:Task", "a_library_nobody_has"),
        ("plaza_spots:Missing", "has no Missing"),
        ("plaza_spots:SpotNetwork", "cannot be made"),
        ("plaza_spots:STRIDE", "no methods"),
    ],
)
def test_a_wrong_import_path_says_what_to_do(guide_task: str, path: str, message: str) -> None:
    """A module that is missing or broken, a name that is not there or is no task: ConfigError, with a hint."""
    with pytest.raises(ConfigError, match=message) as caught:
        task_of(DetectorRecipe(plugin=path))
    assert caught.value.hint


@pytest.mark.parametrize("path", ["plaza_spots", "plaza spots:Task", "../spots:Task", ":Task", "spots:"])
def test_what_is_no_import_path_is_refused_by_the_configuration(path: str) -> None:
    """A plug-in is `package.module:Name`, nothing else."""
    with pytest.raises(ValidationError):
        DetectorRecipe(plugin=path)
