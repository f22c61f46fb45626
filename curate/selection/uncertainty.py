"""How unsure a calibrated prediction is, on one scale: 0 = certain, 1 = knows nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from curate.errors import SelectionError
from curate.selection.base import Float32Array, Float64Array

UncertaintyKind = Literal["margin", "entropy", "least_confidence"]


def margin_uncertainty(probabilities: Float32Array) -> Float64Array:
    """Return 1 - (p₁ - p₂) of the two likeliest classes, float64 [N]; a single class is always certain."""
    if probabilities.shape[1] < 2:
        return np.zeros(len(probabilities))
    top = np.partition(probabilities.astype(np.float64), -2, axis=1)[:, -2:]
    return np.asarray(1.0 - (top[:, 1] - top[:, 0]))


def entropy_uncertainty(probabilities: Float32Array) -> Float64Array:
    """Return Shannon entropy over its maximum log K, float64 [N]."""
    classes = probabilities.shape[1]
    if classes < 2:
        return np.zeros(len(probabilities))
    p = np.clip(probabilities.astype(np.float64), 1e-12, 1.0)
    return np.asarray(-(p * np.log(p)).sum(axis=1) / np.log(classes))


def least_confidence_uncertainty(probabilities: Float32Array) -> Float64Array:
    """Return (1 - p₁) over its maximum 1 - 1/K, float64 [N]."""
    classes = probabilities.shape[1]
    if classes < 2:
        return np.zeros(len(probabilities))
    top = probabilities.astype(np.float64).max(axis=1)
    return np.asarray((1.0 - top) * classes / (classes - 1))


UNCERTAINTIES: dict[UncertaintyKind, Callable[[Float32Array], Float64Array]] = {
    "margin": margin_uncertainty,
    "entropy": entropy_uncertainty,
    "least_confidence": least_confidence_uncertainty,
}


def rate_uncertainty(
    kind: UncertaintyKind, probabilities: Float32Array | None, uncertainty: Float64Array | None
) -> Float64Array:
    """Return how unsure each prediction is, float64 [N]: as given, else by that kind from its probabilities.

    Raises:
        SelectionError: neither is given.
    """
    if uncertainty is not None:
        return np.asarray(uncertainty, np.float64)
    if probabilities is None:
        raise SelectionError("uncertainty needs the model's probabilities, or has to be given")
    return UNCERTAINTIES[kind](probabilities)


def mix_disagreement(uncertainty: Float64Array, disagreement: Float64Array, weight: float) -> Float64Array:
    """Return the weighted mean of both, float64 [N]. Where the disagreement is NaN, the median of the others stands in.

    Two models mostly agree, also where both are unsure: would the uncertainty stand alone there, then a capture that
    nobody compared would come before one of the same uncertainty that was. Where none is known, it does stand alone.
    """
    unknown = np.isnan(disagreement)
    if unknown.all():
        return uncertainty
    assumed = np.where(unknown, np.median(disagreement[~unknown]), disagreement)
    return np.asarray((1.0 - weight) * uncertainty + weight * assumed)


def raise_by_evidence(uncertainty: Float64Array, evidence: Float64Array) -> Float64Array:
    """Return uncertainty lifted by independent evidence of a wrong prediction (noisy-or), float64 [N] in [0, 1]."""
    return np.asarray(1.0 - (1.0 - np.clip(uncertainty, 0.0, 1.0)) * (1.0 - np.clip(evidence, 0.0, 1.0)))
