"""Choosing one batch: near-duplicates collapse, a random share is audited, the rest covers what the model lacks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from curate.errors import SelectionError
from curate.selection.audit import draw_audit, size_audit
from curate.selection.balance import ROUNDING, Pick, interleave, pick_greedily, pick_within_budget, trim_evenly
from curate.selection.base import (
    BoolArray,
    CandidatePool,
    Float32Array,
    Float64Array,
    IntArray,
    LabelledSet,
    QueryProblem,
    RejectedSample,
    Selection,
    SelectionPolicy,
)
from curate.selection.diversity import Moments, nearest_similarity, shared_scenes, unit_rows
from curate.selection.explain import ActivePick, active_items, audit_items, ranked, selection_notes
from curate.selection.sights import Sights, find_faults, read_sights
from curate.selection.strategies import BLIND, STRATEGIES, FixedUtilities


def select_batch(
    pool: CandidatePool, labelled: LabelledSet, policy: SelectionPolicy, budget: int, seed: int
) -> Selection:
    """Choose what to label next, ranked, each with its reasons.

    The answer depends on the set of rows and the seed, not on the order of the rows. Rows that are labelled already or
    hold numbers that make no sense (NaN, a probability outside [0, 1], an embedding without direction) are not chosen
    and reported in `rejected`. The audit share is min(round(audit_share · budget), random-arm captures left); the
    active share fills the rest from captures that do not share a burst or a near-duplicate with an audited or held-out
    one, so that test labels stay unseen. Exactly min(budget, audit share + such captures) items come back: where a
    device quota or the collapse of near-duplicates stands in the way it gives, and `notes` says so.
    With a budget of boxes or minutes the same holds in that unit: `spent` never exceeds the budget, and a capture is
    taken as long as a permitted, distinct one fits; the audit share is sized by the mean cost (`size_audit`), and the
    strategy weighs utility against cost (`pick_within_budget`).
    Raises `SelectionError` on an empty pool, a budget below 1, a negative seed, or embeddings whose width differs from
    the labelled ones, or a budget of boxes or minutes for a pool without costs.
    """
    _verify_request(pool, labelled, budget, seed)
    if policy.budget_unit != "images" and pool.cost is None:
        raise SelectionError(
            f"a budget of {policy.budget_unit} needs the cost of every capture",
            hint="set selection.budget_unit: images",
        )
    ordered = pool.take(sorted(range(len(pool)), key=pool.ids.__getitem__))
    faults = find_faults(ordered, frozenset(labelled.ids))
    rejected = tuple(RejectedSample(ordered.ids[row], why) for row, why in sorted(faults.items()))
    sights = read_sights(ordered.take([row for row in range(len(ordered)) if row not in faults]), labelled, policy)
    audit_rng, active_rng = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    eligible = np.isfinite(sights.pool.random_probability)
    audit_size = size_audit(policy.audit_share, budget, sights.cost[eligible])
    audit = draw_audit(sights.pool.random_probability, sights.pool.devices, audit_size, audit_rng)
    allowed = _allowed_rows(sights, labelled, [draw.row for draw in audit], policy)
    active_budget = budget - float(sights.cost[[draw.row for draw in audit]].sum())
    active = _pick_active(sights, allowed, policy, active_budget, active_rng)
    left = active_budget - _cost(sights, active)
    return Selection(
        items=ranked(audit_items(sights, audit), active_items(sights, active, policy)),
        budget=budget,
        seed=seed,
        policy_digest=policy.digest(),
        pool_size=len(pool),
        distinct_sights=len(sights.size),
        rejected=rejected,
        notes=selection_notes(active, len(audit), audit_size, left, policy, budget),
        unit=policy.budget_unit,
        spent=budget - left,
    )


def _verify_request(pool: CandidatePool, labelled: LabelledSet, budget: int, seed: int) -> None:
    if len(pool) == 0:
        raise SelectionError("the pool is empty", hint="wait for captures to be ingested")
    if seed < 0:
        raise SelectionError(f"a seed must not be negative, got {seed}")
    if budget < 1:
        raise SelectionError(f"a budget of {budget} labels selects nothing")
    if len(labelled.ids) and labelled.embeddings.shape[1] != pool.embeddings.shape[1]:
        raise SelectionError(
            f"pool embeddings have {pool.embeddings.shape[1]} numbers, labelled ones {labelled.embeddings.shape[1]}",
            hint="embed both with the same release",
        )


def _allowed_rows(sights: Sights, labelled: LabelledSet, audited: Sequence[int], policy: SelectionPolicy) -> BoolArray:
    """Return which rows may teach the model without leaking a test label: bool [N]."""
    pool, testing = sights.pool, labelled.testing
    guarded = {g for g, test in zip(labelled.groups, testing, strict=True) if test or policy.exclude_labelled_groups}
    guarded |= {pool.groups[row] for row in audited}
    near_test = nearest_similarity(sights.unit, unit_rows(labelled.embeddings[testing])) >= policy.duplicate_cosine
    near_audit = np.isin(sights.cluster, sights.cluster[list(audited)])
    free_group = np.array([group not in guarded for group in pool.groups], np.bool_)
    in_test_scene = _in_test_scene(sights, labelled, audited, policy)
    return np.asarray(free_group & ~near_test & ~near_audit & ~in_test_scene)


def _in_test_scene(sights: Sights, labelled: LabelledSet, audited: Sequence[int], policy: SelectionPolicy) -> BoolArray:
    """Return which rows show what an audited or held-out capture shows, moments before or after: bool [N]."""
    barred = np.zeros(len(sights.pool), np.bool_)
    if sights.pool.captured_s is None:
        return barred
    rows = Moments(sights.unit, sights.pool.cameras, sights.pool.captured_s)
    tests = [rows.take(audited)]
    if labelled.cameras is not None and labelled.captured_s is not None:
        seen = Moments(unit_rows(labelled.embeddings), labelled.cameras, labelled.captured_s)
        tests.append(seen.take(np.flatnonzero(labelled.testing)))
    for references in tests:
        pairs = shared_scenes(rows, references, gap_s=policy.scene_gap_s, cosine=policy.scene_cosine)
        barred[[row for row, _ in pairs]] = True
    return barred


def _pick_active(
    sights: Sights, allowed: BoolArray, policy: SelectionPolicy, budget: float, rng: np.random.Generator
) -> list[ActivePick]:
    """Pick distinct sights by the policy's strategy; if they run out, fill with what is left, most uncertain first."""
    if budget <= ROUNDING or not allowed.any():
        return []
    fresh = allowed & (sights.nearest_training < policy.duplicate_cosine)
    picks = _pick_both(sights, fresh, policy, budget, rng)
    distinct = len(np.unique(sights.cluster[fresh]))
    ran_out = len(picks) >= min(distinct, policy.max_candidates)
    left = allowed.copy()
    left[[pick.row for pick in picks]] = False
    rows = np.flatnonzero(left)
    spare = budget - _cost(sights, picks)
    if ran_out and spare > ROUNDING and len(rows):
        order = pick_greedily(
            FixedUtilities(sights.uncertainty[rows]),
            [sights.pool.devices[row] for row in rows],
            spare,
            budget,
            rng.permutation(len(rows)),
            costs=sights.cost[rows],
        )
        caveat = "filled in by uncertainty alone, because the distinct sights had run out"
        picks += [ActivePick(int(rows[pick.candidate]), pick.utility, (caveat,)) for pick in order]
    return picks


