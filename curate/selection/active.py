"""The active share: distinct sights by the policy's strategy and at random, under quotas, away from test labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from curate.selection.balance import ROUNDING, Pick, Quota, interleave, pick_greedily, pick_within_budget
from curate.selection.base import (
    BoolArray,
    EmbeddingArray,
    Float32Array,
    Float64Array,
    IntArray,
    LabelledSet,
    Progress,
    SelectionPolicy,
)
from curate.selection.candidates import PER_LABEL, gather_candidates, rate_candidates
from curate.selection.explain import ActivePick
from curate.selection.query import FixedUtilities, QueryProblem
from curate.selection.recency import last_seen, newest_moment, weigh_age
from curate.selection.sights import Sights
from curate.selection.strategies import BLIND, STRATEGIES, UNPRICED
from curate.selection.uncertainty import mix_disagreement, raise_by_evidence, rate_uncertainty

HOUR_S = 3600
FILLED_IN = "filled in by uncertainty alone, because the distinct sights had run out"


@dataclass(frozen=True, eq=False)
class _Share:
    """What every step of filling the active share looks at.

    `overview` is the strategy's view of all S sights before it is said which may be asked; `label_counts` int64 [K] or
    None, the training labels of each class.
    """

    sights: Sights
    overview: QueryProblem
    label_counts: IntArray | None
    policy: SelectionPolicy
    rng: np.random.Generator
    progress: Progress


def pick_active(
    sights: Sights,
    labelled: LabelledSet,
    allowed: BoolArray,
    policy: SelectionPolicy,
    budget: float,
    explored: float,
    rng: np.random.Generator,
    progress: Progress,
) -> list[ActivePick]:
    """Pick distinct sights: `explored` of the budget at random, the rest by the policy's strategy.

    If sights run out, fill with what is left, most uncertain first.
    """
    if budget <= ROUNDING or not allowed.any():
        return []
    overview = _overview(sights, policy)
    share = _Share(sights, overview, _label_counts(labelled, overview.probabilities), policy, rng, progress)
    fresh = allowed & (sights.nearest_training < policy.duplicate_cosine)
    picks = _pick_both(share, fresh, budget, explored)
    unheld = fresh & ~_on_probation(sights, policy)
    ran_out = len(picks) >= min(len(np.unique(sights.cluster[unheld])), _max_candidates(share, budget))
    return [*picks, *_fill_in(share, allowed, picks, budget)] if ran_out else picks


def size_exploration(policy: SelectionPolicy, budget: float, captures: int, arm_captures: int) -> float:
    """Return how much of the budget is drawn at random, given how many captures the random arm kept.

    Chance corrects a pool that leans towards the model's mistakes. A pool that leans nowhere needs no correction.
    """
    return float(round(policy.explore_share * (1.0 - arm_captures / max(1, captures)) * budget))


def total_cost(sights: Sights, picks: Sequence[ActivePick]) -> float:
    """Return what the picks cost together, in the policy's unit."""
    return float(sights.cost[[pick.row for pick in picks]].sum())


def _fill_in(share: _Share, allowed: BoolArray, picks: Sequence[ActivePick], budget: float) -> list[ActivePick]:
    """Pick of what is left, sights that were taken before included, the most uncertain first."""
    sights, left = share.sights, allowed.copy()
    left[[pick.row for pick in picks]] = False
    rows, spare = np.flatnonzero(left), budget - total_cost(sights, picks)
    if spare <= ROUNDING or not len(rows):
        return []
    order = pick_greedily(
        FixedUtilities(sights.uncertainty[rows]),
        _probation_quota(share, rows, _allowance(share, budget, picks)),
        spare,
        share.rng.permutation(len(rows)),
        costs=sights.cost[rows],
    )
    return [ActivePick(int(rows[pick.candidate]), pick.utility, (FILLED_IN,)) for pick in order]


def _overview(sights: Sights, policy: SelectionPolicy) -> QueryProblem:
    """Build the strategy's view of all sights, each seen through its first row.

    A sight's prediction is the mean over its rows, which smooths the noise between frames; its evidence is the
    strongest feedback that any of its rows got.
    """
    evidence = np.zeros(len(sights.size))
    np.maximum.at(evidence, sights.cluster, sights.evidence)
    means = _mean_by_sight(sights, sights.pool.probabilities)
    probabilities = None if means is None else means.astype(np.float32)
    uncertainty = _mean_by_sight(sights, sights.pool.uncertainty)
    disagreement = _mean_by_sight(sights, sights.pool.disagreement)
    if policy.disagreement_weight > 0 and disagreement is not None:
        said = rate_uncertainty(policy.uncertainty, probabilities, uncertainty)
        uncertainty = mix_disagreement(said, disagreement, policy.disagreement_weight)
    return QueryProblem(
        embeddings=sights.unit.take(sights.first_row),
        probabilities=probabilities,
        weights=sights.size.astype(np.float64) ** policy.multiplicity_power * _age_weights(sights, policy),
        evidence=evidence,
        candidates=np.empty(0, np.int64),
        labelled=sights.training,
        uncertainty=uncertainty,
        cells=sights.index,
        nearest=sights.nearest_training[sights.first_row],
        max_entries=policy.max_candidates**2,
    )


