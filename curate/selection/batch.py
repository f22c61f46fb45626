"""Choosing one batch: near-duplicates collapse, a random share is audited, the rest covers what the model lacks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from curate.errors import SelectionError
from curate.selection.audit import draw_audit
from curate.selection.balance import Pick, interleave, pick_greedily, trim_evenly
from curate.selection.base import (
    BoolArray,
    CandidatePool,
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
from curate.selection.strategies import STRATEGIES, FixedUtilities


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
    Raises `SelectionError` on an empty pool, a budget below 1, a negative seed, or embeddings whose width differs from
    the labelled ones.
    """
    _verify_request(pool, labelled, budget, seed)
    ordered = pool.take(sorted(range(len(pool)), key=pool.ids.__getitem__))
    faults = find_faults(ordered, frozenset(labelled.ids))
    rejected = tuple(RejectedSample(ordered.ids[row], why) for row, why in sorted(faults.items()))
    sights = read_sights(ordered.take([row for row in range(len(ordered)) if row not in faults]), labelled, policy)
    audit_rng, active_rng = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    audit_size = int(policy.audit_share * budget + 0.5)
    audit = draw_audit(sights.pool.random_probability, sights.pool.devices, audit_size, audit_rng)
    allowed = _allowed_rows(sights, labelled, [draw.row for draw in audit], policy)
    active = _pick_active(sights, allowed, policy, budget - len(audit), active_rng)
    return Selection(
        items=ranked(audit_items(sights, audit), active_items(sights, active, policy)),
        budget=budget,
        seed=seed,
        policy_digest=policy.digest(),
        pool_size=len(pool),
        distinct_sights=len(sights.size),
        rejected=rejected,
        notes=selection_notes(active, len(audit), audit_size, budget),
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
    sights: Sights, allowed: BoolArray, policy: SelectionPolicy, budget: int, rng: np.random.Generator
) -> list[ActivePick]:
    """Pick distinct sights by the policy's strategy; if they run out, fill with what is left, most uncertain first."""
    if budget < 1 or not allowed.any():
        return []
    fresh = allowed & (sights.nearest_training < policy.duplicate_cosine)
    picks = _pick_both(sights, _representatives(sights, fresh), policy, budget, rng)
    left = allowed.copy()
    left[[pick.row for pick in picks]] = False
    rows = np.flatnonzero(left)
    if len(picks) < budget and len(rows):
        order = pick_greedily(
            FixedUtilities(sights.uncertainty[rows]),
            [sights.pool.devices[row] for row in rows],
            budget - len(picks),
            budget,
            rng.permutation(len(rows)),
        )
        caveat = "filled in by uncertainty alone, because the distinct sights had run out"
        picks += [ActivePick(int(rows[pick.candidate]), pick.utility, (caveat,)) for pick in order]
    return picks


def _pick_both(
    sights: Sights, representative: IntArray, policy: SelectionPolicy, budget: int, rng: np.random.Generator
) -> list[ActivePick]:
    """Pick by the policy's strategy, and a share at random: what a young model is sure of is not what it knows."""
    explored = round(policy.explore_share * budget)
    picks = _pick_sights(sights, representative, policy, budget - explored, rng)
    unpicked = representative.copy()
    unpicked[sights.cluster[[pick.row for pick in picks]]] = -1
    chance = _pick_sights(sights, unpicked, policy.model_copy(update={"strategy": "random"}), budget - len(picks), rng)
    drawn = [ActivePick(pick.row, pick.utility, pick.caveats, explored=True) for pick in chance]
    return interleave(picks, drawn)


def _representatives(sights: Sights, fresh: BoolArray) -> IntArray:
    """Return each sight's most uncertain fresh row, -1 where it has none: int64 [S]."""
    representative = np.full(len(sights.size), -1, np.int64)
    rows = np.flatnonzero(fresh)
    for row in rows[np.argsort(sights.uncertainty[rows], kind="stable")].tolist():
        representative[sights.cluster[row]] = row
    return representative


def _pick_sights(
    sights: Sights, representative: IntArray, policy: SelectionPolicy, budget: int, rng: np.random.Generator
) -> list[ActivePick]:
    """Run the strategy on one row per sight, under the device quota."""
    askable = np.flatnonzero(representative >= 0)
    devices = [sights.pool.devices[row] for row in representative[askable]]
    askable = askable[trim_evenly(sights.uncertainty[representative[askable]].tolist(), devices, policy.max_candidates)]
    if not len(askable) or budget < 1:
        return []
    problem = _problem(sights, representative, askable, policy, rng)
    rows = representative[askable]
    picks = pick_greedily(
        STRATEGIES[policy.strategy](policy).utilities(problem, rng),
        [sights.pool.devices[row] for row in rows],
        budget,
        max(1, int(np.ceil(policy.max_device_share * budget))),
        rng.permutation(len(rows)),
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
    probabilities = np.zeros((count, sights.pool.probabilities.shape[1]))
    np.add.at(probabilities, sights.cluster, sights.pool.probabilities)
    evidence = np.zeros(count)
    np.maximum.at(evidence, sights.cluster, sights.evidence)
    return QueryProblem(
        embeddings=sights.unit[shown[seen]],
        probabilities=(probabilities / sights.size[:, None])[seen].astype(np.float32),
        weights=sights.size[seen].astype(np.float64) ** policy.multiplicity_power,
        evidence=evidence[seen],
        candidates=np.arange(len(askable)),
        labelled=sights.training,
    )


def _quota_caveat(pick: Pick) -> tuple[str, ...]:
    return ("beyond the device quota, because no other device had a distinct sight left",) if pick.over_quota else ()
