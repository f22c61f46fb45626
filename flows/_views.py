"""Samples as one model sees them: the device's own answers where it ran that model, else computed here.

Embeddings of two releases do not compare, so a selection looks at all samples through the incumbent's eyes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curate.answers.base import Answer
from curate.answers.registry import ANSWERS
from curate.catalog.images import Frames
from curate.catalog.models import DatasetItem, ModelRow, Sample
from curate.compression.inference import OnnxModel
from curate.contracts.prediction import Prediction
from curate.selection.views import FrameViews, view_frames
from flows._blobs import fetch_model_file
from flows._frames import fetch_frames
from flows._wiring import Services

COMPUTED = "computed"
"""Id of a prediction that no device made."""


@dataclass(frozen=True, eq=False)
class Views:
    """Row i is sample i: what the model says, and the frame's embedding, float32 [N, D]."""

    predictions: tuple[Prediction, ...]
    embeddings: NDArray[np.float32]


def load_model(services: Services, model: ModelRow, *, role: str = "int8") -> OnnxModel:
    """Return the model's int8 file, or the one of another role, ready to run."""
    return OnnxModel(fetch_model_file(services.store, model.artifacts[role], services.settings.cache_dir))


def answer_frames(model: OnnxModel, frames: Frames) -> list[Answer]:
    """Run the model on every frame by itself, as if each were the first of its stream; boxes in the frame's own pixels.

    Raises:
        CompressionError: the frames do not fit the model.
        BadOutputError: the model's answer is not what its kind promises.
    """
    outputs = model.run(frames.images)
    kind = ANSWERS[model.kind]
    return [
        kind.reader(model.spec).read({name: rows[row] for name, rows in outputs.items()}, int(height), int(width))
        for row, (height, width) in enumerate(frames.sizes)
    ]


def predict_pictured(
    services: Services, model: OnnxModel, release_id: str, pictured: Sequence[Sample | DatasetItem]
) -> Views:
    """Run the model over pictures from the bucket."""
    answers = answer_frames(model, fetch_frames(services, pictured))
    embeddings = [answer.embedding for answer in answers]
    predictions = (answer.to_prediction(COMPUTED, release_id) for answer in answers)
    return Views(tuple(predictions), np.array(embeddings, np.float32).reshape(len(answers), model.spec.embedding_dim))


def view_samples(services: Services, model: ModelRow, samples: Sequence[Sample]) -> Views:
    """See every sample through `model`, computing only what its device did not."""
    foreign = [row for row, sample in enumerate(samples) if not _seen_by(sample, model)]
    computed = predict_pictured(
        services, load_model(services, model), model.release_id or COMPUTED, [samples[row] for row in foreign]
    )
    embeddings = np.zeros((len(samples), computed.embeddings.shape[1]), np.float32)
    embeddings[foreign] = computed.embeddings
    predictions = dict(zip(foreign, computed.predictions, strict=True))
    for row, sample in enumerate(samples):
        if row not in predictions and sample.prediction is not None and sample.embedding is not None:
            predictions[row], embeddings[row] = sample.prediction, sample.embedding
    return Views(tuple(predictions[row] for row in range(len(samples))), embeddings)


def see_samples(services: Services, model: ModelRow, samples: Sequence[Sample]) -> FrameViews:
    """See every sample as selection compares them: through what `model` says of it."""
    views = view_samples(services, model, samples)
    sizes = [(sample.height, sample.width) for sample in samples]
    return view_frames(services.settings.labels.kind, views.predictions, views.embeddings, sizes)


def _seen_by(sample: Sample, model: ModelRow) -> bool:
    return sample.release_id == model.release_id and sample.embedding is not None and sample.prediction is not None
