"""Choosing one batch: near-duplicates collapse, a random share is audited, the rest covers what the model lacks."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Collection, Sequence

import numpy as np

from curate.errors import SelectionError
from curate.selection.active import pick_active, size_exploration, total_cost
from curate.selection.audit import draw_audit, size_audit
from curate.selection.base import (
    BoolArray,
    CandidatePool,
    IntArray,
    LabelledSet,
    Progress,
    RejectedSample,
    Selection,
    SelectionPolicy,
    tell_nobody,
)
from curate.selection.cells import Cells
from curate.selection.diversity import Moments, shared_scenes
from curate.selection.explain import active_items, audit_items, ranked, selection_notes
from curate.selection.rows import UnitRows, scan_rows, unit_rows
from curate.selection.sights import Sights, find_faults, read_sights


def select_batch(
    pool: CandidatePool,
    labelled: LabelledSet,
    policy: SelectionPolicy,
    budget: int,
    seed: int,
    *,
    cells: Cells | None = None,
    progress: Progress = tell_nobody,
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
    Pools of more than `max_candidates` sights are cut into cells; what lies in far cells is not compared. `cells` of an
    earlier selection (`Selection.cells`) keep that comparable between rounds and spare the rows they have seen. Cost
    grows as N^1.5 at most; memory by a few hundred bytes a row: embeddings are read in blocks where they lie.
    Raises `SelectionError` on an empty pool, a budget below 1, a negative seed, or embeddings whose width differs from
    the labelled ones, or a budget of boxes or minutes for a pool without costs.
    """
    verify_request(pool, labelled, policy, budget, seed)
    progress("read rows")
    scan = scan_rows(pool.embeddings)
    faults = find_faults(pool, scan, frozenset(labelled.ids))
    rejected = tuple(sorted((RejectedSample(pool.ids[row], why) for row, why in faults.items()), key=_by_id))
    rows = sound_rows(pool, faults)
    seeds = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3)]
    audit_rng, active_rng, cell_rng = seeds
    sights = read_sights(pool, rows, scan.fingerprint[rows], labelled, policy, cells, cell_rng, progress)
    eligible = np.isfinite(sights.pool.random_probability)
    audit_size = size_audit(policy.audit_share, budget, sights.cost[eligible])
    audit = draw_audit(sights.pool.random_probability, sights.pool.devices, audit_size, audit_rng)
    progress("keep clear of tests")
    allowed = allowed_rows(sights, labelled, [draw.row for draw in audit], policy)
    active_budget = budget - float(sights.cost[[draw.row for draw in audit]].sum())
    explored = size_exploration(policy, active_budget, len(rows), int(eligible.sum()))
    active = pick_active(sights, labelled, allowed, policy, active_budget, explored, active_rng, progress)
    left = active_budget - total_cost(sights, active)
    progress("explain")
    return Selection(
        items=ranked(audit_items(sights, audit, labelled, policy), active_items(sights, active, labelled, policy)),
        budget=budget,
        seed=seed,
        policy_digest=policy.digest(),
        pool_size=len(pool),
        distinct_sights=len(sights.size),
        rejected=rejected,
        notes=selection_notes(active, len(audit), audit_size, left, policy, budget, on_probation=pool.has_newcomers),
        unit=policy.budget_unit,
        spent=budget - left,
        cells=sights.cells if sights.index.count > 1 else None,
    )


def sound_rows(pool: CandidatePool, faults: Collection[int]) -> IntArray:
    """Return the rows without fault in the order of their ids, int64."""
    count = len(pool)
    in_order = all(map(operator.lt, pool.ids, itertools.islice(pool.ids, 1, None)))
    rows = np.arange(count) if in_order else np.array(sorted(range(count), key=pool.ids.__getitem__), np.int64)
    sound = np.ones(count, np.bool_)
    sound[list(faults)] = False
    return rows[sound[rows]]


def _by_id(rejected: RejectedSample) -> str:
    return rejected.sample_id


def verify_request(pool: CandidatePool, labelled: LabelledSet, policy: SelectionPolicy, budget: int, seed: int) -> None:
    """Raise SelectionError for what cannot be selected from or for."""
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
    if policy.budget_unit != "images" and pool.cost is None:
        raise SelectionError(
            f"a budget of {policy.budget_unit} needs the cost of every capture",
            hint="set selection.budget_unit: images",
        )


def allowed_rows(sights: Sights, labelled: LabelledSet, audited: Sequence[int], policy: SelectionPolicy) -> BoolArray:
    """Return which rows may teach the model without leaking a test label: bool [N]."""
    pool, testing = sights.pool, labelled.testing
    guarded = {g for g, test in zip(labelled.groups, testing, strict=True) if test or policy.exclude_labelled_groups}
    guarded |= {pool.groups[row] for row in audited}
    near_test = sights.nearest_to(unit_rows(labelled.embeddings[testing])) >= policy.duplicate_cosine
    near_audit = np.isin(sights.cluster, sights.cluster[list(audited)])
    free_group = ~np.fromiter(map(guarded.__contains__, pool.groups), np.bool_, len(pool))
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
        seen = Moments(UnitRows(labelled.embeddings), labelled.cameras, labelled.captured_s)
        tests.append(seen.take(np.flatnonzero(labelled.testing)))
    for references in tests:
        pairs = shared_scenes(rows, references, gap_s=policy.scene_gap_s, cosine=policy.scene_cosine)
        barred[[row for row, _ in pairs]] = True
    return barred
