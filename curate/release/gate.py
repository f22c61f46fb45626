"""May this candidate replace the incumbent? Decided on labels that the selection did not bias; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, Field, model_validator

from curate.errors import ReleaseError
from curate.metrics.evidence import Difference, Evidence, Float64Array
from curate.release.second_look import SecondLook

E = TypeVar("E", bound=Evidence)

FORMER_NAMES = {"min_parity_top1": "min_parity", "min_first_accuracy": "min_first_value"}
"""Settings as they were called when every model classified; still read."""


class GatePolicy(BaseModel):
    """What a candidate has to show. The defaults were picked by simulation (`judge_candidate`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tolerance: float = Field(
        default=0.08, ge=0, le=1, description="Loss of the metric that must be ruled out with `confidence`."
    )
    confidence: float = Field(
        default=0.9, gt=0.5, lt=1, description="One-sided confidence that the loss stays within `tolerance`."
    )
    min_difference: float = Field(
        default=-0.01, ge=-1, le=1, description="Smallest observed candidate minus incumbent metric."
    )
    min_labels: int = Field(default=30, ge=2, description="Fewer held-out labels are not enough evidence.")
    second_look_labels: int = Field(
        default=60,
        ge=0,
        description="Before a candidate is refused that may well be better, at most so many more random-arm captures "
        "are asked about, of those that it and the incumbent answer differently. 0: none.",
    )
    min_first_value: float = Field(
        default=0.4, ge=0, le=1, description="Held-out metric that a very first release has to show."
    )
    min_parity: float = Field(
        default=0.98, ge=0, le=1, description="How far int8 has to agree with float; for classes, equal top-1 answers."
    )
    max_int8_ratio: float = Field(default=0.35, gt=0, description="Largest size of the int8 file over the float file.")

    @model_validator(mode="before")
    @classmethod
    def _read_former_names(cls, values: Any) -> Any:
        """A setting given by its former name wins over a default that the settings merged in under the new one."""
        if not isinstance(values, dict):
            return values
        former = {new: values[old] for old, new in FORMER_NAMES.items() if old in values}
        return {name: value for name, value in values.items() if name not in FORMER_NAMES} | former


@dataclass(frozen=True)
class GateDecision:
    """The verdict with its reasons: what failed, or what was shown.

    `difference` is the candidate's `metric` minus the incumbent's with its two-sided 95 % interval; both are None for a
    first release and when there was too little evidence to compute them. `n` counts the held-out labels.
    `is_open` says that a refused candidate may be better all the same: a second look can tell.
    """

    promote: bool
    reasons: tuple[str, ...]
    candidate_value: float | None
    difference: float | None
    ci95: tuple[float, float] | None
    n: int
    metric: str = "accuracy"
    is_open: bool = False


def judge_candidate(
    candidate: E,
    incumbent: E | None,
    weights: ArrayLike,
    bursts: Sequence[str],
    policy: GatePolicy,
    *,
    int8_ratio: float,
    parity: float,
    second_look: SecondLook | None = None,
) -> GateDecision:
    """Decide whether the candidate may be released, from both models' answers to the same n held-out captures.

    `candidate`, `incumbent` are evidence on the same captures, row by row, of one kind; without an incumbent this is a
    very first release, whose metric has to reach `min_first_value`. `weights` [n] is 1/π of each capture; `bursts` [n]
    names what captures share, since captures of one burst are one piece of evidence. `parity` in [0, 1] says how far
    the int8 file agrees with the float one, `int8_ratio` is its size over the other's; NaN has not been shown.

    With an incumbent two things have to hold for the paired, weighted difference: a loss above `tolerance` is ruled
    out with `confidence`, and what was observed is no worse than `min_difference`. Refused for this alone, while the
    95 % interval reaches above zero, it is open; a `second_look` then takes the labels' place for the difference. With
    it (250 captures in bursts of 2, differing on 15 to 25 %) a candidate 5 points better is promoted in 96-98 %
    instead of 63-74 % of cases, one 8 points worse in 11-12 % instead of 10 %.

    Accuracy: the variance is linearised between bursts (`Correctness.difference`). Defaults, simulated with models that
    differ on 12 % / 20 % of captures, 1,000 runs each: a candidate 8 points worse is refused in 96 / 91 % of cases at
    n = 60 and 99 / 95 % at n = 120; one 8 points better is promoted in 98 / 93 % and 100 / 99 %, one 5 points better
    in 91 / 83 % and 97 / 93 %. At n = 60 a threshold can only trade one side for the other: audit more captures.

    AP50: the variance is a bootstrap's over bursts (`DetectionEvidence.difference`). Simulated on bursty scenes with
    1.5 and 6 objects a frame, models that err moderately to very differently, 40-60 captures in 20-30 bursts, 60-200
    runs each: a candidate 8 points worse is refused in 85-97 % and 85-100 % of cases, one 15 points worse in 94-100 %
    and 97-100 %; one 8 points better is promoted in 64-99 % and 87-100 %, one 5 points better in 57-95 % and 80-100 %.
    The low ends are sparse scenes and models with little in common: there, audit more captures.

    Raises `ReleaseError` on mismatched lengths or weights that are not positive.
    """
    weight = np.asarray(weights, np.float64)
    _verify_design(weight, bursts, candidate, *(() if incumbent is None else (incumbent,)))
    failures = _artifact_failures(policy, int8_ratio, parity)
    value = candidate.value(weight) if len(candidate) else float("nan")
    if incumbent is not None and second_look is not None and len(second_look) >= policy.min_labels:
        return _judge_pair(candidate, value, second_look.difference(), policy, failures, second_look)
    if len(candidate) < policy.min_labels or not np.isfinite(value):
        return _not_enough(candidate, policy, failures, is_open=incumbent is not None and not failures)
    if incumbent is None:
        return _judge_first(candidate, value, policy, failures)
    return _judge_pair(candidate, value, candidate.difference(incumbent, weight, bursts), policy, failures)


def _judge_pair(
    candidate: Evidence,
    value: float,
    difference: Difference,
    policy: GatePolicy,
    failures: list[str],
    second_look: SecondLook | None = None,
) -> GateDecision:
    lower, metric, has_sound_file = difference.bound(1 - policy.confidence), candidate.metric, not failures
    if lower < -policy.tolerance:
        failures.append(
            f"a loss of more than {policy.tolerance:.3f} is not ruled out: with {policy.confidence:.0%} confidence "
            f"the difference is at least {lower:+.3f}"
        )
    if difference.mean < policy.min_difference:
        failures.append(
            f"{metric} changed by {difference.mean:+.3f}, below the minimum of {policy.min_difference:+.3f}"
        )
    shown = (
        f"{metric} changed by {difference.mean:+.3f} (at least {lower:+.3f} with {policy.confidence:.0%} confidence)"
    )
    ci95 = difference.bound(0.025), difference.bound(0.975)
    looked = f"{len(candidate)} held-out labels" if second_look is None else second_look.in_words()
    return GateDecision(
        promote=not failures,
        reasons=(*failures, f"seen on {looked}") if failures else (f"{shown} on {looked}",),
        candidate_value=value if np.isfinite(value) else None,
        difference=difference.mean,
        ci95=ci95,
        n=len(candidate),
        metric=metric,
        is_open=bool(failures) and has_sound_file and second_look is None and ci95[1] > 0,
    )


def _judge_first(candidate: Evidence, value: float, policy: GatePolicy, failures: list[str]) -> GateDecision:
    metric, n = candidate.metric, len(candidate)
    if value < policy.min_first_value:
        failures.append(f"held-out {metric} {value:.3f} is below the minimum of {policy.min_first_value:.3f}")
    shown = f"first release: {metric} {value:.3f} on {n} held-out labels"
    return GateDecision(not failures, tuple(failures) or (shown,), value, None, None, n, metric)


def _verify_design(weights: Float64Array, bursts: Sequence[str], *answers: Evidence) -> None:
    for evidence in answers:
        if not len(evidence) == len(weights) == len(bursts):
            raise ReleaseError(f"{len(evidence)} answers, {len(weights)} weights and {len(bursts)} bursts")
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise ReleaseError("a weight must be a positive number")


def _artifact_failures(policy: GatePolicy, int8_ratio: float, parity: float) -> list[str]:
    """Return what is wrong with the compressed file; a number that is NaN has not been shown."""
    failures = []
    if not parity >= policy.min_parity:
        failures.append(f"int8 agrees with float on {parity:.3f}, below the minimum of {policy.min_parity}")
    if not int8_ratio <= policy.max_int8_ratio:
        failures.append(f"int8 file is {int8_ratio:.3f} of the float file, above {policy.max_int8_ratio}")
    return failures


def _not_enough(candidate: Evidence, policy: GatePolicy, failures: Sequence[str], *, is_open: bool) -> GateDecision:
    n = len(candidate)
    reason = f"not enough evidence: {n} held-out labels, {policy.min_labels} needed"
    if n >= policy.min_labels:
        reason = f"not enough evidence: none of {n} held-out labels lets {candidate.metric} be measured"
    return GateDecision(False, (reason, *failures), None, None, None, n, candidate.metric, is_open)
