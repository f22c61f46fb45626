"""Classification: one distribution over the classes for the whole frame."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from curate.answers.base import (
    EMBEDDING,
    BadOutputError,
    Floats,
    Outputs,
    largest_difference,
    take_outputs,
    unit,
    verify_embedding,
    verify_shapes_equal,
    wire_embedding,
)
from curate.contracts.prediction import ClassificationPrediction, Prediction
from curate.contracts.release import ModelSpec

LEAST_CONFIDENCE: Final = "least_confidence"
MARGIN: Final = "margin"
ENTROPY: Final = "entropy"
PROBABILITIES: Final = "probabilities"

SUM_TOLERANCE: Final = 0.01
"""Float32 softmax sums within 1e-5 and int8 graphs within 5e-3; what is further off is not a distribution."""


def evaluate_scores(probabilities: Floats) -> dict[str, float]:
    """Score one distribution of shape [K], K >= 2; each score lies in [0, 1] and is higher when less sure.

    `least_confidence` = 1 - p1, `margin` = 1 - (p1 - p2) with p1 >= p2 the two largest, `entropy` =
    -sum(p ln p) / ln K (Settles, Active Learning Literature Survey, 2009, section 3.1).

    Raises:
        BadOutputError: wrong shape, NaN, a value outside [0, 1], or a sum that is not 1.
    """
    values = _distribution(probabilities)
    second, first = sorted(values)[-2:]
    entropy = -sum(p * math.log(p) for p in values if p > 0.0) / math.log(len(values))
    return {LEAST_CONFIDENCE: unit(1.0 - first), MARGIN: unit(1.0 - (first - second)), ENTROPY: unit(entropy)}


def _distribution(probabilities: Floats) -> list[float]:
    if probabilities.ndim != 1 or probabilities.shape[0] < 2:
        raise BadOutputError(f"expected one distribution of at least two classes, got shape {probabilities.shape}")
    values: list[float] = probabilities.tolist()
    total = sum(values)
    # Comparisons with NaN are false, so asking for the good case refuses NaN too.
    if not (abs(total - 1.0) <= SUM_TOLERANCE and min(values) >= 0.0 and max(values) <= 1.0 + SUM_TOLERANCE):
        raise BadOutputError(f"probabilities sum to {total:.4f} or leave [0, 1]")
    if any(math.isnan(value) for value in values):
        raise BadOutputError("probabilities hold NaN")
    return values


@dataclass(frozen=True, slots=True)
class ClassificationAnswer:
    """One distribution with its scores."""

    probabilities: tuple[float, ...]
    scores: Mapping[str, float]
    embedding: Floats

    @property
    def box_ids(self) -> frozenset[str]:
        """None: the answer is about the whole frame."""
        return frozenset()

    @property
    def size_bytes(self) -> int:
        """Memory of its arrays."""
        return self.embedding.nbytes

    def without_embeddings(self) -> ClassificationAnswer:
        """Return the same answer in less memory."""
        return replace(self, embedding=np.empty(0, np.float32))

    def to_prediction(self, prediction_id: str, release_id: str) -> Prediction:
        """Return the wire form."""
        return ClassificationPrediction(
            prediction_id=prediction_id,
            release_id=release_id,
            scores=dict(self.scores),
            embedding=wire_embedding(self.embedding),
            probabilities=list(self.probabilities),
        )


class ClassificationReader:
    """Reads every frame by itself."""

    def read(self, outputs: Outputs, frame_height: int, frame_width: int) -> ClassificationAnswer:  # noqa: ARG002
        """Read one distribution; the frame's size says nothing here.

        Raises:
            BadOutputError: no distribution, or no finite embedding.
        """
        probabilities, embedding = take_outputs(outputs, CLASSIFICATION.output_names)
        scores = evaluate_scores(probabilities)
        verify_embedding(embedding)
        return ClassificationAnswer(tuple(unit(p) for p in probabilities.tolist()), scores, embedding)


class Classification:
    """Outputs `probabilities` [K] and `embedding` [D]."""

    output_names = (PROBABILITIES, EMBEDDING)
    score_names = frozenset({LEAST_CONFIDENCE, MARGIN, ENTROPY})
    default_score = MARGIN

    def verify_outputs(self, outputs: Outputs, spec: ModelSpec) -> None:
        """Accept one distribution over the classes and one embedding.

        Raises:
            BadOutputError: a shape or a value is wrong.
        """
        probabilities, embedding = take_outputs(outputs, self.output_names)
        shapes = (probabilities.shape, embedding.shape)
        expected = ((len(spec.class_names),), (spec.embedding_dim,))
        if shapes != expected:
            raise BadOutputError(f"it answers with shapes {shapes}, its manifest says {expected}")
        _distribution(probabilities)
        verify_embedding(embedding)

    def reader(self, spec: ModelSpec) -> ClassificationReader:  # noqa: ARG002 - other kinds need it
        """Return a reader."""
        return ClassificationReader()

    def golden_difference(self, found: Outputs, expected: Outputs) -> float:
        """Return the largest absolute difference of a probability or of an embedding's component.

        Raises:
            BadOutputError: the shapes differ, or a value is not finite.
        """
        verify_shapes_equal(found, expected, self.output_names)
        return max(largest_difference(found[name], expected[name]) for name in self.output_names)

    def describe(self, prediction: Prediction, class_names: Sequence[str]) -> dict[str, Any]:
        """Return label, class index and probabilities.

        Raises:
            BadOutputError: the prediction is of another kind, or knows more classes.
        """
        if not isinstance(prediction, ClassificationPrediction) or prediction.class_index >= len(class_names):
            raise BadOutputError("not a classification over these classes")
        return {
            "label": class_names[prediction.class_index],
            "class_index": prediction.class_index,
            "probabilities": list(prediction.probabilities),
        }


CLASSIFICATION: Final = Classification()
