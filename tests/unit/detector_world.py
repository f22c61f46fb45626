"""A tiny world for detectors: bright and dark blocks on noise, with exact boxes."""

from __future__ import annotations

from typing import Any

import numpy as np

from curate.training.data import LabelledFrames
from curate.training.detector_recipe import DetectorAugmentation, DetectorRecipe, DetectorShape

NAMES = ("bright", "dark")
SIDE = 64
GENTLE = DetectorAugmentation(shift=0.05, scale=0.1, light=0.1, dusk_probability=0.0, noise=0.02, blur=0.2)
SHAPE = DetectorShape(stride=8, coarsest_stride=16, neck_width=16, box_embedding_dim=8, embedding_dim=12, candidates=16)
RECIPE = DetectorRecipe(
    network=SHAPE,
    augmentation=GENTLE,
    epochs=2,
    steps_per_epoch=45,
    batch_size=6,
    learning_rate=1e-2,
    crop=1.0,
    threads=1,
)
SHORT = RECIPE.model_copy(update={"epochs": 1, "steps_per_epoch": 1, "batch_size": 2})


def blocks(count: int, seed: int) -> LabelledFrames:
    """Frames 64x64 with a block of each class, or none in every fourth."""
    rng = np.random.default_rng(seed)
    images = rng.normal(120, 8, (count, SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
    labels = []
    for index in range(count):
        boxes: list[dict[str, Any]] = []
        for name, level, left in (("bright", 240, 0), ("dark", 10, SIDE // 2)):
            if index % 4 != 3:
                wide, tall = int(rng.integers(12, 20)), int(rng.integers(14, 28))
                x, y = left + int(rng.integers(0, SIDE // 2 - wide)), int(rng.integers(0, SIDE - tall))
                images[index, y : y + tall, x : x + wide] = level
                boxes.append({"class": name, "x_min": x, "y_min": y, "x_max": x + wide, "y_max": y + tall})
        labels.append({"boxes": boxes})
    return LabelledFrames(images, tuple(labels))
