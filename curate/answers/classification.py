"""Classification: one distribution over the classes for the whole frame."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from curate.answers.base import (
    EMBEDDING,
    Answer,
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

FLICKER: Final = "flicker"

FLICKER_WEIGHT: Final = 0.25
"""How much the newest frame counts for `flicker`: one cut of the scene leaves 0.25 behind, an answer that goes to and
fro at every frame comes close to 1."""
AGREEING_DIFFERENCE: Final = 0.25
_TINY: Final = float(np.finfo(np.float64).tiny)

SUM_TOLERANCE: Final = 0.01
"""Float32 softmax sums within 1e-5 and int8 graphs within 5e-3; what is further off is not a distribution."""


Distribution: TypeAlias = tuple[float, float, float]
"""What every frame's scores are made of: the sum, the largest probability, and the next one, as large in a tie."""


def read_distribution(probabilities: Floats) -> Distribution:
    """Look at one distribution of shape [K], K >= 2, that is one.

    Raises:
        BadOutputError: wrong shape, NaN, a value outside [0, 1], or a sum that is not 1.
    """
    if probabilities.ndim != 1 or probabilities.shape[0] < 2:
        raise BadOutputError(f"expected one distribution of at least two classes, got shape {probabilities.shape}")
    # Not sorted, and few kinds of calls: see `base._are_finite`.
    others = probabilities.copy()
    smallest = others.item(int(others.argmin()))
    first = others.item(largest := int(others.argmax()))
    others[largest] = -math.inf
    second = others.item(int(others.argmax()))
    total = _sum(probabilities)
    # Comparisons with NaN are false, so asking for the good case refuses NaN too: one makes the sum NaN.
    if not (abs(total - 1.0) <= SUM_TOLERANCE and smallest >= 0.0 and first <= 1.0 + SUM_TOLERANCE):
        raise BadOutputError(f"probabilities sum to {total:.4f} or leave [0, 1]")
    return total, first, second


def _sum(values: Floats) -> float:
    """Return the sum of a vector [K], as a product with ones: see `base._are_finite`."""
    return float(values.dot(_ones(values.shape[0])))


@lru_cache(maxsize=8)
def _ones(count: int) -> Floats:
    return np.ones(count, np.float32)


def evaluate_scores(probabilities: Floats) -> dict[str, float]:
    """Score one distribution of shape [K], K >= 2; each score lies in [0, 1] and is higher when less sure.

    `least_confidence` = 1 - p1, `margin` = 1 - (p1 - p2) with p1 >= p2 the two largest, `entropy` =
    -sum(p ln p) / ln K (Settles, Active Learning Literature Survey, 2009, section 3.1).

    Raises:
        BadOutputError: wrong shape, NaN, a value outside [0, 1], or a sum that is not 1.
    """
    _, first, second = read_distribution(probabilities)
    return _scores_at_hand(first, second) | {ENTROPY: _entropy(probabilities)}


def _scores_at_hand(first: float, second: float) -> dict[str, float]:
    return {LEAST_CONFIDENCE: unit(1.0 - first), MARGIN: unit(1.0 - (first - second))}


def _entropy(probabilities: Floats) -> float:
    values = probabilities.astype(np.float64)
    # 0 ln 0 is 0: the smallest number in its place changes nothing.
    return unit(-float(values @ np.log(np.maximum(values, _TINY))) / math.log(len(values)))


class ClassificationAnswer(NamedTuple):
    """One distribution with its scores."""

    probabilities: Floats
    """[K]."""
    at_hand: Mapping[str, float]
    """The scores but for the entropy, which takes as long as all the rest and is worked out when it is asked for."""
    embedding: Floats

    @property
    def scores(self) -> Mapping[str, float]:
        """All four scores."""
        return {**self.at_hand, ENTROPY: _entropy(self.probabilities)}

    def scores_with(self, name: str) -> Mapping[str, float]:
        """Return the scores, without the entropy unless it is the named one."""
        return self.scores if name == ENTROPY else self.at_hand

    @property
    def box_ids(self) -> frozenset[str]:
        """None: the answer is about the whole frame."""
        return frozenset()

    @property
    def size_bytes(self) -> int:
        """Memory of its arrays."""
        return self.probabilities.nbytes + self.embedding.nbytes

    def agrees_with(self, other: Answer) -> bool:
        """Say whether both name the same class, about as surely (within `AGREEING_DIFFERENCE`)."""
        if not isinstance(other, ClassificationAnswer):
            return False
        mine, its = int(self.probabilities.argmax()), int(other.probabilities.argmax())
        return mine == its and abs(float(self.probabilities[mine] - other.probabilities[mine])) <= AGREEING_DIFFERENCE

    def without_embeddings(self) -> ClassificationAnswer:
        """Return the same answer in less memory."""
        return ClassificationAnswer(self.probabilities, self.at_hand, _NO_EMBEDDING)

    def to_prediction(self, prediction_id: str, release_id: str) -> Prediction:
        """Return the wire form."""
        return ClassificationPrediction(
            prediction_id=prediction_id,
            release_id=release_id,
            scores=dict(self.scores),
            embedding=wire_embedding(self.embedding),
            probabilities=[unit(p) for p in self.probabilities.tolist()],
        )


_NO_EMBEDDING: Final = np.empty(0, np.float32)


class ClassificationReader:
    """Reads one classifier on one stream; it remembers the last distribution, nothing else."""

    def __init__(self) -> None:
        self._last: Floats | None = None
        self._last_total = 0.0
        self._flicker = 0.0

    def read(self, outputs: Outputs, frame_height: int, frame_width: int) -> ClassificationAnswer:  # noqa: ARG002
        """Read one distribution; the frame's size says nothing here.

        `flicker` is the exponentially weighted mean of the total variation, sum(abs(p - q)) / 2, between the
        distributions of successive frames.

        Raises:
            BadOutputError: no distribution, or no finite embedding; what is remembered stays.
        """
        try:
            probabilities, embedding = outputs[PROBABILITIES], outputs[EMBEDDING]
        except KeyError as exc:
            raise BadOutputError(f"the answer lacks {exc.args[0]}") from exc
        total, first, second = read_distribution(probabilities)
        verify_embedding(embedding)
        last = self._last
        if last is not None and last.shape == probabilities.shape:
            # abs(p - q) is p + q less twice the smaller of both.
            shared = _sum(np.minimum(probabilities, last))
            moved = max(0.0, 0.5 * (total + self._last_total) - shared)
            self._flicker += FLICKER_WEIGHT * (moved - self._flicker)
        self._last, self._last_total = probabilities, total
        scores = _scores_at_hand(first, second)
        scores[FLICKER] = unit(self._flicker)
        return ClassificationAnswer(probabilities, scores, embedding)


class Classification:
    """Outputs `probabilities` [K] and `embedding` [D]."""

    output_names = (PROBABILITIES, EMBEDDING)
    score_names = frozenset({LEAST_CONFIDENCE, MARGIN, ENTROPY, FLICKER})
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
        read_distribution(probabilities)
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

    def disagreement(self, left: Prediction, right: Prediction) -> float:
        """Return the largest difference of a probability.

        Raises:
            BadOutputError: one is of another kind, or over other classes.
        """
        if not isinstance(left, ClassificationPrediction) or not isinstance(right, ClassificationPrediction):
            raise BadOutputError("not two classifications")
        if len(left.probabilities) != len(right.probabilities):
            raise BadOutputError(f"distributions over {len(left.probabilities)} and {len(right.probabilities)} classes")
        return max(abs(a - b) for a, b in zip(left.probabilities, right.probabilities, strict=True))

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