def _pick_both(
    sights: Sights, fresh: BoolArray, policy: SelectionPolicy, budget: float, rng: np.random.Generator
) -> list[ActivePick]:
    """Pick by the policy's strategy, and a share at random: what a young model is sure of is not what it knows.

    The random share comes from what the random arm kept lately. Everything else in the pool is there because the model
    was unsure or a person objected: a draw from that would teach it that its mistakes are what the world looks like.
    Only when those have run out, any distinct sight will do.
    """
    explored = round(policy.explore_share * budget)
    picks = _pick_sights(sights, _representatives(sights, fresh), policy, budget - explored, rng)
    chance = policy.model_copy(update={"strategy": "random"})
    drawn: list[ActivePick] = []
    for source in (fresh & np.isfinite(sights.pool.random_probability), fresh):
        representative = _representatives(sights, source)
        representative[sights.cluster[[pick.row for pick in (*picks, *drawn)]]] = -1
        spare = budget - _cost(sights, [*picks, *drawn])
        found = _pick_sights(sights, representative, chance, spare, rng)
        drawn += [ActivePick(pick.row, pick.utility, pick.caveats, explored=True) for pick in found]
    return interleave(picks, drawn)


def _representatives(sights: Sights, fresh: BoolArray) -> IntArray:
    """Return each sight's most uncertain fresh row, -1 where it has none: int64 [S]."""
    representative = np.full(len(sights.size), -1, np.int64)
    rows = np.flatnonzero(fresh)
    for row in rows[np.argsort(sights.uncertainty[rows], kind="stable")].tolist():
        representative[sights.cluster[row]] = row
    return representative


