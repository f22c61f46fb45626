"""The judge of the plaza: AP50 on the clip's last quarter, by day and at dusk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from curate.catalog.boxes import boxes_label, scale_boxes
from curate.catalog.images import decode_frames
from curate.compression.inference import OnnxModel
from curate.training.data import LabelledFrames
from flows._wiring import Services
from flows.sandbox.heldout import HeldOutScore
from flows.sandbox.journal import Sighting
from flows.sandbox.plaza_clip import HEIGHT_PX, WIDTH_PX, iterate_frames
from flows.sandbox.plaza_measure import CONDITIONS, load_test_frames, match, quality
from flows.sandbox.plaza_people import Carefulness, annotate, true_boxes
from flows.sandbox.plaza_scene import FIELD_FRAMES, Condition, Scene, encode, show
from flows.sandbox.plaza_truth import TruthBox
from flows.sandbox.worlds.base import Lesson, ModelFiles

Truth = Mapping[int, Sequence[TruthBox]]


class PlazaExam:
    """Scores models on the same held-out frames; both cameras look at the same plaza."""

    def __init__(
        self,
        wired: Services,
        clip: Path,
        truth: Truth,
        seed: int,
        *,
        cells: Mapping[str, Condition],
        control_rounds: frozenset[int],
        sightings: Sequence[Sighting],
    ) -> None:
        """`cells` maps `camera/condition` to the condition its frames are shown in."""
        self._wired = wired
        self._clip = clip
        self._truth = truth
        self._seed = seed
        self._cells = cells
        self._control_rounds = control_rounds
        self._sightings = sightings
        self._frames = {condition: load_test_frames(clip, truth, condition, seed) for condition in CONDITIONS}

    def score(self, model: ModelFiles) -> HeldOutScore:
        """Return AP50 in every cell; `more` holds all measures of both files by condition."""
        more = {}
        for name, path in (("int8", model.int8), ("float", model.original)):
            runs = OnnxModel(path, threads=2)
            more[name] = {
                condition: quality(match(runs, frames), frames.blocks) for condition, frames in self._frames.items()
            }
        cells = {cell: more["int8"][condition]["ap50"]["value"] for cell, condition in self._cells.items()}
        return HeldOutScore(cells, more)

    def draws_for(self, round_number: int) -> RandomFrames | None:
        """Return a fresh draw for the rounds that have a control: each costs a training."""
        if round_number not in self._control_rounds:
            return None
        spec = self._wired.settings.labels
        return RandomFrames(self._clip, self._truth, self._seed, self._sightings, (spec.height, spec.width))


class RandomFrames:
    """Frames at random among all that the cameras showed, labelled with the annotators' errors.

    The people's journal is a random share of the stream, so a frame drawn from it is a random frame of the field.
    """

    def __init__(
        self, clip: Path, truth: Truth, seed: int, sightings: Sequence[Sighting], size: tuple[int, int]
    ) -> None:
        """`size` is the model's height and width."""
        self._clip = clip
        self._truth = truth
        self._seed = seed
        self._seen = [(s.at, Scene.parse(s.scene)) for s in sightings if s.scene is not None]
        self._size = size
        self._used: set[Scene] = set()

    def draw(self, lesson: Lesson, count: int, rng: np.random.Generator) -> LabelledFrames:
        """Draw among the scenes that had been shown when the round chose."""
        shown = {scene for at, scene in self._seen if lesson.selected_at is not None and at <= lesson.selected_at}
        free = sorted(shown - self._used)
        chosen = [free[i] for i in rng.permutation(len(free))[:count]]
        self._used.update(chosen)
        first, last = FIELD_FRAMES
        wanted = {scene.frame for scene in chosen}
        frames = {n: f for n, f in enumerate(iterate_frames(self._clip, first, last), start=first) if n in wanted}
        pictures = [(str(s), encode(show(frames[s.frame], s.frame, s.condition, self._seed))) for s in chosen]
        height, width = self._size
        labels = []
        for scene in chosen:
            drawn = annotate(true_boxes(self._truth[scene.frame]), Carefulness(), rng)
            labels.append(boxes_label(scale_boxes(drawn, width / WIDTH_PX, height / HEIGHT_PX)))
        return LabelledFrames(decode_frames(pictures, height, width).images, tuple(labels))
