"""May this candidate replace the incumbent? Decided on labels that the selection did not bias; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.special import stdtrit

from curate.errors import ReleaseError


class GatePolicy(BaseModel):
    """What a candidate has to show. The defaults were picked by simulation (`evaluate_gate`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tolerance: float = Field(
        default=0.08, ge=0, le=1, description="Loss of accuracy that must be ruled out with `confidence`."
    )
    confidence: float = Field(
        default=0.9, gt=0.5, lt=1, description="One-sided confidence that the loss stays within `tolerance`."
    )
    min_difference: float = Field(
        default=-0.01, ge=-1, le=1, description="Smallest observed candidate minus incumbent accuracy."
    )
    min_labels: int = Field(default=30, ge=2, description="Fewer held-out labels are not enough evidence.")
    min_first_accuracy: float = Field(
        default=0.4, ge=0, le=1, description="Held-out accuracy that a very first release has to show."
    )
    min_parity_top1: float = Field(
        default=0.98, ge=0, le=1, description="Share of equal top-1 answers of int8 and float."
    )
    max_int8_ratio: float = Field(default=0.35, gt=0, description="Largest size of the int8 file over the float file.")


@dataclass(frozen=True)
class GateDecision:
    """The verdict with its reasons: what failed, or what was shown.

    `difference` is candidate minus incumbent accuracy with its two-sided 95 % interval; both are None for a first
    release and when there was too little evidence to compute them.
    """

    promote: bool
    reasons: tuple[str, ...]
    candidate_accuracy: float | None
    difference: float | None
    ci95: tuple[float, float] | None
    n: int


@dataclass(frozen=True)
class _Paired:
    """A weighted mean difference, its standard error between bursts, and its degrees of freedom."""

    mean: float
    error: float
    freedom: int

    def bound(self, level: float) -> float:
        """Return the quantile of the difference at `level`, within [-1, 1]."""
        t = float(stdtrit(self.freedom, level)) if self.freedom > 0 else float("inf") * (1 if level > 0.5 else -1)
        return float(np.clip(self.mean + t * self.error, -1.0, 1.0))


def evaluate_gate(
    candidate_correct: ArrayLike,
    incumbent_correct: ArrayLike,
    weights: ArrayLike,
    bursts: Sequence[str],
    policy: GatePolicy,
    *,
    int8_ratio: float,
    parity_top1: float,
) -> GateDecision:
    """Decide whether the candidate may be released, from both models' answers to the same n held-out captures.

    `candidate_correct`, `incumbent_correct` [n] hold 1 (right) or 0, or a score between; `weights` [n] is 1/π of each
    capture; `bursts` [n] names what captures share, since frames of one burst are one piece of evidence.

    The difference is paired and weighted; its variance is linearised between bursts, with two pretended captures that
    disagree in opposite ways so that it never vanishes (Agresti & Min 2005). Defaults, simulated with models that
    differ on 12 % / 20 % of captures, 1,000 runs each: a candidate 8 points worse is refused in 96 / 91 % of cases at
    n = 60 and 99 / 95 % at n = 120; one 8 points better is promoted in 98 / 93 % and 100 / 99 %, one 5 points better
    in 91 / 83 % and 97 / 93 %. At n = 60 a threshold can only trade one side for the other: audit more captures.
    Raises `ReleaseError` on mismatched lengths or values outside their range.
    """
    candidate, incumbent, weight = (
        np.asarray(values, np.float64) for values in (candidate_correct, incumbent_correct, weights)
    )
    _verify_evidence(candidate, weight, bursts)
    _verify_evidence(incumbent, weight, bursts)
    failures = _artifact_failures(policy, int8_ratio, parity_top1)
    if len(candidate) < policy.min_labels:
        return _not_enough(len(candidate), policy, failures)
    paired = _paired_difference(candidate - incumbent, weight, bursts)
    lower = paired.bound(1 - policy.confidence)
    if lower < -policy.tolerance:
        failures.append(
            f"a loss of more than {policy.tolerance:.3f} is not ruled out: with {policy.confidence:.0%} confidence "
            f"the difference is at least {lower:+.3f}"
        )
    if paired.mean < policy.min_difference:
        failures.append(f"accuracy changed by {paired.mean:+.3f}, below the minimum of {policy.min_difference:+.3f}")
    shown = f"accuracy changed by {paired.mean:+.3f} (at least {lower:+.3f} with {policy.confidence:.0%} confidence)"
    return GateDecision(
        promote=not failures,
        reasons=tuple(failures) or (f"{shown} on {len(candidate)} held-out labels",),
        candidate_accuracy=_weighted_mean(candidate, weight),
        difference=paired.mean,
        ci95=(paired.bound(0.025), paired.bound(0.975)),
        n=len(candidate),
    )


def evaluate_first_release(
    candidate_correct: ArrayLike,
    weights: ArrayLike,
    bursts: Sequence[str],
    policy: GatePolicy,
    *,
    int8_ratio: float,
    parity_top1: float,
) -> GateDecision:
    """Decide whether a very first model, with no incumbent to compare with, may be released.

    Arguments and errors as in `evaluate_gate`; the held-out accuracy has to reach `min_first_accuracy`.
    """
    candidate, weight = np.asarray(candidate_correct, np.float64), np.asarray(weights, np.float64)
    _verify_evidence(candidate, weight, bursts)
    failures = _artifact_failures(policy, int8_ratio, parity_top1)
    if len(candidate) < policy.min_labels:
        return _not_enough(len(candidate), policy, failures)
    accuracy = _weighted_mean(candidate, weight)
    if accuracy < policy.min_first_accuracy:
        failures.append(f"held-out accuracy {accuracy:.3f} is below the minimum of {policy.min_first_accuracy:.3f}")
    return GateDecision(
        promote=not failures,
        reasons=tuple(failures) or (f"first release: accuracy {accuracy:.3f} on {len(candidate)} held-out labels",),
        candidate_accuracy=accuracy,
        difference=None,
        ci95=None,
        n=len(candidate),
    )


def _verify_evidence(correct: NDArray[np.float64], weights: NDArray[np.float64], bursts: Sequence[str]) -> None:
    if not len(correct) == len(weights) == len(bursts):
        raise ReleaseError(f"{len(correct)} answers, {len(weights)} weights and {len(bursts)} bursts")
    if not ((correct >= 0) & (correct <= 1)).all():
        raise ReleaseError("an answer must be 0, 1 or a score between them")
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise ReleaseError("a weight must be a positive number")


def _artifact_failures(policy: GatePolicy, int8_ratio: float, parity_top1: float) -> list[str]:
    """Return what is wrong with the compressed file; a number that is NaN has not been shown."""
    failures = []
    if not parity_top1 >= policy.min_parity_top1:
        failures.append(f"int8 agrees with float on {parity_top1:.3f}, below the minimum of {policy.min_parity_top1}")
    if not int8_ratio <= policy.max_int8_ratio:
        failures.append(f"int8 file is {int8_ratio:.3f} of the float file, above {policy.max_int8_ratio}")
    return failures


def _not_enough(n: int, policy: GatePolicy, failures: Sequence[str]) -> GateDecision:
    reason = f"not enough evidence: {n} held-out labels, {policy.min_labels} needed"
    return GateDecision(False, (reason, *failures), None, None, None, n)


def _weighted_mean(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    return float(weights @ values / weights.sum())


def _paired_difference(difference: NDArray[np.float64], weights: NDArray[np.float64], bursts: Sequence[str]) -> _Paired:
    """Return the weighted mean difference with its between-burst error (see `evaluate_gate`)."""
    mean, total = _weighted_mean(difference, weights), float(weights.sum())
    burst_of = np.unique(np.asarray(bursts), return_inverse=True)[1]
    count = int(burst_of.max()) + 1
    if count < 2:
        return _Paired(mean, 1.0, 0)
    residuals = np.bincount(burst_of, weights * (difference - mean))
    pretended = total / len(weights)
    squares = count / (count - 1) * float((residuals**2).sum()) + pretended**2
    return _Paired(mean, float(np.sqrt(squares)) / (total + 2 * pretended), count - 1)