def _age_weights(sights: Sights, policy: SelectionPolicy) -> Float64Array:
    """Return how much each sight weighs for its age, float64 [S]."""
    seen_s = last_seen(sights)
    return weigh_age(seen_s, policy.half_life_s, newest_moment(seen_s))


def _pick_both(share: _Share, fresh: BoolArray, budget: float, explored: float) -> list[ActivePick]:
    """Pick by the policy's strategy, and a share at random: what a young model is sure of is not what it knows.

    The random share comes from what the random arm kept lately. Everything else in the pool is there because the model
    was unsure or a person objected: a draw from that would teach it that its mistakes are what the world looks like.
    Only when those have run out, any distinct sight will do.
    """
    sights = share.sights
    picks = _pick_sights(share, _representatives(share, fresh), budget - explored, _allowance(share, budget - explored))
    chance = replace(share, policy=share.policy.model_copy(update={"strategy": "random"}))
    drawn: list[ActivePick] = []
    for source in (fresh & np.isfinite(sights.pool.random_probability), fresh):
        spare = budget - total_cost(sights, [*picks, *drawn])
        if spare <= ROUNDING:
            break
        representative = _representatives(share, source)
        representative[sights.cluster[[pick.row for pick in (*picks, *drawn)]]] = -1
        found = _pick_sights(chance, representative, spare, _allowance(share, budget, [*picks, *drawn]))
        drawn += [ActivePick(pick.row, pick.utility, pick.caveats, explored=True) for pick in found]
    return interleave(picks, drawn)


def _representatives(share: _Share, fresh: BoolArray) -> IntArray:
    """Return each sight's most uncertain fresh row (ties: the last), -1 where it has none: int64 [S].

    A row of a device on probation stands for a sight only where no other does: copies must not hold a sight back.
    """
    sights = share.sights
    representative = np.full(len(sights.size), -1, np.int64)
    rows = np.flatnonzero(fresh)
    proven = ~_on_probation(sights, share.policy)[rows]
    rows = rows[np.lexsort((sights.uncertainty[rows], proven, sights.cluster[rows]))]
    last = np.flatnonzero(np.diff(sights.cluster[rows], append=-1))
    representative[sights.cluster[rows[last]]] = rows[last]
    return representative


def _pick_sights(share: _Share, representative: IntArray, budget: float, allowance: float) -> list[ActivePick]:
    """Run the strategy on one row per sight, under the quotas; `allowance` is what devices on probation may take."""
    sights, blind = share.sights, share.policy.strategy in BLIND
    askable = np.flatnonzero(representative >= 0)
    if not len(askable) or budget <= ROUNDING:
        return []
    if not blind:  # chance needs no short list, and would be biased by one
        askable = _shortlist(share, askable, representative, budget)
        share.progress("weigh coverage")
    shown = np.where(representative >= 0, representative, sights.first_row)
    rows = representative[askable]
    members = sights.pool.members
    problem = replace(
        share.overview,
        embeddings=sights.unit.take(shown),
        nearest=sights.nearest_training[shown],
        candidates=askable,
        batch=max(1, round(budget / float(sights.cost[rows].mean()))),
        members=None if members is None or blind else members[rows],
    )
    strategy = STRATEGIES[share.policy.strategy](share.policy)
    picks = pick_within_budget(
        lambda: strategy.utilities(problem, share.rng),
        (*_probation_quota(share, rows, allowance), *_quotas(share, askable, rows, budget)),
        budget,
        lambda: share.rng.permutation(len(rows)),
        sights.cost[rows],
        weigh_cost=share.policy.strategy not in UNPRICED,
    )
    return [ActivePick(int(rows[pick.candidate]), pick.utility, _quota_caveats(pick)) for pick in picks]


def _max_candidates(share: _Share, budget: float) -> int:
    """Return how many sights may compete: the policy's number, or 4 for each label where that is more."""
    labels = budget / float(share.sights.cost.mean())
    return max(share.policy.max_candidates, round(PER_LABEL * labels))


