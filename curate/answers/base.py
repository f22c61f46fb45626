"""How a model's raw answer is read: the interface that every kind of model implements once.

Shared by the camera and the cloud, so both understand one answer in the same way. numpy only. A new kind is one module
beside this one and one line in `registry.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from curate.contracts.embedding import Embedding
from curate.contracts.prediction import Prediction
from curate.contracts.release import ModelSpec
from curate.errors import Error

Floats: TypeAlias = NDArray[np.float32]
Outputs: TypeAlias = Mapping[str, Floats]
"""What the model gives for ONE frame: output name to array, without the batch axis."""

EMBEDDING: Final = "embedding"
MAX_EMBEDDING_DIM: Final = 4096
"""What the wire document takes."""
_FLOAT16_MAX: Final = float(np.finfo(np.float16).max)


class BadOutputError(Error):
    """A model's raw answer is not what its kind promises."""


class Answer(Protocol):
    """One frame's answer, read. Small and immutable: thousands are remembered."""

    @property
    def scores(self) -> Mapping[str, float]:
        """The kind's named scores, each in [0, 1] and higher when the model is less sure."""

    def scores_with(self, name: str) -> Mapping[str, float]:
        """Return those scores that cost nothing, and the named one: what is looked at in every frame."""

    @property
    def embedding(self) -> Floats:
        """The frame's embedding, [D]; [0] after `without_embeddings`."""

    @property
    def box_ids(self) -> frozenset[str]:
        """Ids of the boxes that a verdict may name; empty when the kind answers the frame as a whole."""

    @property
    def size_bytes(self) -> int:
        """Memory of its arrays."""

    def agrees_with(self, other: Answer) -> bool:
        """Say whether a person would take both for one answer: what people see is the same, or nearly so."""

    def without_embeddings(self) -> Answer:
        """Return the same answer in less memory."""

    def to_prediction(self, prediction_id: str, release_id: str) -> Prediction:
        """Return the wire form; a fixed function of the answer."""


class AnswerReader(Protocol):
    """Reads the answers of one model on one stream of frames, in order. Not thread-safe; it may remember frames."""

    def read(self, outputs: Outputs, frame_height: int, frame_width: int) -> Answer:
        """Read one frame's answer; `frame_height` and `frame_width` are the captured frame's, in pixels.

        Raises:
            BadOutputError: the outputs are not what the kind promises; the next frame may be read all the same.
        """


class AnswerKind(Protocol):
    """One kind of model, by all that the agent and the cloud ask of its answers."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """The model's outputs, all float32 with the batch first."""

    @property
    def score_names(self) -> frozenset[str]:
        """The scores that every answer of this kind has."""

    @property
    def default_score(self) -> str:
        """The score that stands for being unsure when a policy names none of this kind's."""

    def verify_outputs(self, outputs: Outputs, spec: ModelSpec) -> None:
        """Accept one frame's outputs.

        Raises:
            BadOutputError: one is missing, of a wrong shape, not finite or out of its range.
        """

    def reader(self, spec: ModelSpec) -> AnswerReader:
        """Return a reader that remembers nothing yet."""

    def golden_difference(self, found: Outputs, expected: Outputs) -> float:
        """Return how far one frame's outputs are from those it was released with; 0 for the same.

        Raises:
            BadOutputError: the two cannot be compared, or hold NaN.
        """

    def disagreement(self, left: Prediction, right: Prediction) -> float:
        """Return how far two models' answers to one frame are apart, in [0, 1]: the largest change of any probability,
        0 for the same. What holds no probability, such as an embedding, does not count.

        Raises:
            BadOutputError: one is of another kind, or over other classes.
        """

    def describe(self, prediction: Prediction, class_names: Sequence[str]) -> dict[str, Any]:
        """Return the part of the agent's HTTP answer that depends on the kind, as JSON values.

        Raises:
            BadOutputError: the prediction is of another kind.
        """


def verify_embedding(embedding: Floats) -> None:
    """Accept an embedding of shape [D] whose values are all finite.

    Raises:
        BadOutputError: wrong shape, NaN or infinity.
    """
    if embedding.ndim != 1 or not 0 < embedding.size <= MAX_EMBEDDING_DIM or not _are_finite(embedding):
        raise BadOutputError(f"the embedding is not a vector of at most {MAX_EMBEDDING_DIM} finite numbers")


def _are_finite(values: Floats) -> bool:
    # A sum of squares is finite only if all values are. In float32 it may overflow all the same; then float64 tells,
    # which holds the squares of what float32 holds, and their sum.
    # Products, because a frame needs them anyway: after a model has emptied the processor's caches, the first call of
    # each kind takes ten times as long as the next. And `dot`, which goes through less code than a ufunc.
    return math.isfinite(values.dot(values)) or math.isfinite(np.vecdot(values, values, dtype=np.float64))


def pack_embedding(embedding: Floats) -> bytes:
    """Return little-endian float16 bytes, 2 * D of them; values beyond float16's range become its largest."""
    return np.clip(embedding, -_FLOAT16_MAX, _FLOAT16_MAX).astype("<f2").tobytes()


def wire_embedding(embedding: Floats) -> Embedding | None:
    """Return an embedding of shape [D] as it travels; None for an empty one."""
    return Embedding.from_raw(pack_embedding(embedding)) if embedding.size else None


def take_outputs(outputs: Outputs, names: Sequence[str]) -> tuple[Floats, ...]:
    """Return the named arrays in that order.

    Raises:
        BadOutputError: one is missing.
    """
    try:
        return tuple([outputs[name] for name in names])
    except KeyError:
        missing = [name for name in names if name not in outputs]
        raise BadOutputError(f"the answer lacks {', '.join(missing)}") from None


def verify_shapes_equal(found: Outputs, expected: Outputs, names: Sequence[str]) -> None:
    """Accept two answers whose arrays have the same shapes.

    Raises:
        BadOutputError: they differ, or one is missing.
    """
    for name, left, right in zip(names, take_outputs(found, names), take_outputs(expected, names), strict=True):
        if left.shape != right.shape:
            raise BadOutputError(f"{name} has the shape {left.shape} instead of {right.shape}")


def largest_difference(found: Floats, expected: Floats) -> float:
    """Return the largest absolute difference of two finite arrays of one shape; 0 for empty ones.

    Raises:
        BadOutputError: a value is not finite.
    """
    difference = float(np.abs(found - expected).max(initial=0.0))
    if not np.isfinite(difference):
        raise BadOutputError("the answer is not finite")
    return difference


def unit(value: float) -> float:
    """Return the value within [0, 1], with six decimals."""
    # Not `round`, which works on decimal digits and takes ten times as long.
    return int(value * 1e6 + 0.5) / 1e6 if 0.0 < value < 1.0 else float(value >= 1.0)
