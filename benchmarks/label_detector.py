"""The teacher of the detection race: the product's own detector, trained on the plaza's frames. Loads torch."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from curate.answers.base import Answer
from curate.answers.registry import ANSWERS
from curate.catalog.boxes import boxes_label, scale_boxes
from curate.catalog.images import decode_frames
from curate.compression.inference import make_spec
from curate.metrics.detection import PredictedBoxes, match_frames
from curate.metrics.kinds import boxes_of, predicted_boxes
from curate.selection.views import view_frames
from curate.training.data import LabelledFrames
from curate.training.detector import TrainedDetector, load_detector
from curate.training.detector_recipe import DetectorRecipe
from curate.training.detector_trainer import train_detector
from flows.sandbox.plaza_clip import HEIGHT_PX, WIDTH_PX, find_clip, iterate_frames, read_frames
from flows.sandbox.plaza_measure import CONDITIONS, TestFrames, load_test_frames
from flows.sandbox.plaza_people import PERSON, Carefulness, annotate, true_boxes
from flows.sandbox.plaza_scene import FIELD_FRAMES, SEED_FRAMES, Condition, Scene, encode, show
from flows.sandbox.plaza_seed import make_seed_frames
from flows.sandbox.plaza_truth import load_truth
from flows.sandbox.worlds.plaza import CLIP_FOLDER, SEED_PEOPLE
from label_plaza import Look, PlazaPool
from label_worlds import Rows

Images = NDArray[np.uint8]

HEIGHT, WIDTH = 192, 256
"""Two thirds of the demo's sides: a step of training costs a quarter."""
SEED_LABELS: Final = 100
"""Self-made frames that the first detector is trained on, as in the demo."""
FIRST = DetectorRecipe(epochs=2, steps_per_epoch=40, threads=1)
"""How the first detector is trained."""
ROUND = DetectorRecipe(epochs=4, steps_per_epoch=40, batch_size=4, threads=1)
"""How every later one is: with 60 steps these limit the model, and not its labels."""
EXAM_STEP = 6
"""Neighbouring frames tell the same: every so-many-th is looked at."""


@dataclass(frozen=True, eq=False)
class Exam:
    """Frames at the detector's size in one light, with their truth in pixels of the clip."""

    images: Images
    frames: TestFrames


class PlazaModel:
    """A detector, with the pool that it may be asked about."""

    def __init__(self, detector: TrainedDetector, images: Images, exams: Mapping[Condition, Exam]) -> None:
        self.detector = detector
        self._images, self._exams = images, exams
        self._spec = make_spec(
            detector.kind, detector.class_names, detector.frame_shape, detector.metadata.network.embedding_dim
        )

    def look(self) -> Look:
        """See every capture of the pool as the product's selection does; asked again it costs nothing."""
        return self._look

    @cached_property
    def _look(self) -> Look:
        answers = self._answer(self._images)
        frames = np.array([answer.embedding for answer in answers], np.float32)
        said = [answer.to_prediction("p", "r") for answer in answers]
        views = view_frames("detection", said, frames, [(HEIGHT_PX, WIDTH_PX)] * len(answers))
        if views.uncertainty is None:
            raise TypeError("a detector's view has an uncertainty")
        return Look(views.embeddings, frames, views.uncertainty)

    def judge(self) -> float:
        """Return the mean AP50 by day and at dusk on the exam's frames."""
        return self._ap50

    @cached_property
    def _ap50(self) -> float:
        return float(np.mean([self._judge(exam) for exam in self._exams.values()]))

    def _judge(self, exam: Exam) -> float:
        found = [_predicted(answer) for answer in self._answer(exam.images)]
        return match_frames(found, exam.frames.truth, 1).measuring("AP50").value()

    def _answer(self, images: Images) -> list[Answer]:
        """Read every frame by itself, boxes in pixels of the clip."""
        kind = ANSWERS[self.detector.kind]
        told = self.detector.predict(images)
        outputs = (told.boxes, told.probabilities, told.box_embeddings, told.embedding)
        return [
            kind.reader(self._spec).read(dict(zip(kind.output_names, rows, strict=True)), HEIGHT_PX, WIDTH_PX)
            for rows in zip(*outputs, strict=True)
        ]