def _shortlist(share: _Share, askable: IntArray, representative: IntArray, budget: float) -> IntArray:
    """Return as many of the askable sights as may compete."""
    limit, seen = _max_candidates(share, budget), share.overview
    if len(askable) <= limit:
        return askable
    share.progress("gather candidates")
    said = rate_uncertainty(share.policy.uncertainty, seen.probabilities, seen.uncertainty)
    sources = rate_candidates(
        share.sights,
        askable,
        (raise_by_evidence(said, seen.evidence) * _age_weights(share.sights, share.policy))[askable],
        seen.evidence,
        seen.probabilities,
        share.label_counts,
        share.rng,
    )
    rows = representative[askable]
    # All newcomers count as one device: many of them must not crowd the others out before the quota is looked at.
    newcomer = share.sights.devices.max() + 1
    devices = np.where(_on_probation(share.sights, share.policy)[rows], newcomer, share.sights.devices[rows])
    return askable[gather_candidates(sources, devices, limit)]


def _label_counts(labelled: LabelledSet, probabilities: Float32Array | None) -> IntArray | None:
    if labelled.classes is None or probabilities is None:
        return None
    taught = labelled.classes[~labelled.testing]
    return np.bincount(taught[(taught >= 0) & (taught < probabilities.shape[1])], minlength=probabilities.shape[1])


def _quotas(share: _Share, askable: IntArray, rows: IntArray, budget: float) -> tuple[Quota, ...]:
    """Return the quotas that the policy sets; the last gives way first."""
    policy, sights, probabilities = share.policy, share.sights, share.overview.probabilities
    most_of_device = policy.device_share(int(sights.devices.max()) + 1)
    parts: list[tuple[str, float, IntArray]] = [("device", most_of_device, sights.devices[rows])]
    if policy.max_site_share < 1 and sights.pool.sites is not None:
        parts.insert(0, ("site", policy.max_site_share, sights.pool.sites[rows]))
    if policy.max_class_share < 1 and probabilities is not None:
        parts.append(("class", policy.max_class_share, probabilities[askable].argmax(axis=1)))
    if policy.max_hour_share < 1 and sights.pool.captured_s is not None:
        parts.append(("hour", policy.max_hour_share, _hours(sights.pool.captured_s[rows])))
    return tuple(Quota(name, _named(name, part), max(1, int(np.ceil(most * budget)))) for name, most, part in parts)


def _named(name: str, part: IntArray) -> list[int | None]:
    """Return the parts of a quota; a device without a known site is bound by its own quota alone."""
    return [None if name == "site" and number < 0 else number for number in part.tolist()]


def _probation_quota(share: _Share, rows: IntArray, allowance: float) -> tuple[Quota, ...]:
    """Return the joint quota of all devices on probation: firm, since one that gives way to a flood stops none."""
    bound = _on_probation(share.sights, share.policy)[rows].tolist()
    return (Quota("probation", [True if on else None for on in bound], allowance, firm=True),) if any(bound) else ()


def _allowance(share: _Share, budget: float, picks: Sequence[ActivePick] = ()) -> float:
    """Return what devices on probation may still take of a budget after these picks."""
    bound = _on_probation(share.sights, share.policy)
    taken = total_cost(share.sights, [pick for pick in picks if bound[pick.row]])
    return float(np.ceil(share.policy.max_probation_share * budget)) - taken


def _on_probation(sights: Sights, policy: SelectionPolicy) -> BoolArray:
    """Return which rows the joint quota binds, bool [N]."""
    marked = sights.pool.probation
    if marked is None or policy.max_probation_share >= 1:
        return np.zeros(len(sights.pool), np.bool_)
    return marked


def _hours(captured_s: Float64Array) -> IntArray:
    """Return the hour of the day (UTC) of each moment; -1 where that is not known."""
    known = np.isfinite(captured_s)
    hours = np.where(known, captured_s, 0.0) // HOUR_S % 24
    return np.where(known, hours, -1).astype(np.int64)


def _mean_by_sight(sights: Sights, rows: Float32Array | Float64Array | None) -> Float64Array | None:
    """Return the mean of each sight's rows that hold a number, float64 [S, ...]; NaN where none does."""
    if rows is None:
        return None
    count = len(sights.size)
    columns: EmbeddingArray = rows.reshape(len(rows), -1)
    means = np.full((count, columns.shape[1]), np.nan)
    for number in range(columns.shape[1]):
        column = columns[:, number]
        known = ~np.isnan(column)
        total = np.bincount(sights.cluster[known], weights=column[known], minlength=count)
        held = np.bincount(sights.cluster[known], minlength=count)
        np.divide(total, held, out=means[:, number], where=held > 0)
    return means.reshape(count, *rows.shape[1:])


def _quota_caveats(pick: Pick) -> tuple[str, ...]:
    return tuple(
        f"beyond the {name} quota, because no other {name} had a distinct sight left" for name in pick.over_quota
    )