def _pick_sights(
    sights: Sights, representative: IntArray, policy: SelectionPolicy, budget: float, rng: np.random.Generator
) -> list[ActivePick]:
    """Run the strategy on one row per sight, under the device quota."""
    askable = np.flatnonzero(representative >= 0)
    devices = [sights.pool.devices[row] for row in representative[askable]]
    askable = askable[trim_evenly(sights.uncertainty[representative[askable]].tolist(), devices, policy.max_candidates)]
    if not len(askable) or budget <= ROUNDING:
        return []
    problem = _problem(sights, representative, askable, policy, rng)
    rows = representative[askable]
    strategy = STRATEGIES[policy.strategy](policy)
    picks = pick_within_budget(
        lambda: strategy.utilities(problem, rng),
        [sights.pool.devices[row] for row in rows],
        budget,
        max(1, int(np.ceil(policy.max_device_share * budget))),
        lambda: rng.permutation(len(rows)),
        sights.cost[rows],
        weigh_cost=policy.strategy not in BLIND,
    )
    return [ActivePick(int(rows[pick.candidate]), pick.utility, _quota_caveat(pick)) for pick in picks]


def _problem(
    sights: Sights, representative: IntArray, askable: IntArray, policy: SelectionPolicy, rng: np.random.Generator
) -> QueryProblem:
    """Build the strategy's view: the askable sights plus, while there is room, the others that deserve coverage.

    A sight's prediction is the mean over its rows, which smooths the noise between frames; its evidence is the
    strongest feedback that any of its rows got.
    """
    count = len(sights.size)
    others = np.setdiff1d(np.arange(count), askable)
    room = max(0, policy.max_candidates - len(askable))
    seen = np.concatenate([askable, np.sort(rng.permutation(others)[:room])])
    first_row = np.unique(sights.cluster, return_index=True)[1]
    shown = np.where(representative >= 0, representative, first_row)
    probabilities = _mean_by_sight(sights, sights.pool.probabilities)
    uncertainty = _mean_by_sight(sights, sights.pool.uncertainty)
    evidence = np.zeros(count)
    np.maximum.at(evidence, sights.cluster, sights.evidence)
    return QueryProblem(
        embeddings=sights.unit[shown[seen]],
        probabilities=None if probabilities is None else probabilities[seen].astype(np.float32),
        weights=sights.size[seen].astype(np.float64) ** policy.multiplicity_power,
        evidence=evidence[seen],
        candidates=np.arange(len(askable)),
        labelled=sights.training,
        uncertainty=None if uncertainty is None else uncertainty[seen],
    )


def _mean_by_sight(sights: Sights, rows: Float32Array | Float64Array | None) -> Float64Array | None:
    """Return the mean of each sight's rows, float64 [S, ...]."""
    if rows is None:
        return None
    total = np.zeros((len(sights.size), *rows.shape[1:]))
    np.add.at(total, sights.cluster, rows)
    return np.asarray(total / sights.size.reshape(-1, *[1] * (rows.ndim - 1)))


def _cost(sights: Sights, picks: Sequence[ActivePick]) -> float:
    return float(sights.cost[[pick.row for pick in picks]].sum())


def _quota_caveat(pick: Pick) -> tuple[str, ...]:
    return ("beyond the device quota, because no other device had a distinct sight left",) if pick.over_quota else ()
