"""How likely the model was right on each capture, learned from people's answers; pure.

A guess that only has to help: whatever it says, the estimate that leans on it stays honest (`assisted`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from curate.metrics.evidence import Float64Array, IntArray
from curate.selection.base import BoolArray

FOLDS = 5
PRIOR_PRECISION = 1.0
"""Of every coefficient but the first: a column that few answers speak of stays near zero."""
MAX_STEPS = 30
SURE = 1e-3
"""Confidences are taken no closer to 0 or 1: a model that is too sure must not outweigh everything else."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What people said of n captures: `features` float64 [n, d], `correct` float64 [n] in {0, 1}."""

    features: Float64Array
    correct: Float64Array


def describe_captures(
    confidence: Float64Array, cameras: Sequence[str], names: Sequence[str], objected: BoolArray
) -> Float64Array:
    """Return what a surrogate looks at, float64 [N, 2 + C]: the logit of the model's confidence, whether a person
    objected, and which camera of `names` it was (none of them: zeros).
    """
    sure = np.clip(confidence, SURE, 1 - SURE)
    camera = np.array([[camera == name for name in names] for camera in cameras], np.float64)
    columns = (np.log(sure / (1 - sure)), objected, *camera.reshape(len(cameras), len(names)).T)
    return np.column_stack(columns).astype(np.float64)


def predict_correctness(
    features: Float64Array,
    bursts: Sequence[str],
    audited: IntArray,
    correct: Float64Array,
    chosen: Answers,
    rng: np.random.Generator,
) -> Float64Array:
    """Return P(right) of all N captures of the random arm, float64 [N], none of them learned from its own burst.

    `audited` int64 [n] are the rows that have an answer, `correct` float64 [n]; `chosen` are the answers to actively
    chosen captures. The bursts are dealt into folds and each fold is predicted by a ridge logistic regression on the
    active answers and the other folds' audits (cross-fitting: Zrnic & Candès 2023, arXiv:2309.16598). Active captures
    were chosen because they looked wrong: a column of their own keeps that from darkening the prediction.
    """
    fold_of = _deal(bursts, rng)
    width = features.shape[1]
    predicted = np.empty(len(features))
    for fold in range(FOLDS):
        learned = audited[fold_of[audited] != fold]
        rows = np.concatenate([features[learned], chosen.features.reshape(-1, width)])
        active = np.repeat([0.0, 1.0], [len(learned), len(chosen.features)])
        told = np.concatenate([correct[fold_of[audited] != fold], chosen.correct])
        coefficients = fit_logistic(np.column_stack([rows, active]), told)
        asked = fold_of == fold
        predicted[asked] = expit(coefficients[0] + features[asked] @ coefficients[1:-1])
    return predicted


def fit_logistic(features: Float64Array, outcome: Float64Array) -> Float64Array:
    """Return intercept and coefficients, float64 [1 + d], of a logistic regression under a Gaussian prior.

    Newton's method; half a success and half a failure are added at the mean of the features, so that answers that all
    agree, or none at all, have a finite fit.
    """
    design = np.column_stack([np.ones(len(features)), features])
    middle = np.concatenate([[1.0], features.mean(axis=0) if len(features) else np.zeros(features.shape[1])])
    design = np.vstack([design, middle, middle])
    outcome, weight = np.append(outcome, (0.0, 1.0)), np.append(np.ones(len(features)), (0.5, 0.5))
    precision = np.diag(np.append(0.0, np.full(features.shape[1], PRIOR_PRECISION)))
    coefficients = np.zeros(design.shape[1])
    for _ in range(MAX_STEPS):
        expected = expit(design @ coefficients)
        gradient = design.T @ (weight * (outcome - expected)) - precision @ coefficients
        curvature = (design.T * (weight * np.maximum(expected * (1 - expected), 1e-6))) @ design + precision
        step = np.linalg.solve(curvature, gradient)
        coefficients += step
        if float(np.abs(step).max()) < 1e-6:
            break
    return coefficients


def _deal(bursts: Sequence[str], rng: np.random.Generator) -> IntArray:
    """Return the fold of each row, int64 [N]; a burst stays together."""
    names, burst_of = np.unique(np.asarray(bursts), return_inverse=True)
    return np.asarray(rng.permutation(np.arange(len(names)) % FOLDS)[burst_of], np.int64)
