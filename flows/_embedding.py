"""Samples as one model sees them: the device's own numbers where it ran that model, else computed here.

Embeddings of two releases do not compare, so a selection looks at all samples through the incumbent's eyes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curate.catalog.images import decode_images
from curate.catalog.models import ModelRow, Sample
from curate.compression.inference import OnnxClassifier
from curate.contracts.prediction import ClassificationPrediction
from flows._blobs import fetch_images, fetch_model_file
from flows._wiring import Services


@dataclass(frozen=True)
class Views:
    """Row i is sample i: embeddings float32 [N, D], probabilities float32 [N, K]."""

    embeddings: NDArray[np.float32]
    probabilities: NDArray[np.float32]


def load_model(services: Services, model: ModelRow) -> OnnxClassifier:
    """Return the model's int8 file, ready to run."""
    return OnnxClassifier(fetch_model_file(services.store, model.artifacts["int8"], services.settings.cache_dir))


def predict_samples(services: Services, model: OnnxClassifier, samples: Sequence[Sample]) -> Views:
    """Run the model over the samples' images from the bucket."""
    labels = services.settings.labels
    encoded = fetch_images(services.store, [sample.image_key for sample in samples])
    images = decode_images(
        zip((sample.sample_id for sample in samples), encoded, strict=True), labels.height, labels.width
    )
    answers = model.predict(images)
    return Views(answers.embeddings, answers.probabilities)


def view_samples(services: Services, model: ModelRow, samples: Sequence[Sample]) -> Views:
    """See every sample through `model`, computing only what its device did not."""
    foreign = [row for row, sample in enumerate(samples) if not _seen_by(sample, model)]
    computed = predict_samples(services, load_model(services, model), [samples[row] for row in foreign])
    embeddings = np.zeros((len(samples), computed.embeddings.shape[1]), np.float32)
    probabilities = np.zeros((len(samples), computed.probabilities.shape[1]), np.float32)
    embeddings[foreign], probabilities[foreign] = computed.embeddings, computed.probabilities
    for row in sorted(set(range(len(samples))) - set(foreign)):
        sample = samples[row]
        if isinstance(sample.prediction, ClassificationPrediction) and sample.embedding is not None:
            embeddings[row], probabilities[row] = sample.embedding, sample.prediction.probabilities
    return Views(embeddings, probabilities)


def _seen_by(sample: Sample, model: ModelRow) -> bool:
    return sample.release_id == model.release_id and sample.embedding is not None and sample.prediction is not None
