"""The judge of the garments: accuracy on frames of garments that no camera ever showed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from curate.catalog.models import Sample
from curate.compression.inference import OnnxModel
from curate.training.data import LabelledFrames
from flows._frames import fetch_frames
from flows._wiring import Services
from flows.sandbox.fashion_mnist import FashionMnist
from flows.sandbox.heldout import HeldOutScore
from flows.sandbox.world import held_out
from flows.sandbox.world_schedule import Condition, Schedule, WorldConfig
from flows.sandbox.worlds.base import Lesson, ModelFiles

FRAMES_PER_CELL = 1000
LABEL_NOISE = 0.02


class FashionExam:
    """Scores models on the same held-out frames."""

    def __init__(self, wired: Services, world: WorldConfig, data: FashionMnist) -> None:
        self._wired = wired
        self._world = world
        conditions: list[tuple[str, Condition]] = [(camera.camera_id, "day") for camera in world.cameras]
        conditions.append((world.drift_camera, "dusk"))
        self._cells = {
            f"{camera}/{condition}": held_out(world, camera, condition, FRAMES_PER_CELL, data)
            for camera, condition in conditions
        }

    def score(self, model: ModelFiles) -> HeldOutScore:
        """Return the model's accuracy in every cell."""
        runs = OnnxModel(model.int8, threads=2)
        return HeldOutScore(
            {
                cell: float((runs.run(frames.images)["probabilities"].argmax(axis=1) == frames.labels).mean())
                for cell, frames in self._cells.items()
            }
        )

    def draws_for(self, round_number: int) -> RandomUploads:  # noqa: ARG002 (every round has a control)
        """Return a fresh draw."""
        return RandomUploads(self._wired, self._world)


class RandomUploads:
    """Uploads at random, labelled with the annotators' share of errors."""

    def __init__(self, wired: Services, world: WorldConfig) -> None:
        self._wired = wired
        self._schedules = {camera.camera_id: Schedule(world, camera.camera_id) for camera in world.cameras}
        self._used: set[str] = set()

    def draw(self, lesson: Lesson, count: int, rng: np.random.Generator) -> LabelledFrames:
        """Draw among what had been uploaded when the round chose."""
        free = [sample for sample in lesson.uploads if sample.sample_id not in self._used]
        chosen = [free[i] for i in rng.permutation(len(free))[:count]]
        self._used.update(sample.sample_id for sample in chosen)
        return LabelledFrames(fetch_frames(self._wired, chosen).images, tuple(self._label(chosen, rng)))

    def _label(self, samples: Sequence[Sample], rng: np.random.Generator) -> list[Mapping[str, str]]:
        names = self._wired.settings.labels.class_names
        truth = [self._schedules[s.camera_id].burst_at(s.frame_index).label for s in samples]
        labels = np.array(truth, np.int64)
        wrong = rng.random(len(labels)) < LABEL_NOISE
        labels[wrong] = (labels[wrong] + rng.integers(1, len(names), wrong.sum())) % len(names)
        return [{"class": names[label]} for label in labels.tolist()]
