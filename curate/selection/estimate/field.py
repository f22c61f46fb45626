"""How good the model is in the field, from audited random-arm captures; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from curate.errors import SelectionError
from curate.metrics.correctness import Correctness
from curate.metrics.evidence import Evidence
from curate.selection.base import Float64Array


@dataclass(frozen=True)
class FieldEstimate:
    """A metric in the field with its 95 % (or asked) interval, from `n` audited captures in `bursts` bursts."""

    estimate: float
    ci95: tuple[float, float]
    n: int
    bursts: int
    metric: str = "accuracy"


def estimate_field(
    evidence: Evidence, inclusion_probability: ArrayLike, bursts: Sequence[str], *, confidence: float = 0.95
) -> FieldEstimate | None:
    """Estimate a model's metric in the field from n audited captures, whatever the kind of the model.

    `evidence` holds the model's answers to the captures, row by row; `inclusion_probability` [n] in (0, 1] is π of each
    (random arm times audit draw): a capture stands for 1/π frames; `bursts` [n] names what captures share (camera and
    block of time): frames of one burst are alike, so the burst, not the frame, is the unit of evidence.
    How the interval is found, and how often it covered the truth in simulation, stands with each kind's evidence
    (`Correctness.interval`, `DetectionEvidence.interval`).
    Returns None where the captures cannot tell: for an average precision, when none holds a true box.
    Raises `SelectionError` without captures, on mismatched lengths, or on values outside their range.
    """
    pi = np.asarray(inclusion_probability, np.float64)
    _verify_audit(len(evidence), pi, bursts, confidence)
    return estimate_weighted(evidence, 1.0 / pi, bursts, confidence=confidence)


def estimate_weighted(
    evidence: Evidence, weights: Float64Array, bursts: Sequence[str], *, confidence: float = 0.95
) -> FieldEstimate | None:
    """Do the same with how many frames each capture stands for, float64 [n] > 0; only their ratios count.

    Returns None without captures, too.
    """
    value = evidence.value(weights)
    if not np.isfinite(value):
        return None
    interval = evidence.interval(weights, bursts, confidence)
    return FieldEstimate(value, interval, len(evidence), len(set(bursts)), evidence.metric)


def estimate_field_accuracy(
    correct: ArrayLike, inclusion_probability: ArrayLike, bursts: Sequence[str], *, confidence: float = 0.95
) -> FieldEstimate:
    """Estimate the share of field frames that the model gets right, from n audited captures.

    `correct` [n] is 1 (right) or 0; the rest, and the errors, as in `estimate_field`.
    """
    y = np.asarray(correct, np.float64)
    if not ((y == 0) | (y == 1)).all():
        raise SelectionError("a verdict must be 0 or 1")
    estimate = estimate_field(Correctness(y), inclusion_probability, bursts, confidence=confidence)
    if estimate is None:
        raise SelectionError("no audited captures to estimate from")
    return estimate


def _verify_audit(n: int, pi: Float64Array, bursts: Sequence[str], confidence: float) -> None:
    if n == 0:
        raise SelectionError("no audited captures to estimate from", hint="raise the audit share or wait for labels")
    if not n == len(pi) == len(bursts):
        raise SelectionError(f"{n} answers, {len(pi)} inclusion probabilities and {len(bursts)} bursts")
    if not ((pi > 0) & (pi <= 1)).all():
        raise SelectionError("an inclusion probability is outside (0, 1]")
    if not 0 < confidence < 1:
        raise SelectionError(f"a confidence of {confidence} is outside (0, 1)")
