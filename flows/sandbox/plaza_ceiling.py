"""Measure once what the plaza's detector reaches when it is given the truth of every field frame, by day and at dusk.

    python -m flows.sandbox.plaza_ceiling .gleaner/cache

writes `plaza_ceiling.json` beside this file: the figure that the demo's report measures gaps against.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from curate.catalog.boxes import boxes_label, scale_boxes
from curate.catalog.images import decode_frames
from curate.catalog.labels import LabelSpec, load_label_spec
from curate.compression.inference import OnnxModel
from curate.training.data import LabelledFrames
from curate.training.detector_recipe import DetectorRecipe
from curate.training.tasks import task_of
from flows.sandbox.evaluation import join_frames, train_files
from flows.sandbox.plaza_clip import HEIGHT_PX, WIDTH_PX, find_clip, iterate_frames, read_frames
from flows.sandbox.plaza_conclusion import CEILING_FILE
from flows.sandbox.plaza_measure import CONDITIONS, load_test_frames, match, quality
from flows.sandbox.plaza_people import true_boxes
from flows.sandbox.plaza_scene import FIELD_FRAMES, SEED_FRAMES, encode, show
from flows.sandbox.plaza_seed import make_seed_frames
from flows.sandbox.plaza_truth import load_truth
from flows.sandbox.worlds.plaza import CLIP_FOLDER, LABELS_FILE, ROUND_RECIPE, SEED_PEOPLE

_SEED = 0
_SEED_FRAMES = 100
_SEED_STEP = 7
_VALIDATION_STEP = 24
"""Every so many frames one calibrates the scores and is not learned from."""


def main(argv: list[str]) -> int:
    """Train, compress and measure; takes minutes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cache", type=Path, help="folder for what has to be fetched, as of the demo")
    parser.add_argument("--epochs", type=int, default=15, help="of the second training; more frames take more steps")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    recipe = DetectorRecipe.model_validate({**ROUND_RECIPE, "threads": asked.threads})
    found = measure_ceiling(find_clip(asked.cache / CLIP_FOLDER), load_label_spec(LABELS_FILE), recipe, asked.epochs)
    target = Path(__file__).with_name(CEILING_FILE)
    target.write_text(json.dumps(found, indent=1) + "\n")
    print({light: each["ap50"]["value"] for light, each in found["quality"].items()})
    return 0


def measure_ceiling(clip: Path, labels: LabelSpec, recipe: DetectorRecipe, epochs: int) -> dict[str, Any]:
    """Return the measures of the int8 file by light, and the settings they were reached with.

    As in the demo: a first model from self-made frames, then on from there, with the truth of the whole field.
    """
    first = read_frames(clip, *SEED_FRAMES)
    made = make_seed_frames(first, _SEED_FRAMES, _SEED, labels.height, labels.width, most_people=SEED_PEOPLE)
    task = task_of(recipe)
    start = task.train(*_divide(made, _SEED_STEP), labels.class_names, recipe, seed=_SEED)
    learned, validation = _divide(join_frames(list(field_frames(clip, labels))), _VALIDATION_STEP)
    longer = recipe.model_copy(update={"epochs": epochs})
    with tempfile.TemporaryDirectory() as folder:
        files = train_files(longer, labels.class_names, learned, validation, _SEED, Path(folder), start)
        model = OnnxModel(files.int8, threads=recipe.threads)
        measured = {}
        for condition in CONDITIONS:
            frames = load_test_frames(clip, load_truth(), condition, _SEED)
            measured[condition] = quality(match(model, frames), frames.blocks)
    settings = {"frames": len(learned), "seed": _SEED, "recipe": longer.model_dump(mode="json")}
    return {"quality": measured, "settings": settings}


def _divide(frames: LabelledFrames, step: int) -> tuple[LabelledFrames, LabelledFrames]:
    """Every so many frames one is kept aside."""
    kept = np.arange(len(frames)) % step == 0
    return frames.subset(np.flatnonzero(~kept).tolist()), frames.subset(np.flatnonzero(kept).tolist())


def field_frames(clip: Path, labels: LabelSpec) -> Iterator[LabelledFrames]:
    """Yield every frame of the field in every light, with its truth, at the model's size."""
    truth, (first, last) = load_truth(), FIELD_FRAMES
    scale = labels.width / WIDTH_PX, labels.height / HEIGHT_PX
    for number, frame in enumerate(iterate_frames(clip, first, last), start=first):
        label = boxes_label(scale_boxes(true_boxes(truth[number]), *scale))
        pictures = [(condition, encode(show(frame, number, condition, _SEED))) for condition in CONDITIONS]
        images = decode_frames(pictures, labels.height, labels.width).images
        yield LabelledFrames(images, (label,) * len(images))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
