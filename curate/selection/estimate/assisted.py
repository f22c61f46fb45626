"""Field accuracy from audits and from what a surrogate says of all other random-arm captures; pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from curate.errors import SelectionError
from curate.metrics.correctness import PRETENDED_BLOCKS
from curate.metrics.evidence import Float64Array, IntArray, block_numbers, effective_blocks, wilson
from curate.selection.base import BoolArray
from curate.selection.estimate.field import FieldEstimate


@dataclass(frozen=True, eq=False)
class AuditedArm:
    """The random arm's N captures of a period and the n of them that people have judged.

    `weights` float64 [N] > 0 is how many frames a capture stands for; `bursts` [N] as in `estimate_field`; `surrogate`
    float64 [N] in [0, 1] is P(right), learned from other bursts; `audited` int64 [n] are the judged rows, `correct`
    float64 [n] in [0, 1] and `drawn` float64 [n] in (0, 1] the probability with which the audit took each.
    Raises `SelectionError` on ragged columns, values outside their range, or without audits.
    """

    weights: Float64Array
    bursts: tuple[str, ...]
    surrogate: Float64Array
    audited: IntArray
    correct: Float64Array
    drawn: Float64Array

    def __post_init__(self) -> None:
        if not len(self.weights) == len(self.bursts) == len(self.surrogate):
            raise SelectionError("every random-arm capture needs a weight, a burst and a surrogate")
        if not 0 < len(self.audited) == len(self.correct) == len(self.drawn):
            raise SelectionError("every audit needs a verdict and a probability, and there must be one")
        if not ((self.drawn > 0) & (self.drawn <= 1)).all() or not (self.weights > 0).all():
            raise SelectionError("a weight is not positive, or an audit's probability is outside (0, 1]")
        for values in (self.surrogate, self.correct):
            if not ((values >= 0) & (values <= 1)).all():
                raise SelectionError("a verdict or a surrogate is outside [0, 1]")

    def within(self, rows: BoolArray) -> AuditedArm | None:
        """Return the captures that `rows` bool [N] names, None when no audit is among them."""
        kept = rows[self.audited]
        if not kept.any():
            return None
        number = np.cumsum(rows) - 1
        return replace(
            self,
            weights=self.weights[rows],
            bursts=tuple(burst for burst, keep in zip(self.bursts, rows.tolist(), strict=True) if keep),
            surrogate=self.surrogate[rows],
            audited=np.asarray(number[self.audited[kept]], np.int64),
            correct=self.correct[kept],
            drawn=self.drawn[kept],
        )


def estimate_assisted(arm: AuditedArm, *, trust: float | None = None, confidence: float = 0.95) -> FieldEstimate:
    """Estimate the share of field frames that the model got right.

    The two-phase difference estimator (Särndal, Swensson & Wretman 1992, chapter 9): the audits' weighted share,
    moved by `trust` times the gap between the surrogate's mean over all captures and over the audits. Since both means
    estimate the same thing, the move is unbiased whatever the surrogate says; it wins what the surrogate explains. With
    a trust of None it is the share in [0, 1] that minimises the estimated variance (power tuning: Angelopoulos, Duchi &
    Zrnic 2023, arXiv:2311.01453), so that a surrogate that says nothing costs nothing.

    The interval is Wilson's over the effective size left by the variance between bursts, audited or not, steadied as in
    `Correctness.interval`. How often it covers, and what it wins: benchmarks/estimates.md.
    """
    audit_weights = arm.weights[arm.audited] / arm.drawn
    plain = float(audit_weights @ arm.correct / audit_weights.sum())
    gap = float(arm.weights @ arm.surrogate / arm.weights.sum()) - float(
        audit_weights @ arm.surrogate[arm.audited] / audit_weights.sum()
    )
    own, move = _influences(arm, audit_weights, plain)
    trust = _least_variance(own, move) if trust is None else trust
    value = float(np.clip(plain + trust * gap, 0.0, 1.0))
    audited_bursts = [arm.bursts[row] for row in arm.audited.tolist()]
    count = block_numbers(audited_bursts)[1]
    estimate = FieldEstimate(value, (0.0, 1.0), len(arm.audited), count)
    if count < 3:
        return estimate
    variance = count / (count - 2) * float(((own + trust * move) ** 2).sum())
    alike = effective_blocks(audit_weights, audited_bursts)
    return replace(estimate, ci95=_interval(value, variance, alike, count, trust, _explained(arm), confidence))


def best_trust(arm: AuditedArm) -> float:
    """Return the trust in the surrogate, in [0, 1], that minimises the estimated variance. Slices take the whole's."""
    audit_weights = arm.weights[arm.audited] / arm.drawn
    plain = float(audit_weights @ arm.correct / audit_weights.sum())
    return _least_variance(*_influences(arm, audit_weights, plain))


def _influences(arm: AuditedArm, audit_weights: Float64Array, plain: float) -> tuple[Float64Array, Float64Array]:
    """Return what each burst adds to the audits' share and to the gap, linearised; both float64 [bursts]."""
    burst_of, count = block_numbers(arm.bursts)
    mine = burst_of[arm.audited]
    total, said = float(audit_weights.sum()), arm.surrogate[arm.audited]
    own = np.bincount(mine, audit_weights * (arm.correct - plain), count) / total
    everywhere = arm.weights * (arm.surrogate - arm.weights @ arm.surrogate / arm.weights.sum())
    audited = audit_weights * (said - audit_weights @ said / total)
    move = np.bincount(burst_of, everywhere, count) / arm.weights.sum() - np.bincount(mine, audited, count) / total
    return own, move


def _least_variance(own: Float64Array, move: Float64Array) -> float:
    spread = float(move @ move)
    return float(np.clip(-(own @ move) / spread, 0.0, 1.0)) if spread > 0 else 0.0


def _explained(arm: AuditedArm) -> float:
    """Return the share of the variance of being right that the surrogate claims to explain."""
    mean = float(arm.weights @ arm.surrogate / arm.weights.sum())
    within = float(arm.weights @ (arm.surrogate * (1 - arm.surrogate)) / arm.weights.sum())
    return 1.0 - within / (mean * (1 - mean)) if 0 < mean < 1 else 0.0


def _interval(
    value: float, variance: float, alike: float, count: int, trust: float, explained: float, confidence: float
) -> tuple[float, float]:
    spread = value * (1.0 - value)
    if spread <= 0:
        return wilson(value, alike, count - 1, confidence)
    pretended = spread * (1.0 - trust * explained) / alike
    steadied = (count * variance + PRETENDED_BLOCKS * pretended) / (count + PRETENDED_BLOCKS)
    return wilson(value, spread / steadied, count - 1, confidence)
