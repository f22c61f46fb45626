"""What one worker does of a selection in shards: sketch a part, share a part out, propose from a shard.

What workers hand to each other goes through the exchange; what they answer is small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from curate.selection.active import FILLED_IN, pick_active
from curate.selection.base import (
    BoolArray,
    CandidatePool,
    Float64Array,
    IntArray,
    LabelledSet,
    RejectedSample,
    SelectionPolicy,
    tell_nobody,
)
from curate.selection.batch import allowed_rows, sound_rows
from curate.selection.diversity import coverage_radius, find_nearest
from curate.selection.exchange import Exchange, concatenate, from_bytes, to_bytes
from curate.selection.recency import last_seen, moments_of, newest_moment, weigh_age
from curate.selection.rows import UnitRows, blocks, scan_rows
from curate.selection.shards import ShardMap, Sketch, sketch_rows
from curate.selection.sights import Sights, find_faults, read_sights
from curate.selection.uncertainty import rate_uncertainty


class PoolSource(Protocol):
    """The pool where it lies. Parts are disjoint, cover it, have the same columns, and are tasks for workers."""

    def parts(self) -> Sequence[Any]:
        """Return what `read` takes."""

    def read(self, part: Any) -> CandidatePool:
        """Read one part."""

    def pick(self, ids: Sequence[str]) -> CandidatePool:
        """Read single rows, in any order."""


@dataclass(frozen=True)
class Workplace:
    """What a worker reaches the world through; it opens one itself, so that only its address travels."""

    source: PoolSource
    exchange: Exchange


Open = Callable[[], Workplace]


@dataclass(frozen=True, eq=False)
class Job:
    """What every worker knows; `name` is the prefix of the blobs that workers leave for each other."""

    open: Open
    name: str
    policy: SelectionPolicy
    seed: int

    @property
    def guard_key(self) -> str:
        """Where lies what is labelled, with the audited once they are known."""
        return f"{self.name}/guard.npz"

    def rows_key(self, part: int, shard: int) -> str:
        """Where lies what a part holds of a shard."""
        return f"{self.name}/{shard}-{part}.npz"


@dataclass(frozen=True, eq=False)
class Survey:
    """What a part holds. By shard: `rows` and `arm_rows` (of the random arm) int64 [S], `mass` float64 [S], summed
    uncertainty, weighed by age as counted from `newest_s`, the part's newest capture. Of the E rows that may be
    audited: names, `chances` and `costs` float64 [E].
    """

    rows: IntArray
    arm_rows: IntArray
    mass: Float64Array
    newest_s: float
    ids: tuple[str, ...]
    devices: tuple[str, ...]
    chances: Float64Array
    costs: Float64Array
    rejected: tuple[RejectedSample, ...]
    on_probation: bool


@dataclass(frozen=True)
class ShardTask:
    """Propose from one shard, for which `parts` left rows; one budget is for the strategy, one for exploring.

    `newest_s` is when the newest capture of all shards was taken.
    """

    shard: int
    parts: tuple[int, ...]
    budget: float
    explore: float
    fill_in: bool
    newest_s: float


@dataclass(frozen=True, eq=False)
class Proposal:
    """What a shard proposes, C captures. `mass` float64 [C], the weighed uncertainty that each covers of what it is the
    nearest to; `stands_for` int64 [C], captures of its sight; `left` more could have been proposed, too.
    """

    shard: int
    pool: CandidatePool
    mass: Float64Array
    stands_for: IntArray
    sights: int
    left: int


def sketch_part(job: Job, limit: int, part: Any) -> tuple[Sketch, CandidatePool]:
    """Return a sample of a part, and at most one row to see what columns there are."""
    pool = job.open().source.read(part)
    return sketch_rows(pool.embeddings, limit), pool.take(range(min(1, len(pool))))


def survey_part(job: Job, shards: ShardMap, numbered: tuple[int, Any]) -> Survey:
    """Read a part, and leave its sound rows where the workers of their shards will find them."""
    number, part = numbered
    place = job.open()
    labelled = from_bytes(LabelledSet, place.exchange.get(job.guard_key))
    pool = place.source.read(part)
    faults = find_faults(pool, scan_rows(pool.embeddings), frozenset(labelled.ids))
    rows = sound_rows(pool, faults)
    shard_of = _place(UnitRows(pool.embeddings, rows), shards)
    for shard in np.unique(shard_of).tolist():
        place.exchange.put(job.rows_key(number, shard), to_bytes(pool.take(rows[shard_of == shard])))
    sound = pool.describe(rows)
    unsure = rate_uncertainty(job.policy.uncertainty, sound.probabilities, sound.uncertainty)
    moments = moments_of(sound)
    newest_s = newest_moment(moments)
    aged = unsure * weigh_age(moments, job.policy.half_life_s, newest_s)
    eligible = np.isfinite(sound.random_probability)
    may_be_audited = sound.describe(np.flatnonzero(eligible))
    return Survey(
        rows=np.bincount(shard_of, minlength=shards.count),
        arm_rows=np.bincount(shard_of[eligible], minlength=shards.count),
        mass=np.bincount(shard_of, weights=aged, minlength=shards.count).astype(np.float64),
        newest_s=newest_s,
        ids=may_be_audited.ids,
        devices=may_be_audited.devices,
        chances=may_be_audited.random_probability,
        costs=_costs(may_be_audited, job.policy),
        rejected=tuple(RejectedSample(pool.ids[row], why) for row, why in faults.items()),
        on_probation=sound.has_newcomers,
    )


def _place(unit: UnitRows, shards: ShardMap) -> IntArray:
    return np.concatenate([np.empty(0, np.int64), *(shards.place(unit[block]) for block in blocks(len(unit)))])


def _costs(pool: CandidatePool, policy: SelectionPolicy) -> Float64Array:
    return np.ones(len(pool)) if pool.cost is None or policy.budget_unit == "images" else pool.cost


def propose(job: Job, task: ShardTask) -> Proposal:
    """Choose within one shard."""
    exchange, policy = job.open().exchange, job.policy
    guard = from_bytes(LabelledSet, exchange.get(job.guard_key))
    keys = [job.rows_key(part, task.shard) for part in task.parts]
    pool = concatenate([from_bytes(CandidatePool, exchange.get(key)) for key in keys])
    cell_rng, rng = [np.random.default_rng(s) for s in np.random.SeedSequence([job.seed, task.shard]).spawn(2)]
    sights = read_sound(pool, guard, policy, cell_rng)
    allowed = allowed_rows(sights, guard, (), policy)
    picks = pick_active(sights, guard, allowed, policy, task.budget, 0.0, rng, tell_nobody)
    taken = np.isin(sights.cluster, sights.cluster[[pick.row for pick in picks]])
    arm = np.isfinite(sights.pool.random_probability)
    picks += pick_active(sights, guard, allowed & arm & ~taken, policy, task.explore, task.explore, rng, tell_nobody)
    kept = [pick for pick in picks if task.fill_in or FILLED_IN not in pick.caveats]
    rows = np.array([pick.row for pick in kept], np.int64)
    filled_in = np.array([FILLED_IN in pick.caveats for pick in kept], np.bool_)
    return Proposal(
        shard=task.shard,
        pool=_rows_of(sights, rows, np.array([pick.explored for pick in kept], np.bool_)),
        mass=_mass(sights, rows, policy, task.newest_s),
        stands_for=np.where(filled_in, 0, sights.size[sights.cluster[rows]]),
        sights=len(sights.size),
        left=int(allowed.sum()) - len(kept),
    )


def _rows_of(sights: Sights, rows: IntArray, explored: BoolArray) -> CandidatePool:
    """Return rows with their embeddings; only what was drawn at random may be explored later."""
    pool = sights.pool.describe(rows)
    chances = np.where(explored, pool.random_probability, np.nan)
    return replace(pool, embeddings=sights.unit[rows].astype(np.float16), random_probability=chances)


def _mass(sights: Sights, rows: IntArray, policy: SelectionPolicy, newest_s: float) -> Float64Array:
    """Return the weighed uncertainty that each of C rows covers of the sights most like it, float64 [C].

    Age counts from a moment that all shards share, or their masses would not compare. Among the sights of one shard
    any moment will do, since all weights grow alike.
    """
    mass = np.zeros(len(rows))
    if not len(rows):
        return mass
    weights = sights.size.astype(np.float64) ** policy.multiplicity_power * mean_uncertainty(sights)
    weights *= weigh_age(last_seen(sights), policy.half_life_s, newest_s)
    radius = coverage_radius(sights.training, floor=policy.min_radius, ceiling=policy.max_radius)
    faces, heads = sights.unit.take(sights.first_row), sights.unit[rows]
    for block in blocks(len(weights)):
        nearest, cosines = find_nearest(faces[block], heads)
        covered = np.exp(2.0 * (cosines - 1.0) / radius**2)
        mass += np.bincount(nearest, weights=weights[block] * covered, minlength=len(rows))
    return mass


def read_sound(pool: CandidatePool, guard: LabelledSet, policy: SelectionPolicy, rng: np.random.Generator) -> Sights:
    """Read rows that were found sound, without those that have been taken since."""
    scan = scan_rows(pool.embeddings)
    rows = sound_rows(pool, find_faults(pool, scan, frozenset(guard.ids)))
    return read_sights(pool, rows, scan.fingerprint[rows], guard, policy, None, rng, tell_nobody)


def mean_uncertainty(sights: Sights) -> Float64Array:
    """Return each sight's mean uncertainty, float64 [S]."""
    rows = np.bincount(sights.cluster)
    return np.asarray(np.bincount(sights.cluster, weights=sights.uncertainty) / rows)
