"""Choosing one batch out of a pool that no machine holds: first in each shard of it, then among the chosen.

GreeDi (Mirzasoleiman, Karbasi, Sarkar & Krause 2013; arXiv:1411.0541, algorithm 2), with neighbourhoods of the
embedding space for shards: what is near is compared as on one machine. In the second stage each of the chosen stands
for the uncertainty that it covers of the sights nearest to it, so the coverage of the whole pool counts there, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

import numpy as np

from curate.errors import SelectionError
from curate.selection.active import pick_active, size_exploration, total_cost
from curate.selection.audit import draw_audit, size_audit
from curate.selection.balance import ROUNDING
from curate.selection.base import (
    CandidatePool,
    Float64Array,
    LabelledSet,
    Progress,
    SelectedSample,
    Selection,
    SelectionPolicy,
    tell_nobody,
)
from curate.selection.batch import verify_request
from curate.selection.exchange import concatenate, to_bytes
from curate.selection.explain import ActivePick, active_items, audit_items, ranked, selection_notes
from curate.selection.recency import newest_moment, weigh_age
from curate.selection.shard_work import (
    Job,
    Open,
    PoolSource,
    Proposal,
    ShardTask,
    Survey,
    mean_uncertainty,
    propose,
    read_sound,
    sketch_part,
    survey_part,
)
from curate.selection.shards import SKETCH_ROWS, Sketch, map_shards

ROWS_PER_SHARD = 250_000
OVERSAMPLE = 1.5
"""A shard chooses so many times its share of the budget: what is too much is left to the second stage."""

T = TypeVar("T")
R = TypeVar("R")


class Run(Protocol):
    """Does work on every task, anywhere, and gives the answers in the order of the tasks, like `map`."""

    def __call__(self, work: Callable[[T], R], tasks: Sequence[T], /) -> Iterable[R]: ...


@dataclass(frozen=True, eq=False)
class _Audits:
    """The audit share: `planned` captures, of which there may be fewer; `guard` is what is labelled, and they."""

    planned: int
    items: list[SelectedSample]
    cost: float
    guard: LabelledSet


@dataclass(frozen=True, eq=False)
class _Active:
    """The active share, what of its budget is left, and how many sights the shards hold."""

    picks: list[ActivePick]
    items: list[SelectedSample]
    left: float
    sights: int


def select_sharded(
    open_workplace: Open,
    labelled: LabelledSet,
    policy: SelectionPolicy,
    budget: int,
    seed: int,
    *,
    run: Run,
    name: str,
    rows_per_shard: int = ROWS_PER_SHARD,
    progress: Progress = tell_nobody,
) -> Selection:
    """Choose what to label next, as `select_batch` does and by the same policy, out of a pool that workers read.

    No process holds more than a part, a shard, or what the shards propose; `name` is the prefix of the blobs they
    exchange, which are gone afterwards. The audit share is drawn as on one machine: the same captures for the same
    seed. The active share covers nearly as much of the pool. Two captures of one sight in two shards are one sight when
    both are proposed; those that are not are counted in `distinct_sights` all the same. An item's `cell` is its shard.
    Raises `SelectionError` as `select_batch` does, and what source, exchange and `run` raise.
    """
    job = Job(open_workplace, name, policy, seed)
    audit_rng, active_rng, cell_rng = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3)]
    here = open_workplace()
    parts = here.source.parts()
    progress("find shards")
    sketches = list(run(partial(sketch_part, job, -(-SKETCH_ROWS // max(1, len(parts)))), parts))
    verify_request(_example(sketches), labelled, policy, budget, seed)
    shards = map_shards([sketch for sketch, _ in sketches], rows_per_shard, cell_rng)
    try:
        here.exchange.put(job.guard_key, to_bytes(labelled))
        progress("share rows out")
        surveys = list(run(partial(survey_part, job, shards), list(enumerate(parts))))
        progress("draw audits")
        audits = _draw_audits(here.source, surveys, labelled, policy, budget, audit_rng)
        here.exchange.put(job.guard_key, to_bytes(audits.guard))
        active = _pick_active(job, surveys, audits, budget, active_rng, run, progress)
    finally:
        for part, shard in itertools.product(range(len(parts)), range(shards.count)):
            here.exchange.delete(job.rows_key(part, shard))
        here.exchange.delete(job.guard_key)
    return _selection(surveys, audits, active, policy, budget, seed)


def _example(sketches: Sequence[tuple[Sketch, CandidatePool]]) -> CandidatePool:
    found = [pool for _, pool in sketches]
    if not found:
        raise SelectionError("the pool is empty", hint="wait for captures to be ingested")
    return next((pool for pool in found if len(pool)), found[0])


def _draw_audits(
    source: PoolSource,
    surveys: Sequence[Survey],
    labelled: LabelledSet,
    policy: SelectionPolicy,
    budget: int,
    rng: np.random.Generator,
) -> _Audits:
    """Draw from all rows that may be audited, in the order of their ids as `select_batch` has them."""
    ids = [name for survey in surveys for name in survey.ids]
    devices = [name for survey in surveys for name in survey.devices]
    order = np.array(sorted(range(len(ids)), key=ids.__getitem__), np.int64)
    planned = size_audit(policy.audit_share, budget, np.concatenate([survey.costs for survey in surveys])[order])
    chances = np.concatenate([survey.chances for survey in surveys])[order]
    draws = draw_audit(chances, [devices[row] for row in order.tolist()], planned, rng)
    if not draws:
        return _Audits(planned, [], 0.0, labelled)
    drawn = [ids[order[draw.row]] for draw in draws]
    pool = source.pick(drawn)
    sights = read_sound(pool, labelled, policy, rng)
    row_of = {name: row for row, name in enumerate(sights.pool.ids)}
    if missing := set(drawn) - row_of.keys():
        raise SelectionError(f"{len(missing)} captures have left the pool since it was surveyed", hint="select again")
    items = audit_items(
        sights, [replace(draw, row=row_of[name]) for draw, name in zip(draws, drawn, strict=True)], labelled, policy
    )
    return _Audits(planned, items, float(sum(item.cost for item in items)), _guard(labelled, pool))


def _guard(labelled: LabelledSet, audited: CandidatePool) -> LabelledSet:
    """Return what is labelled with the audited as held out, which then guard their neighbourhoods in every shard."""
    seen, drawn = len(labelled.ids), len(audited)
    parts = [labelled.embeddings, np.asarray(audited.embeddings, np.float32)]
    timed = None if labelled.captured_s is None else labelled.cameras
    return LabelledSet(
        ids=(*labelled.ids, *audited.ids),
        embeddings=np.concatenate(parts) if seen else parts[1],
        groups=(*labelled.groups, *audited.groups),
        held_out=np.concatenate([labelled.testing, np.ones(drawn, np.bool_)]),
        # No camera has an empty name: what has no time shares no scene.
        cameras=((timed or ("",) * seen) + (("",) * drawn if audited.captured_s is None else audited.cameras)),
        captured_s=np.concatenate([_or_zeros(labelled.captured_s, seen), _or_zeros(audited.captured_s, drawn)]),
        classes=None if labelled.classes is None else np.concatenate([labelled.classes, np.full(drawn, -1)]),
    )


def _or_zeros(column: Float64Array | None, count: int) -> Float64Array:
    return np.zeros(count) if column is None else column


def _pick_active(
    job: Job,
    surveys: Sequence[Survey],
    audits: _Audits,
    budget: int,
    rng: np.random.Generator,
    run: Run,
    progress: Progress,
) -> _Active:
    """Have the shards propose, and choose; if that was too little, once more with all that they have."""
    left = budget - audits.cost
    explored = size_exploration(
        job.policy,
        left,
        sum(int(survey.rows.sum()) for survey in surveys),
        sum(int(survey.arm_rows.sum()) for survey in surveys),
    )
    for fill_in in (False, True):
        progress("choose in shards")
        proposals = list(run(partial(propose, job), _plan_tasks(surveys, job.policy, left, explored, fill_in=fill_in)))
        progress("choose among the chosen")
        active = _choose_among(proposals, audits.guard, job.policy, left, explored, rng)
        if active.left <= ROUNDING or not any(proposal.left for proposal in proposals):
            break
    return active


def _plan_tasks(
    surveys: Sequence[Survey], policy: SelectionPolicy, budget: float, explored: float, *, fill_in: bool
) -> list[ShardTask]:
    """Give each shard its part of the budget, by its uncertainty and at least an equal one; or all of it."""
    rows = np.array([survey.rows for survey in surveys])
    open_shards = np.flatnonzero(rows.sum(axis=0))
    newest = np.array([survey.newest_s for survey in surveys])
    aged = weigh_age(newest, policy.half_life_s, newest_moment(newest))
    mass = (aged @ [survey.mass for survey in surveys])[open_shards]
    arm = np.sum([survey.arm_rows for survey in surveys], axis=0)[open_shards]
    share = np.maximum(mass / max(mass.sum(), 1e-12), 1.0 / max(1, len(open_shards)))
    by_strategy = np.minimum(np.ceil(OVERSAMPLE * (budget - explored) * share), budget)
    at_random = np.minimum(np.ceil(OVERSAMPLE * explored * arm / max(1, arm.sum())), budget)
    return [
        ShardTask(
            shard=int(shard),
            parts=tuple(np.flatnonzero(rows[:, shard]).tolist()),
            budget=budget if fill_in else float(by_strategy[number]),
            explore=float(at_random[number]),
            fill_in=fill_in,
            newest_s=newest_moment(newest),
        )
        for number, shard in enumerate(open_shards)
    ]


def _choose_among(
    proposals: Sequence[Proposal],
    guard: LabelledSet,
    policy: SelectionPolicy,
    budget: float,
    explored: float,
    rng: np.random.Generator,
) -> _Active:
    """Choose from what the shards propose by the same policy, each proposal weighed by what it stands for."""
    found = sum(proposal.sights for proposal in proposals)
    some = [proposal for proposal in proposals if len(proposal.pool)]
    if not some or budget <= ROUNDING:
        return _Active([], [], budget, found)
    pool = concatenate([proposal.pool for proposal in some])
    sights = read_sound(pool, guard, policy, rng)
    row_of = {name: row for row, name in enumerate(pool.ids)}
    order = [row_of[name] for name in sights.pool.ids]
    mass, stands_for, shard = (
        np.concatenate(column)[order]
        for column in (
            [proposal.mass for proposal in some],
            [proposal.stands_for for proposal in some],
            [np.full(len(proposal.pool), proposal.shard) for proposal in some],
        )
    )
    # What is covered counts as mass, which is uncertainty already: divided out here, it is multiplied in again there.
    # Age is in the mass, too, and must not count again.
    standing = np.bincount(sights.cluster, weights=mass) / np.maximum(mean_uncertainty(sights), 1e-6)
    by_mass = policy.model_copy(update={"multiplicity_power": 1.0, "half_life_s": None})
    allowed = np.ones(len(order), np.bool_)
    picks = pick_active(replace(sights, size=standing), guard, allowed, by_mass, budget, explored, rng, tell_nobody)
    captures = np.maximum(np.bincount(sights.cluster, weights=stands_for), 1).astype(np.int64)
    items = active_items(replace(sights, size=captures), picks, guard, policy)
    placed = [replace(item, cell=int(shard[pick.row])) for item, pick in zip(items, picks, strict=True)]
    return _Active(picks, placed, budget - total_cost(sights, picks), found)


def _selection(
    surveys: Sequence[Survey], audits: _Audits, active: _Active, policy: SelectionPolicy, budget: int, seed: int
) -> Selection:
    """Put both shares together; the audited have sights of their own."""
    first = 1 + max((item.cluster for item in active.items), default=-1)
    tests = [replace(item, cluster=first + item.cluster, cell=None) for item in audits.items]
    rejected = sorted((one for survey in surveys for one in survey.rejected), key=lambda one: one.sample_id)
    return Selection(
        items=ranked(tests, active.items),
        budget=budget,
        seed=seed,
        policy_digest=policy.digest(),
        pool_size=sum(int(survey.rows.sum()) + len(survey.rejected) for survey in surveys),
        distinct_sights=active.sights,
        rejected=tuple(rejected),
        notes=selection_notes(
            active.picks,
            len(tests),
            audits.planned,
            active.left,
            policy,
            budget,
            on_probation=any(survey.on_probation for survey in surveys),
        ),
        unit=policy.budget_unit,
        spent=budget - active.left,
    )
