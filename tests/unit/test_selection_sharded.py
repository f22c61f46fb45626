"""Selection in shards keeps the laws of selection on one machine, and covers nearly as much."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from curate.errors import SelectionError
from curate.selection.base import CandidatePool, LabelledSet, SampleRole, Selection, SelectionPolicy
from curate.selection.batch import select_batch
from curate.selection.exchange import concatenate, from_bytes, to_bytes
from curate.selection.kernel import rbf_kernel
from curate.selection.rows import unit_rows
from curate.selection.sharded import select_sharded
from curate.selection.shards import map_shards, pack_cells, sketch_rows
from curate.selection.uncertainty import margin_uncertainty
from tests.fakes.sharded_pool import Blobs, open_pieces, run_pickled

DIM, CLASSES = 24, 6
POLICY = SelectionPolicy(max_candidates=400)
COVER = POLICY.model_copy(update={"audit_share": 0.0, "explore_share": 0.0, "max_device_share": 1.0})


def make_pool(scenes: int, frames: int = 3, *, seed: int = 0) -> CandidatePool:
    """Scenes of some classes, each a burst of frames that look alike; a third were kept by the random arm."""
    rng = np.random.default_rng(seed)
    n = scenes * frames
    classes = rng.integers(0, CLASSES, scenes)
    looks = 1.2 * rng.standard_normal((CLASSES, DIM))[classes] + rng.standard_normal((scenes, DIM))
    moved = looks.repeat(frames, axis=0) + 0.05 * rng.standard_normal((n, DIM))
    order = rng.permutation(n)
    names = tuple(f"s{row:06d}" for row in order.tolist())
    device = (np.arange(n) // frames % 5).astype(str)
    return CandidatePool(
        ids=names,
        embeddings=moved.astype(np.float16),
        probabilities=rng.dirichlet(np.full(CLASSES, 0.5), scenes).repeat(frames, axis=0).astype(np.float32),
        devices=tuple(f"cam-{name}" for name in device),
        cameras=tuple(f"cam-{name}" for name in device),
        groups=tuple(f"burst-{row // frames}" for row in range(n)),
        random_probability=np.where(rng.random(n) < 1 / 3, 0.05, np.nan),
        feedback=np.where(rng.random(n) < 0.02, 0.5, 0.0),
        captured_s=np.arange(n) // frames * 60.0 + np.arange(n) % frames * 0.5,
    )


def shard(
    pool: CandidatePool,
    budget: int,
    policy: SelectionPolicy = POLICY,
    labelled: LabelledSet | None = None,
    *,
    seed: int = 3,
    parts: int = 3,
    rows_per_shard: int = 500,
    blobs: Blobs | None = None,
) -> Selection:
    """Select in shards, all that travels between workers pickled."""
    return select_sharded(
        open_pieces(pool, parts, blobs),
        labelled or LabelledSet.empty(DIM),
        policy,
        budget,
        seed,
        run=run_pickled,
        name="job",
        rows_per_shard=rows_per_shard,
    )


def coverage(pool: CandidatePool, chosen: Selection, half_life_s: float | None = None) -> float:
    """Coverage of all rows by the active share, weighed by uncertainty and age, dense."""
    row_of = {name: row for row, name in enumerate(pool.ids)}
    rows = [row_of[item.sample_id] for item in chosen.items if item.role is SampleRole.ACTIVE]
    unit = unit_rows(pool.embeddings)
    assert pool.probabilities is not None
    assert pool.captured_s is not None
    weights = margin_uncertainty(pool.probabilities)
    if half_life_s is not None:
        weights *= 0.5 ** ((pool.captured_s.max() - pool.captured_s) / half_life_s)
    return float((weights * rbf_kernel(unit, unit[rows], 0.5).max(axis=1)).sum())


def one_look_at_a_time(pool: CandidatePool) -> CandidatePool:
    """The same frames, of which alike ones were captured at about the same time, so that each shard has an age."""
    along = unit_rows(pool.embeddings) @ np.linalg.svd(unit_rows(pool.embeddings), full_matrices=False)[2][0]
    return replace(pool, captured_s=1e9 + 10.0 * np.argsort(np.argsort(along)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("half_life_s", [None, 10_000.0, 3_000.0])
def test_shards_cover_as_much_as_one_machine(seed: int, half_life_s: float | None) -> None:
    """The coverage of the pool is at least 0.95 of what one machine reaches, and far above what chance does."""
    pool = one_look_at_a_time(make_pool(1000, seed=seed))
    policy = COVER.model_copy(update={"half_life_s": half_life_s})
    whole = coverage(pool, select_batch(pool, LabelledSet.empty(DIM), policy, 60, seed), half_life_s)
    parted = shard(pool, 60, policy, seed=seed)
    assert len({item.cell for item in parted.items}) > 3
    by_chance = select_batch(pool, LabelledSet.empty(DIM), COVER.model_copy(update={"strategy": "random"}), 60, seed)
    assert coverage(pool, parted, half_life_s) >= 0.95 * whole
    assert coverage(pool, parted, half_life_s) > 1.02 * coverage(pool, by_chance, half_life_s)


def test_what_is_ages_old_is_asked_about_when_nothing_newer_is_left() -> None:
    """A new scene comes first wherever it lies; what is too old for any number to tell its weight fills the batch."""
    pool = make_pool(200)
    new = tuple(f"burst-{number}" for number in range(190, 200))
    policy = COVER.model_copy(update={"half_life_s": 3600.0})
    dated = replace(pool, captured_s=np.where(np.isin(pool.groups, new), 2e9, 1e9 * (pool.random_probability == 0.05)))
    items = shard(dated, 30, policy, rows_per_shard=80).items
    group_of = dict(zip(pool.ids, pool.groups, strict=True))
    assert len({item.cell for item in items}) > 3
    assert {group_of[item.sample_id] for item in items[:10]} == set(new)
    assert len(items) == 30


def test_the_audits_are_those_of_one_machine() -> None:
    """The same seed draws the same captures with the same probabilities, wherever the rows lie."""
    pool = make_pool(300)
    parted, whole = shard(pool, 50), select_batch(pool, LabelledSet.empty(DIM), POLICY, 50, 3)

    def audited(selection: Selection) -> set[tuple[str, float | None]]:
        found = [item for item in selection.items if item.role is SampleRole.AUDIT]
        return {(item.sample_id, item.inclusion_probability) for item in found}

    assert audited(parted) == audited(whole)
    assert len(audited(parted)) == 10


def test_the_answer_depends_on_rows_and_seed_alone() -> None:
    """Neither the order of the rows within a part nor that of the work changes anything; another seed does."""
    pool = make_pool(300)
    turned = pool.take(np.arange(len(pool))[::-1])
    ids = [item.sample_id for item in shard(pool, 40).items]
    # Row i of the turned pool lies in the part it lay in before, since the parts divide the pool evenly.
    assert len(pool) % 3 == 0
    again = shard(turned, 40)
    assert {item.sample_id for item in again.items} == set(ids)
    assert [item.sample_id for item in shard(pool, 40, seed=4).items] != ids


def test_a_batch_is_whole_and_ranked() -> None:
    """Exactly the budget comes back, no capture twice, ranked from 1, each with its reasons and in its shard."""
    pool = make_pool(300)
    selection = shard(pool, 100)
    ids = [item.sample_id for item in selection.items]
    assert len(ids) == len(set(ids)) == 100
    assert [item.rank for item in selection.items] == list(range(1, 101))
    assert selection.per_role == {"active": 80, "audit": 20}
    assert all(item.reasons for item in selection.items)
    assert selection.spent == 100
    leaning = np.isnan(pool.random_probability).mean()
    assert sum(item.explored for item in selection.items) == round(0.5 * leaning * 80) > 10
    assert (selection.pool_size, selection.policy_digest) == (900, POLICY.digest())


@pytest.mark.parametrize("budget", [899, 2000])
def test_a_budget_near_the_pool_takes_what_may_be_taken(budget: int) -> None:
    """Where distinct sights run out copies fill in, and without audits the whole pool can be had."""
    pool = make_pool(300)
    selection = shard(pool, budget, COVER)
    assert len(selection.items) == min(budget, len(pool))


def test_test_labels_stay_unseen_across_shards() -> None:
    """No active pick shares a burst, or the look of a moment, with an audited or held-out capture of any shard."""
    pool = make_pool(200)
    held_out = LabelledSet(("t",), np.asarray(pool.embeddings[[30]], np.float32), ("burst-9",), np.array([True]))
    selection = shard(pool, 120, labelled=held_out)
    group_of = dict(zip(pool.ids, pool.groups, strict=True))
    by_role = {role: {group_of[item.sample_id] for item in selection.items if item.role is role} for role in SampleRole}
    assert not by_role[SampleRole.AUDIT] & by_role[SampleRole.ACTIVE]
    assert not by_role[SampleRole.ACTIVE] & {"burst-9", "burst-10"}


def test_quotas_hold_over_all_shards() -> None:
    """One device may take no more than its share of the whole, whichever shards its captures fall into."""
    pool = make_pool(300)
    policy = COVER.model_copy(update={"max_device_share": 0.25})
    selection = shard(pool, 60, policy)
    assert max(selection.per_device.values()) <= 15
    assert len(selection.items) == 60


def test_copies_in_two_shards_are_one_sight() -> None:
    """A capture that another camera shows just so is not asked twice, and the one asked stands for both."""
    pool = make_pool(200, frames=1)
    doubled = concatenate(
        [pool, replace(pool, ids=tuple(f"{name}x" for name in pool.ids), groups=tuple(f"{g}x" for g in pool.groups))]
    )
    items = shard(doubled, 60, COVER, rows_per_shard=50).items
    assert len({item.sample_id.removesuffix("x") for item in items}) == 60
    assert {item.stands_for for item in items} == {2}


def test_bad_rows_are_reported_by_id() -> None:
    """A row that cannot be used is rejected with its reason, in whatever part it lies, and never chosen."""
    pool = make_pool(100)
    broken = np.array(pool.embeddings)
    broken[7] = np.nan
    selection = shard(replace(pool, embeddings=broken), 60)
    assert [(one.sample_id, one.reason) for one in selection.rejected] == [(pool.ids[7], "embedding is not finite")]
    assert pool.ids[7] not in {item.sample_id for item in selection.items}


def test_nothing_is_left_behind() -> None:
    """What workers left for each other is gone afterwards, also when a worker fails."""
    blobs = Blobs()
    pool = make_pool(100)
    shard(pool, 20, blobs=blobs)
    assert blobs.written > 3
    assert blobs.held == {}
    narrow = LabelledSet(("l",), np.ones((1, DIM), np.float32), ("g",), classes=np.array([0]))
    broken = replace(pool, random_probability=np.full(len(pool), np.nan))

    def fail(work, tasks):  # type: ignore[no-untyped-def]
        if any("Task" in type(task).__name__ for task in tasks):
            raise ConnectionError("a worker died")
        return run_pickled(work, tasks)

    with pytest.raises(ConnectionError):
        select_sharded(open_pieces(broken, 2, blobs), narrow, POLICY, 10, 0, run=fail, name="job", rows_per_shard=80)
    assert blobs.held == {}


def test_what_cannot_be_selected_is_refused() -> None:
    """An empty pool and a budget below 1 are errors, as on one machine."""
    pool = make_pool(10)
    with pytest.raises(SelectionError, match="empty"):
        shard(pool.take([]), 5)
    with pytest.raises(SelectionError, match="empty"):
        shard(pool, 5, parts=0)
    with pytest.raises(SelectionError, match="budget"):
        shard(pool, 0)


def test_one_shard_is_enough_for_a_small_pool() -> None:
    """A pool below the size of a shard is one shard, and a part may be empty."""
    selection = shard(make_pool(20, frames=1), 10, parts=30, rows_per_shard=1000)
    assert len(selection.items) == 10
    assert {item.cell for item in selection.items if item.role is SampleRole.ACTIVE} == {0}


def test_shards_are_neighbourhoods_of_one_size() -> None:
    """No shard holds much more than its rows, none is empty, and rows of one cell stay together."""
    pool = make_pool(1000)
    shards = map_shards([sketch_rows(pool.embeddings, 2000)], 400, np.random.default_rng(0))
    held = np.bincount(shards.place(unit_rows(pool.embeddings)), minlength=shards.count)
    assert shards.count >= 8
    assert held.min() > 0
    assert held.max() <= 600
    assert len(shards.of_cell) == len(shards.cells.centroids)


def test_cells_are_halved_across_their_longest_axis() -> None:
    """Of four cells on a line two make a shard, the left ones and the right ones; a heavy cell is one by itself."""
    line = np.array([[0.0, 0.0], [10.0, 0.1], [1.0, 0.2], [11.0, 0.0]], np.float32)
    assert pack_cells(line, np.ones(4), 2.0).tolist() in ([0, 1, 0, 1], [1, 0, 1, 0])
    heavy = pack_cells(line, np.array([9.0, 1.0, 1.0, 1.0]), 3.0).tolist()
    assert heavy.count(heavy[0]) == 1
    assert len(set(heavy)) == 2


def test_a_sketch_does_not_depend_on_the_order_of_rows() -> None:
    """The same rows are drawn however they are read, copies once, and unusable ones never."""
    rows = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float16)
    rows[3], rows[4] = np.nan, 0
    whole = np.concatenate([rows, rows])
    left, right = sketch_rows(whole, 40), sketch_rows(whole[::-1], 40)
    assert np.array_equal(left.fingerprints, right.fingerprints)
    assert np.array_equal(left.rows, right.rows)
    assert (left.count, len(left.rows), len(set(left.fingerprints.tolist()))) == (996, 40, 40)


def test_tables_travel_as_bytes() -> None:
    """A pool and a labelled set come back with every column as it was, empty ones too; rubbish is refused."""
    pool = replace(make_pool(4), sites=np.arange(12), probation=np.arange(12) % 2 == 0)
    for table in (pool, pool.take([])):
        back = from_bytes(CandidatePool, to_bytes(table))
        for name in vars(table):
            np.testing.assert_equal(getattr(back, name), getattr(table, name), name)
    labelled = LabelledSet(("ä", "b"), np.ones((2, 3), np.float32), ("g", "h"), np.array([True, False]))
    seen = from_bytes(LabelledSet, to_bytes(labelled))
    assert (seen.ids, seen.cameras, seen.testing.tolist()) == (("ä", "b"), None, [True, False])
    with pytest.raises(SelectionError, match="cannot be read"):
        from_bytes(CandidatePool, b"rubbish")
    with pytest.raises(SelectionError, match="feedback"):
        concatenate([pool, replace(pool, feedback=None)])
