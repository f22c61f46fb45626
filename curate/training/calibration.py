"""Temperature scaling: one number that makes confidence mean what it says."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

COLDEST, HOTTEST = 0.25, 4.0
"""Bounds of the temperature: a handful of labels, all right, would otherwise call for absolute certainty."""


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The T that minimises the negative log-likelihood of softmax(logits / T); 1.0 without labels.

    Guo et al. 2017 (arXiv:1706.04599), section 4.2. The loss is convex in 1/T, so its slope crosses zero once and
    bisection finds the place exactly. `logits` [N, K], `labels` [N]. The answer lies in COLDEST..HOTTEST.
    """
    if labels.size == 0:
        return 1.0
    scores = logits.astype(np.float64)
    low, high = 1.0 / HOTTEST, 1.0 / COLDEST
    for _ in range(40):
        middle = (low * high) ** 0.5
        if _slope(scores, labels, middle) > 0:
            high = middle
        else:
            low = middle
    return float(1.0 / (low * high) ** 0.5)


def _slope(logits: NDArray[np.float64], labels: NDArray[np.int64], inverse_temperature: float) -> float:
    """Derivative of the loss by 1/T: expected logit under the model minus the logit of the label."""
    scaled = logits * inverse_temperature
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    expected = (weights * logits).sum(axis=1) / weights.sum(axis=1)
    return float((expected - logits[np.arange(labels.size), labels]).mean())
