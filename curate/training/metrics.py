"""How good probabilities are against labels: pure, shared by training reports and the tests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from curate.errors import TrainingError

Probabilities = NDArray[np.float32]
Labels = NDArray[np.int64]


def accuracy(probabilities: Probabilities, labels: Labels) -> float:
    """Share of rows whose largest probability lies on the label.

    `probabilities` [N, K], `labels` [N]. Returns NaN for N = 0: an unknown accuracy is not a bad one.
    Raises TrainingError when the shapes do not fit.
    """
    _verify_shapes(probabilities, labels)
    if labels.size == 0:
        return float("nan")
    return float(np.mean(probabilities.argmax(axis=1) == labels))


def per_class_accuracy(probabilities: Probabilities, labels: Labels) -> NDArray[np.float64]:
    """Recall of every class, [K]; NaN where a class has no label."""
    matrix = confusion_matrix(probabilities, labels)
    support = matrix.sum(axis=1)
    recall = np.full(support.shape, np.nan, dtype=np.float64)
    np.divide(matrix.diagonal(), support, out=recall, where=support > 0)
    return recall


def negative_log_likelihood(probabilities: Probabilities, labels: Labels) -> float:
    """Mean of -log p(label) in nats, with p floored at 1e-12; NaN for N = 0."""
    _verify_shapes(probabilities, labels)
    if labels.size == 0:
        return float("nan")
    of_label = probabilities[np.arange(labels.size), labels].astype(np.float64)
    return float(-np.log(np.maximum(of_label, 1e-12)).mean())


def expected_calibration_error(probabilities: Probabilities, labels: Labels, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width confidence bins, weighted by bin size.

    Naeini et al. 2015, as used by Guo et al. 2017 (arXiv:1706.04599, section 2, equation 3). NaN for N = 0.
    """
    _verify_shapes(probabilities, labels)
    if labels.size == 0:
        return float("nan")
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    bin_of = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(bin_of, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / labels.size)


def confusion_matrix(probabilities: Probabilities, labels: Labels) -> NDArray[np.int64]:
    """Counts [K, K]: row = label, column = predicted class."""
    _verify_shapes(probabilities, labels)
    classes = probabilities.shape[1]
    pairs = labels * classes + probabilities.argmax(axis=1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes).astype(np.int64)


def _verify_shapes(probabilities: Probabilities, labels: Labels) -> None:
    if probabilities.ndim != 2 or labels.ndim != 1 or len(probabilities) != len(labels):
        raise TrainingError(f"probabilities {probabilities.shape} and labels {labels.shape} do not belong together")
    if labels.size and (labels.min() < 0 or labels.max() >= probabilities.shape[1]):
        raise TrainingError(f"labels {labels.min()}..{labels.max()} reach outside {probabilities.shape[1]} classes")
