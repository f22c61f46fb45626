"""How closely the int8 artefact follows the float one: pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curate.errors import CompressionError

Probabilities = NDArray[np.float32]


@dataclass(frozen=True)
class Parity:
    """How far int8 answers the same `n` frames as float does.

    `agreement` in [0, 1] is what people notice and the gate asks for; `divergence` >= 0 ranks schemes;
    `max_abs_difference` is the largest change of any probability. What the first two are depends on the kind: see its
    `evaluate_parity`. With n = 0 all three are NaN.
    """

    agreement: float
    divergence: float
    max_abs_difference: float
    n: int


def compare_distributions(float_probabilities: Probabilities, int8_probabilities: Probabilities) -> Parity:
    """Compare two [N, K] arrays of class distributions row by row.

    The agreement is the share of rows with the same winner, the divergence is the mean KL(float || int8) in nats.
    Raises CompressionError when the shapes differ.
    """
    if float_probabilities.shape != int8_probabilities.shape or float_probabilities.ndim != 2:
        raise CompressionError(f"cannot compare {float_probabilities.shape} with {int8_probabilities.shape}")
    count = len(float_probabilities)
    if count == 0:
        return Parity(float("nan"), float("nan"), float("nan"), 0)
    reference = np.maximum(float_probabilities.astype(np.float64), 1e-9)
    candidate = np.maximum(int8_probabilities.astype(np.float64), 1e-9)
    divergence = (reference * (np.log(reference) - np.log(candidate))).sum(axis=1)
    return Parity(
        agreement=float(np.mean(float_probabilities.argmax(axis=1) == int8_probabilities.argmax(axis=1))),
        divergence=float(max(0.0, divergence.mean())),
        max_abs_difference=float(np.abs(reference - candidate).max()),
        n=count,
    )
