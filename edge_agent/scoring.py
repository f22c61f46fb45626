"""What a model's raw answer is worth: is it one, and how unsure is it? Pure."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from curate.errors import AgentError

LEAST_CONFIDENCE: Final = "least_confidence"
MARGIN: Final = "margin"
ENTROPY: Final = "entropy"
SCORE_NAMES: Final = frozenset({LEAST_CONFIDENCE, MARGIN, ENTROPY})

SUM_TOLERANCE: Final = 0.01
"""Float32 softmax sums within 1e-5 and int8 graphs within 5e-3; what is further off is not a distribution."""

_FLOAT16_MAX: Final = float(np.finfo(np.float16).max)


class BadOutputError(AgentError):
    """The model's answer is not a probability distribution."""


def evaluate_scores(probabilities: NDArray[np.float32]) -> dict[str, float]:
    """Score one distribution of shape [K], K >= 2; each score lies in [0, 1] and is higher when less sure.

    `least_confidence` = 1 - p1, `margin` = 1 - (p1 - p2) with p1 >= p2 the two largest, `entropy` =
    -sum(p ln p) / ln K (Settles, Active Learning Literature Survey, 2009, section 3.1).

    Raises:
        BadOutputError: wrong shape, NaN, a value outside [0, 1], or a sum that is not 1.
    """
    if probabilities.ndim != 1 or probabilities.shape[0] < 2:
        raise BadOutputError(f"expected one distribution of at least two classes, got shape {probabilities.shape}")
    values: list[float] = probabilities.tolist()
    total = sum(values)
    # Comparisons with NaN are false, so asking for the good case refuses NaN too.
    if not (abs(total - 1.0) <= SUM_TOLERANCE and min(values) >= 0.0 and max(values) <= 1.0 + SUM_TOLERANCE):
        raise BadOutputError(f"probabilities sum to {total:.4f} or leave [0, 1]")
    if any(math.isnan(value) for value in values):
        raise BadOutputError("probabilities hold NaN")
    second, first = sorted(values)[-2:]
    entropy = -sum(p * math.log(p) for p in values if p > 0.0) / math.log(len(values))
    return {
        LEAST_CONFIDENCE: _unit(1.0 - first),
        MARGIN: _unit(1.0 - (first - second)),
        ENTROPY: _unit(entropy),
    }


def verify_embedding(embedding: NDArray[np.float32]) -> None:
    """Accept an embedding of shape [D] whose values are all finite.

    Raises:
        BadOutputError: wrong shape, NaN or infinity.
    """
    if embedding.ndim != 1 or not bool(np.isfinite(embedding).all()):
        raise BadOutputError("the embedding is not a vector of finite numbers")


def pack_embedding(embedding: NDArray[np.float32]) -> bytes:
    """Return little-endian float16 bytes, 2 * D of them; values beyond float16's range become its largest."""
    return np.clip(embedding, -_FLOAT16_MAX, _FLOAT16_MAX).astype("<f2").tobytes()


def _unit(value: float) -> float:
    return round(min(1.0, max(0.0, value)), 6)
