"""What only a simulation can know: what random labels would have given, by the product's own recipe."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from curate.catalog.models import IMPORTED, DatasetItem, DatasetVersion, Split
from curate.catalog.splits import teaching_items
from curate.compression.export import export_onnx
from curate.compression.quantize import quantize_int8
from curate.errors import TrainingError
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
    its incumbent, the control does so too: from the first release on, it learns once for each round.
    """
    rng = np.random.default_rng([seed, 11])
    # All cores: the field is quiet by now.
    recipe = wired.settings.recipe.model_copy(update={"threads": 2})
    model = _first_model(wired) if recipe.start == "incumbent" else None
    drawn: dict[Split, list[LabelledFrames]] = {split: [] for split in _LEARNED}
    rounds = len(lessons) - 1
    for number, (before, lesson) in enumerate(pairwise(lessons), start=1):
        for split, part in drawn.items():
            part.append(draws.draw(lesson, _size(lesson.dataset, split) - _size(before.dataset, split), rng))
        if recipe.start == "incumbent" or number == rounds:
            imported = {split: load_items(wired, _imported(lesson.dataset, split, recipe)) for split in _LEARNED}
            learned, validation = (join_frames([imported[split], *drawn[split]]) for split in _LEARNED)
            names, at = wired.settings.labels.class_names, wired.settings.round.seed + number
            model = task_of(recipe).train(learned, validation, names, recipe, seed=at, warm_start=model)
    if model is None:
        raise TrainingError("there is no round to train a control for")
    return _compress(model, learned, folder)


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
    return _compress(model, learned, folder)


def _compress(model: TrainedModel, learned: LabelledFrames, folder: Path) -> ModelFiles:
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