def _predicted(answer: Answer) -> PredictedBoxes:
    return predicted_boxes(boxes_of(answer.to_prediction("p", "r")))


class PlazaTeacher:
    """Trains detectors for one seed: its first one, its annotators' boxes, its pictures."""

    def __init__(self, pool: PlazaPool, cache_dir: Path, seed: int) -> None:
        """Read the clip, and train the first detector where `cache_dir` has none of this seed and recipe."""
        clip, self._seed = find_clip(cache_dir / CLIP_FOLDER), seed
        self._labelled = _annotated(pool, clip, seed)
        self._exams = {condition: _load_exam(clip, condition, seed) for condition in CONDITIONS}
        self._first = self._model(_first_detector(clip, cache_dir, seed))

    @property
    def first(self) -> PlazaModel:
        """The detector that knows self-made frames only."""
        return self._first

    def teach(self, rows: Rows) -> PlazaModel:
        """Train the first detector on with the boxes of these captures; none of them is kept aside."""
        frames = self._labelled.subset(rows.tolist())
        return self._model(
            train_detector(
                frames,
                LabelledFrames.empty(HEIGHT, WIDTH),
                (PERSON,),
                ROUND,
                seed=self._seed * 1000 + len(rows),
                warm_start=self._first.detector,
            )
        )

    def _model(self, detector: TrainedDetector) -> PlazaModel:
        return PlazaModel(detector, self._labelled.images, self._exams)


def _annotated(pool: PlazaPool, clip: Path, seed: int) -> LabelledFrames:
    """Return every capture with the boxes that an annotator draws, who errs alike whoever asks."""
    pictures, truth, labels = _pictures(clip, set(pool.scenes), seed), load_truth(), []
    for row, scene in enumerate(pool.scenes):
        drawn = annotate(true_boxes(truth[scene.frame]), Carefulness(), np.random.default_rng([seed, row]))
        labels.append(boxes_label(scale_boxes(drawn, WIDTH / WIDTH_PX, HEIGHT / HEIGHT_PX)))
    encoded = ((str(scene), pictures[scene]) for scene in pool.scenes)
    return LabelledFrames(decode_frames(encoded, HEIGHT, WIDTH).images, tuple(labels))


def _pictures(clip: Path, scenes: Collection[Scene], seed: int) -> dict[Scene, bytes]:
    """Return the JPEG of each scene; one frame of the clip is in memory at a time."""
    first, last = FIELD_FRAMES
    seen = {}
    for number, frame in enumerate(iterate_frames(clip, first, last), start=first):
        for scene in (Scene(number, condition) for condition in CONDITIONS):
            if scene in scenes:
                seen[scene] = encode(show(frame, number, scene.condition, seed))
    return seen


def _load_exam(clip: Path, condition: Condition, seed: int) -> Exam:
    frames = load_test_frames(clip, load_truth(), condition, seed, EXAM_STEP)
    return Exam(decode_frames(frames.pictures, HEIGHT, WIDTH).images, frames)


def _first_detector(clip: Path, cache_dir: Path, seed: int) -> TrainedDetector:
    """Return the detector of self-made frames, from the cache where it was trained before."""
    made_by = f"{FIRST.model_dump_json()} {SEED_LABELS} {HEIGHT}x{WIDTH}"
    path = cache_dir / f"plaza-first-{hashlib.sha256(made_by.encode()).hexdigest()[:12]}-{seed}.safetensors"
    if path.exists():
        return load_detector(path)
    made = make_seed_frames(read_frames(clip, *SEED_FRAMES), SEED_LABELS, seed, HEIGHT, WIDTH, most_people=SEED_PEOPLE)
    trained = train_detector(made, LabelledFrames.empty(HEIGHT, WIDTH), (PERSON,), FIRST, seed=seed)
    trained.persist(path)
    return trained
