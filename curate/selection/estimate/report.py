"""All that a round says of the field: the whole, the slices, and what it leaned on; pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from curate.errors import SelectionError
from curate.metrics.correctness import Correctness
from curate.metrics.evidence import Evidence, Float64Array, IntArray
from curate.selection.base import BoolArray
from curate.selection.estimate.assisted import AuditedArm, best_trust, estimate_assisted
from curate.selection.estimate.captures import Captures
from curate.selection.estimate.field import FieldEstimate, estimate_weighted
from curate.selection.estimate.slices import SliceEstimate, estimate_slices
from curate.selection.estimate.surrogate import Answers, describe_captures, predict_correctness
from curate.selection.estimate.weighting import post_stratify

MIN_AUDITS = 20
"""With fewer there is nothing to learn a surrogate's trust from."""


@dataclass(frozen=True, eq=False)
class Audits:
    """The n judged captures: their rows among the random arm's, int64 [n], what they proved, and the probability
    float64 [n] with which the audit took each from the arm.
    """

    rows: IntArray
    evidence: Evidence
    drawn: Float64Array


@dataclass(frozen=True, eq=False)
class Taught:
    """Captures that were chosen to teach, and whether the answer was right, float64 [m]."""

    captures: Captures
    correct: Float64Array


@dataclass(frozen=True)
class FieldReport:
    """The estimate to quote, the same from the audits alone, and the slices. `trust` is how far the surrogate was
    leaned on, None where there was none; `unseen_share` the share of reported frames on devices that sent no capture.
    """

    estimate: FieldEstimate
    plain: FieldEstimate
    trust: float | None
    unseen_share: float
    slices: tuple[SliceEstimate, ...]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, the estimate's own on top."""
        rest = {"plain": asdict(self.plain), "trust": self.trust, "unseen_share": self.unseen_share}
        return asdict(self.estimate) | rest | {"slices": [asdict(each) for each in self.slices]}


def report_field(
    arm: Captures,
    random_probability: Float64Array,
    audits: Audits,
    taught: Taught | None,
    frames: Mapping[str, float | None],
    *,
    seed: int,
) -> FieldReport | None:
    """Estimate the field from the random arm's N captures of a period, of which people judged some.

    `random_probability` float64 [N] is the arm's own; `frames` how many frames each device saw in the period, None
    where it has not told (`post_stratify`). The estimate leans on a surrogate learned from `taught` and the audits
    (`estimate_assisted`) where the kind has a confidence and audits suffice, and on the audits alone otherwise.
    Returns None where the audits cannot tell: an average precision without any true box.
    Raises `SelectionError` without audits, on ragged columns, or on values outside their range.
    """
    _verify(arm, random_probability, audits)
    weighted = post_stratify(1.0 / random_probability, arm.devices, frames)
    plain_of = partial(_plain, arm, audits, weighted.weights)
    whole = np.ones(len(arm), np.bool_)
    plain = plain_of(whole)
    if plain is None:
        return None
    estimate_of: Callable[[BoolArray], FieldEstimate | None] = plain_of
    trust = None
    judged = _assist(arm, audits, taught, weighted.weights, seed)
    if judged is not None:
        trust = best_trust(judged)
        estimate_of = partial(_assisted, judged, trust)
    slices = estimate_slices(arm.columns(), estimate_of)
    return FieldReport(estimate_of(whole) or plain, plain, trust, weighted.unseen_share, tuple(slices))


def _verify(arm: Captures, random_probability: Float64Array, audits: Audits) -> None:
    if not len(audits.rows) == len(audits.evidence) == len(audits.drawn):
        raise SelectionError("every audit needs a verdict and a probability")
    if len(audits.rows) == 0:
        raise SelectionError("no audited captures to estimate from", hint="raise the audit share or wait for labels")
    if len(random_probability) != len(arm) or not ((random_probability > 0) & (random_probability <= 1)).all():
        raise SelectionError("every random-arm capture needs a probability in (0, 1]")


def _plain(arm: Captures, audits: Audits, weights: Float64Array, rows: BoolArray) -> FieldEstimate | None:
    kept = np.flatnonzero(rows[audits.rows])
    mine = audits.rows[kept]
    return estimate_weighted(
        audits.evidence.take(kept), weights[mine] / audits.drawn[kept], [arm.bursts[row] for row in mine.tolist()]
    )


def _assisted(judged: AuditedArm, trust: float, rows: BoolArray) -> FieldEstimate | None:
    part = judged.within(rows)
    return None if part is None else estimate_assisted(part, trust=trust)


def _assist(
    arm: Captures, audits: Audits, taught: Taught | None, weights: Float64Array, seed: int
) -> AuditedArm | None:
    """Return the arm with a surrogate, None where the kind has no confidence or audits are few."""
    evidence = audits.evidence
    if arm.confidence is None or not isinstance(evidence, Correctness) or len(evidence) < MIN_AUDITS:
        return None
    names = sorted(set(arm.eyes))
    features = describe_captures(arm.confidence, arm.eyes, names, arm.objected)
    chosen = Answers(np.empty((0, features.shape[1])), np.empty(0))
    if taught is not None and taught.captures.confidence is not None:
        seen, sure = taught.captures, taught.captures.confidence
        chosen = Answers(describe_captures(sure, seen.eyes, names, seen.objected), taught.correct)
    rng = np.random.default_rng(seed)
    surrogate = predict_correctness(features, arm.bursts, audits.rows, evidence.correct, chosen, rng)
    return AuditedArm(weights, arm.bursts, surrogate, audits.rows, evidence.correct, audits.drawn)
