"""What only a simulation can know: what random labels would have given, by the product's own recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from curate.catalog.models import IMPORTED, DatasetItem, DatasetVersion, Split
from curate.catalog.splits import teaching_items
from curate.compression.export import export_onnx
from curate.compression.quantize import quantize_int8
from curate.training.data import LabelledFrames
from curate.training.tasks import Recipe, TrainedModel, task_of
from flows._wiring import Services
from flows.sandbox.worlds.base import Lesson, ModelFiles, RandomDraw
from flows.train_candidate import fetch_trained, load_items

_LEARNED = (Split.TRAIN, Split.VALIDATION)
_CALIBRATION_PIXELS = 2**22
_MOST_CALIBRATION_FRAMES = 256


def train_control(wired: Services, lessons: Sequence[Lesson], draws: RandomDraw, seed: int, folder: Path) -> ModelFiles:
    """The same recipe on equally many labels of frames drawn at random; the files go to `folder`.

    The control keeps the imported labels as long as the product does and, round by round, replaces what the product
    learned from by as many frames at random, labelled with the same share of errors. Where the product goes on from
    its incumbent, the control goes on from the first release, for as many steps as the product took since.
    """
    rng = np.random.default_rng([seed, 11])
    recipe = wired.settings.recipe
    newest = lessons[-1].dataset
    parts = {split: [load_items(wired, _imported(newest, split, recipe))] for split in _LEARNED}
    for lesson, before in zip(lessons[1:], lessons[:-1], strict=True):
        for split, part in parts.items():
            part.append(draws.draw(lesson, _size(lesson.dataset, split) - _size(before.dataset, split), rng))
    learned, validation = (join_frames(parts[split]) for split in _LEARNED)
    rounds = len(lessons) - 1
    start = _first_model(wired) if recipe.start == "incumbent" else None
    epochs = recipe.epochs if start is None else recipe.epochs * rounds
    # All cores: the field is quiet by now.
    recipe = recipe.model_copy(update={"threads": 2, "epochs": epochs})
    names = wired.settings.labels.class_names
    return train_files(recipe, names, learned, validation, wired.settings.round.seed + rounds, folder, start)


def _first_model(wired: Services) -> TrainedModel | None:
    first = next((model for model in wired.catalog.models() if model.round_number == 0), None)
    return None if first is None else fetch_trained(wired, first)


def train_files(
    recipe: Recipe,
    class_names: tuple[str, ...],
    learned: LabelledFrames,
    validation: LabelledFrames,
    seed: int,
    folder: Path,
    warm_start: TrainedModel | None = None,
) -> ModelFiles:
    """Train and compress as the flows do."""
    model = task_of(recipe).train(learned, validation, class_names, recipe, seed=seed, warm_start=warm_start)
    files = ModelFiles(int8=folder / "int8.onnx", original=folder / "float.onnx")
    export_onnx(model, files.original)
    _, height, width, _ = learned.images.shape
    count = min(_MOST_CALIBRATION_FRAMES, max(1, _CALIBRATION_PIXELS // (height * width)))
    quantize_int8(files.original, learned.images[-count:], files.int8)
    return files


def _imported(dataset: DatasetVersion, split: Split, recipe: Recipe) -> list[DatasetItem]:
    items = teaching_items(dataset, split, recipe.imported_until)
    return [item for item in items if item.device_id == IMPORTED]


def _size(dataset: DatasetVersion, split: Split) -> int:
    return sum(item.split is split for item in dataset.items)


def join_frames(parts: Sequence[LabelledFrames]) -> LabelledFrames:
    """Return all of them as one."""
    images = np.concatenate([part.images for part in parts])
    return LabelledFrames(images, tuple(label for part in parts for label in part.labels))
