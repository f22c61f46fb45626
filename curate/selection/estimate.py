"""How accurate the model is in the field, from audited random-arm captures; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from curate.errors import SelectionError
from curate.selection.base import Float64Array, IntArray

# A few bursts by chance all right, or all wrong, would report no variance at all. The variance is therefore averaged
# with that of this many pretended bursts whose frames are fully alike; the value is the smallest that held coverage in
# simulation (docstring of `estimate_field_accuracy`).
PRETENDED_BURSTS = 5


@dataclass(frozen=True)
class AccuracyEstimate:
    """Field accuracy with its 95 % (or asked) interval, from `n` audited captures in `bursts` bursts."""

    estimate: float
    ci95: tuple[float, float]
    n: int
    bursts: int


def estimate_field_accuracy(
    correct: ArrayLike, inclusion_probability: ArrayLike, bursts: Sequence[str], *, confidence: float = 0.95
) -> AccuracyEstimate:
    """Estimate the share of field frames that the model gets right, from n audited captures.

    `correct` [n] is 1 (right) or 0, `inclusion_probability` [n] in (0, 1] is π of each capture (random arm times audit
    draw), `bursts` [n] names what the captures share (camera and block of time): frames of one burst are alike, so the
    burst, not the frame, is the unit of evidence.

    Estimate: Hájek's ratio Σ correct/π / Σ 1/π. Interval: Taylor-linearised variance of the ratio between bursts,
    turned into an effective sample size with a Student-t correction for few bursts (Korn & Graubard 1998), then
    Wilson's score interval, which stays within [0, 1] and keeps a width when every answer is right. In simulation (n 60
    and 120, bursts of 1-3, accuracy 0.6-0.95, weights equal and up to 1:5; 60 cells, 1,500 runs each) it covered 94 to
    98 % (mean 96 %); a percentile bootstrap over bursts covered as little as 71 %.
    Raises `SelectionError` without captures, on mismatched lengths, or on values outside their range.
    """
    y, pi = np.asarray(correct, np.float64), np.asarray(inclusion_probability, np.float64)
    _verify_audit(y, pi, bursts, confidence)
    weights = 1.0 / pi
    burst_of = np.unique(np.asarray(bursts), return_inverse=True)[1]
    count = int(burst_of.max()) + 1
    mean = float(weights @ y / weights.sum())
    effective = _effective_size(y, weights, burst_of, mean)
    return AccuracyEstimate(mean, _wilson(mean, effective, count - 1, confidence), len(y), count)


def _verify_audit(y: Float64Array, pi: Float64Array, bursts: Sequence[str], confidence: float) -> None:
    if len(y) == 0:
        raise SelectionError("no audited captures to estimate from", hint="raise the audit share or wait for labels")
    if not len(y) == len(pi) == len(bursts):
        raise SelectionError(f"{len(y)} verdicts, {len(pi)} inclusion probabilities and {len(bursts)} bursts")
    if not ((y == 0) | (y == 1)).all():
        raise SelectionError("a verdict must be 0 or 1")
    if not ((pi > 0) & (pi <= 1)).all():
        raise SelectionError("an inclusion probability is outside (0, 1]")
    if not 0 < confidence < 1:
        raise SelectionError(f"a confidence of {confidence} is outside (0, 1)")


def _effective_size(y: Float64Array, weights: Float64Array, burst_of: IntArray, mean: float) -> float:
    """Return how many independent, equally weighed frames would be as informative (never more than Kish's size)."""
    total, count = float(weights.sum()), int(burst_of.max()) + 1
    if count < 2:
        return 1.0
    alike = float(total**2 / (np.bincount(burst_of, weights) ** 2).sum())
    spread = mean * (1.0 - mean)
    if spread <= 0:
        return alike
    residuals = np.bincount(burst_of, weights * (y - mean))
    between = count / (count - 1) * float((residuals**2).sum()) / total**2
    variance = (count * between + PRETENDED_BURSTS * spread / alike) / (count + PRETENDED_BURSTS)
    return min(spread / variance, float(total**2 / (weights**2).sum()))


def _wilson(mean: float, effective: float, freedom: int, confidence: float) -> tuple[float, float]:
    """Return Wilson's interval with a Student-t quantile; with a single burst nothing is known."""
    if freedom < 1:
        return 0.0, 1.0
    t = float(stdtrit(freedom, 0.5 + confidence / 2))
    scale = 1.0 + t**2 / effective
    centre = (mean + t**2 / (2 * effective)) / scale
    half = t / scale * float(np.sqrt(mean * (1 - mean) / effective + (t / (2 * effective)) ** 2))
    return max(0.0, centre - half), min(1.0, centre + half)
