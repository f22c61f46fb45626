"""A catalog of captures that a released tiny model has answered, for tests of what selection reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from curate.catalog.images import encode_jpeg
from curate.catalog.models import DatasetVersion, ModelRow, ModelStatus, Sample
from curate.catalog.splits import dataset_digest
from curate.contracts.prediction import ClassificationPrediction
from flows._blobs import put_model_file
from flows._wiring import Services
from tests.fakes.tiny_model import CLASSES, EMBEDDING_DIM, tiny_model

if TYPE_CHECKING:
    import onnx

RELEASE = "r-1"
START = datetime(2026, 5, 1, 8, 0, tzinfo=UTC)
SIZE = 32


def write_labels(path: Path) -> Path:
    """Write what the tiny model answers as a label file."""
    names = "".join(f"  - {name}\n" for name in CLASSES)
    path.write_text(f"kind: classification\nclass_names:\n{names}height: {SIZE}\nwidth: {SIZE}\n")
    return path


def release_tiny(wired: Services) -> ModelRow:
    """Keep the tiny model as the fleet's released model; it has no float file."""
    return release_files(wired, {"int8": tiny_model(SIZE)})


def release_files(
    wired: Services,
    files: Mapping[str, onnx.ModelProto],
    *,
    kind: str = "classification",
    class_names: Sequence[str] = CLASSES,
) -> ModelRow:
    """Keep these files, by role, as the fleet's released model."""
    import onnx

    facts = {"kind": kind, "class_names": json.dumps(list(class_names)), "frame_shape": f"[{SIZE}, {SIZE}, 3]"}
    keys = {}
    for role, proto in files.items():
        onnx.helper.set_model_props(proto, facts)
        keys[role] = put_model_file(wired.store, f"{role}.onnx", proto.SerializeToString())
    wired.catalog.save_dataset_version(DatasetVersion(dataset_digest(()), 0, START, ()))
    row = ModelRow(
        model_id="m-1",
        round_number=0,
        dataset_version=dataset_digest(()),
        created_at=START,
        status=ModelStatus.RELEASED,
        artifacts=keys,
        metrics={},
        release_id=RELEASE,
        release_number=1,
    )
    wired.catalog.save_model(row)
    return row


def answered_samples(count: int, *, seed: int = 0, scenes: int | None = None) -> list[Sample]:
    """Captures of three cameras that the tiny model has answered, several of each scene."""
    rng = np.random.default_rng(seed)
    looks = rng.standard_normal((scenes or max(1, count // 3), EMBEDDING_DIM))
    said = rng.dirichlet(np.ones(len(CLASSES)), len(looks)).round(6)
    made = []
    for number in range(count):
        scene = number % len(looks)
        look = (looks[scene] + 0.01 * rng.standard_normal(EMBEDDING_DIM)).astype(np.float16).astype(np.float32)
        made.append(_sample(number, look, said[scene].tolist(), rng.random() < 0.4))
    return made


def foreign_sample(wired: Services, number: int, brightness: int) -> Sample:
    """A capture that another release answered; its picture lies in the bucket."""
    return pictured_sample(wired, number, np.full((SIZE, SIZE, 3), brightness, np.uint8))


def pictured_sample(wired: Services, number: int, pixels: NDArray[np.uint8]) -> Sample:
    """The same of any picture, uint8 [SIZE, SIZE, 3]."""
    picture = encode_jpeg(pixels)
    digest = hashlib.sha256(picture).hexdigest()
    wired.store.put(f"captures/cam-1/{digest}.jpg", picture)
    sample = _sample(number, np.ones(5, np.float32), [0.5, 0.25, 0.25], True)
    changed = {"release_id": "r-0", "image_key": f"captures/cam-1/{digest}.jpg", "image_sha256": digest}
    return Sample(**{**vars(sample), **changed, "image_bytes": len(picture)})


def _sample(number: int, look: np.ndarray, said: list[float], at_random: bool) -> Sample:
    name = hashlib.sha256(str(number).encode()).hexdigest()
    camera = f"cam-{number % 3 + 1}"
    return Sample(
        sample_id=name[:24],
        device_id=camera,
        camera_id="lens",
        frame_index=number,
        captured_at=START + timedelta(seconds=7 * number),
        boot_id="boot",
        batch_sequence=1,
        image_key=f"captures/{camera}/{name}.jpg",
        image_sha256=name,
        image_bytes=1000,
        width=SIZE,
        height=SIZE,
        release_id=RELEASE,
        prediction=ClassificationPrediction(
            prediction_id=f"p-{number}",
            release_id=RELEASE,
            probabilities=[*said[:2], 1.0 - said[0] - said[1]],
            scores={"disagreement": 0.25} if number % 2 else {},
        ),
        embedding=look,
        arms=("random",) if at_random else ("uncertain",),
        random_probability=0.05 if at_random else None,
        inclusion_probability=0.05 if at_random else 1.0,
        reasons=(),
        ingested_at=START,
    )
