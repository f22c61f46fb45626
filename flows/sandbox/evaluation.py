"""What only a simulation can know: accuracy on held-out frames, and what random labels would have given."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from curate.catalog.images import decode_images
from curate.catalog.models import DatasetItem, DatasetVersion, Sample, Split
from curate.compression.export import export_onnx
from curate.compression.inference import OnnxClassifier
from curate.compression.quantize import quantize_int8
from curate.training.data import LabelledImages
from curate.training.trainer import train_classifier
from flows._blobs import fetch_images
from flows._wiring import Services
from flows.import_labels import IMPORTED
from flows.sandbox.fashion_mnist import FashionMnist
from flows.sandbox.heldout import HeldOutAccuracy
from flows.sandbox.world import held_out
from flows.sandbox.world_schedule import Condition, Schedule, WorldConfig
from flows.train_candidate import load_items

FRAMES_PER_CELL = 1000
LABEL_NOISE = 0.02


class Judge:
    """Scores models on the same held-out frames."""

    def __init__(self, world: WorldConfig, data: FashionMnist) -> None:
        conditions: list[tuple[str, Condition]] = [(camera.camera_id, "day") for camera in world.cameras]
        conditions.append((world.drift_camera, "dusk"))
        self._cells = {
            f"{camera}/{condition}": held_out(world, camera, condition, FRAMES_PER_CELL, data)
            for camera, condition in conditions
        }

    def score(self, model: OnnxClassifier) -> HeldOutAccuracy:
        """Return the model's accuracy in every cell."""
        return HeldOutAccuracy(
            {
                cell: float((model.predict(frames.images).probabilities.argmax(axis=1) == frames.labels).mean())
                for cell, frames in self._cells.items()
            }
        )


def train_control(
    wired: Services,
    world: WorldConfig,
    datasets: Sequence[tuple[DatasetVersion, Sequence[Sample]]],
    seed: int,
    judge: Judge,
) -> HeldOutAccuracy:
    """The same recipe on equally many labels of uploads drawn at random.

    `datasets` holds, for each round so far, the product's dataset version and what had been uploaded when the round
    chose. The control keeps the imported labels and, round by round, replaces what the product learned from by as
    many uploads at random, labelled with the same share of errors.
    """
    rng = np.random.default_rng([seed, 11])
    truth = _truth_of(world)
    first = datasets[0][0]
    parts = {split: [load_items(wired, _imported(first, split))] for split in (Split.TRAIN, Split.VALIDATION)}
    used: set[str] = set()
    for (dataset, uploads), previous in zip(datasets[1:], datasets[:-1], strict=True):
        for split, learned in parts.items():
            wanted = _size(dataset, split) - _size(previous[0], split)
            free = [sample for sample in uploads if sample.sample_id not in used]
            chosen = [free[i] for i in rng.permutation(len(free))[:wanted]]
            used.update(sample.sample_id for sample in chosen)
            learned.append(_label(wired, chosen, truth, rng))
    train, validation = (_join(parts[split]) for split in (Split.TRAIN, Split.VALIDATION))
    names = wired.settings.labels.class_names
    recipe = wired.settings.training.model_copy(update={"threads": 2})  # by now nothing else needs the cores
    model = train_classifier(train, validation, names, recipe, seed=wired.settings.round.seed + len(datasets) - 1)
    with tempfile.TemporaryDirectory() as folder:
        float_path, int8_path = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        export_onnx(model, float_path)
        quantize_int8(float_path, train.images[-256:], int8_path)
        return judge.score(OnnxClassifier(int8_path, threads=2))


def _truth_of(world: WorldConfig) -> Callable[[Sample], int]:
    schedules = {camera.camera_id: Schedule(world, camera.camera_id) for camera in world.cameras}
    return lambda sample: schedules[sample.camera_id].burst_at(sample.frame_index).label


def _imported(dataset: DatasetVersion, split: Split) -> list[DatasetItem]:
    return [item for item in dataset.items if item.split is split and item.device_id == IMPORTED]


def _size(dataset: DatasetVersion, split: Split) -> int:
    return sum(item.split is split for item in dataset.items)


def _label(
    wired: Services, samples: Sequence[Sample], truth: Callable[[Sample], int], rng: np.random.Generator
) -> LabelledImages:
    spec = wired.settings.labels
    encoded = fetch_images(wired.store, [sample.image_key for sample in samples])
    ids = (sample.sample_id for sample in samples)
    labels = np.array([truth(sample) for sample in samples], np.int64)
    wrong = rng.random(len(labels)) < LABEL_NOISE
    labels[wrong] = (labels[wrong] + rng.integers(1, len(spec.class_names), wrong.sum())) % len(spec.class_names)
    return LabelledImages(decode_images(zip(ids, encoded, strict=True), spec.height, spec.width), labels)


def _join(parts: Sequence[LabelledImages]) -> LabelledImages:
    images: NDArray[np.uint8] = np.concatenate([part.images for part in parts])
    return LabelledImages(images, np.concatenate([part.labels for part in parts]))
