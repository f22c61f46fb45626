"""Pools too large to compare all with all: cells, burst stacks, the sparse kernel, and what they must not change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.errors import SelectionError
from curate.selection.balance import Quota, pick_greedily
from curate.selection.base import CandidatePool, LabelledSet, SampleRole, Selection, SelectionPolicy
from curate.selection.batch import select_batch
from curate.selection.candidates import Source, gather_candidates
from curate.selection.cells import ONE_CELL, CellIndex, Cells, find_cells, nearest_by_cell, wanted_cells
from curate.selection.diversity import find_leaders, nearest_similarity
from curate.selection.duplicates import burst_leaders
from curate.selection.kernel import build_kernel, rbf_kernel
from curate.selection.query import QueryProblem
from curate.selection.rows import UnitRows, exact_copies, number_names, scan_rows, unit_rows
from curate.selection.strategies import CoverageUtilities, UHerdingStrategy

DIM = 12
CELLED = SelectionPolicy(max_candidates=200)
"""Pools of more than 200 sights get several cells."""


def make_pool(sights: int = 2400, frames: int = 2, *, seed: int = 0) -> CandidatePool:
    """Bursts of nearly equal frames, in five clouds; float16 as devices send it."""
    rng = np.random.default_rng(seed)
    n = sights * frames
    looks = (3 * rng.normal(size=(5, DIM)))[rng.integers(0, 5, sights)] + rng.normal(size=(sights, DIM))
    embeddings = looks.repeat(frames, axis=0) + rng.normal(scale=0.02, size=(n, DIM))
    return CandidatePool(
        ids=tuple(f"s{i:05d}" for i in range(n)),
        embeddings=embeddings.astype(np.float16),
        probabilities=rng.dirichlet(np.ones(5), size=sights).repeat(frames, axis=0).astype(np.float32),
        devices=tuple(f"cam-{i // frames % 4}" for i in range(n)),
        cameras=tuple(f"cam-{i // frames % 4}" for i in range(n)),
        groups=tuple(f"burst-{i // frames}" for i in range(n)),
        random_probability=np.where(rng.random(n) < 0.3, 0.05, np.nan),
        feedback=np.where(rng.random(n) < 0.02, 0.5, 0.0),
        captured_s=np.arange(n) * 20.0,
    )


def make_labelled(pool: CandidatePool, count: int = 60) -> LabelledSet:
    """Labels beside some of the pool's sights, a third of them held out."""
    rows = np.arange(0, len(pool), len(pool) // count)[:count]
    return LabelledSet(
        ids=tuple(f"known-{i}" for i in range(count)),
        embeddings=pool.embeddings[rows].astype(np.float32) + 0.01,
        groups=tuple(f"known-{i}" for i in range(count)),
        held_out=np.arange(count) % 3 == 0,
        classes=np.arange(count) % 4,
    )


WHOLE = Cells(np.eye(3, dtype=np.float32)).to_bytes()


def ids_of(selection: Selection) -> list[str]:
    return [item.sample_id for item in selection.items]


class CountedRows:
    """Unit rows that count how many were asked for."""

    def __init__(self, unit: np.ndarray) -> None:
        self.unit, self.read = unit, 0

    def __len__(self) -> int:
        return len(self.unit)

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray:
        found = self.unit[rows]
        self.read += len(found)
        return found


def cloud(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return unit_rows(2 * rng.normal(size=(8, DIM))[rng.integers(0, 8, n)] + rng.normal(size=(n, DIM)))


# -- laws of a batch, with several cells ---------------------------------------------------------------------------


def test_a_large_pool_obeys_the_laws() -> None:
    """With several cells: distinct ids, exactly the budget, none labelled, audits apart, the pool left as it was."""
    pool = make_pool()
    before = pool.embeddings.copy()
    selection = select_batch(pool, make_labelled(pool), CELLED, 150, 3)
    assert selection.cells is not None
    assert len(selection.cells.centroids) > 1
    assert len(selection.items) == len(set(ids_of(selection))) == 150
    assert not set(ids_of(selection)) & {f"known-{i}" for i in range(60)}
    roles = {role: {item.cluster for item in selection.items if item.role is role} for role in SampleRole}
    assert not roles[SampleRole.AUDIT] & roles[SampleRole.ACTIVE]
    assert np.array_equal(pool.embeddings, before)


@pytest.mark.parametrize("strategy", ["uherding", "k_center", "margin", "random"])
def test_row_order_does_not_matter_across_cells(strategy: str) -> None:
    """The very same selection comes out whatever the order of the rows, and again for the same seed."""
    pool = make_pool()
    policy = CELLED.model_copy(update={"strategy": strategy})
    shuffled = pool.take(np.random.default_rng(1).permutation(len(pool)))
    first = select_batch(pool, make_labelled(pool), policy, 60, 5)
    assert select_batch(shuffled, make_labelled(pool), policy, 60, 5) == first


def test_embeddings_on_disk_are_chosen_from_alike(tmp_path: Path) -> None:
    """A memory-mapped file gives what the same numbers in memory give."""
    pool = make_pool(600)
    mapped = np.memmap(tmp_path / "e.f16", np.float16, "w+", shape=pool.embeddings.shape)
    mapped[:] = pool.embeddings
    again = select_batch(replace(pool, embeddings=mapped), make_labelled(pool), CELLED, 40, 0)
    assert again == select_batch(pool, make_labelled(pool), CELLED, 40, 0)


def test_broken_rows_of_a_large_pool_are_named() -> None:
    """A row of NaN and a row of zeros are rejected by id, in any block of the reading."""
    pool = make_pool(5000)
    pool.embeddings[17, 3], pool.embeddings[9001] = np.nan, 0
    selection = select_batch(pool, LabelledSet.empty(DIM), CELLED, 40, 0)
    assert [(each.sample_id, each.reason) for each in selection.rejected] == [
        ("s00017", "embedding is not finite"),
        ("s09001", "embedding has no direction"),
    ]


def test_a_frozen_camera_is_one_sight_however_many_bursts() -> None:
    """Thousands of equal frames in bursts of their own, and as many with sensor noise, stay one sight each."""
    rng = np.random.default_rng(0)
    still, dark = rng.normal(size=(2, DIM))
    frames = np.concatenate([np.tile(still, (1500, 1)), dark + rng.normal(scale=0.01, size=(1500, DIM))])
    pool = replace(
        make_pool(1500), embeddings=frames.astype(np.float16), groups=tuple(f"b{i}" for i in range(len(frames)))
    )
    selection = select_batch(pool, LabelledSet.empty(DIM), CELLED.model_copy(update={"audit_share": 0.0}), 400, 0)
    assert selection.distinct_sights == 2
    assert len(set(ids_of(selection))) == 400


def test_cells_find_the_sights_that_all_pairs_find() -> None:
    """Near-duplicates across bursts are found almost as often within cells as among all pairs."""
    pool = make_pool(1200, 3)
    apart = replace(pool, groups=pool.ids)  # no burst helps
    dense = select_batch(apart, LabelledSet.empty(DIM), SelectionPolicy(max_candidates=4000), 10, 0)
    celled = select_batch(apart, LabelledSet.empty(DIM), CELLED, 10, 0)
    assert dense.distinct_sights <= celled.distinct_sights <= 1.02 * dense.distinct_sights


def test_a_later_round_keeps_its_cells() -> None:
    """Cells of an earlier round are used again, stay comparable, and remember the new rows."""
    pool = make_pool()
    first = select_batch(pool, LabelledSet.empty(DIM), CELLED, 20, 0).cells
    assert first is not None
    more = make_pool(seed=1)
    both = [np.concatenate([getattr(pool, name), getattr(more, name)]) for name in ("embeddings", "probabilities")]
    grown = CandidatePool(
        ids=(*pool.ids, *(f"t{name}" for name in more.ids)),
        embeddings=both[0],
        probabilities=both[1],
        devices=(*pool.devices, *more.devices),
        cameras=(*pool.cameras, *more.cameras),
        groups=(*pool.groups, *(f"t{name}" for name in more.groups)),
        random_probability=np.full(2 * len(pool), np.nan),
    )
    second = select_batch(grown, LabelledSet.empty(DIM), CELLED, 20, 1, cells=first).cells
    assert second is not None
    assert second.version == first.version
    assert len(second.seen) > len(first.seen)
    assert set(first.seen.tolist()) <= set(second.seen.tolist())


@pytest.mark.parametrize(("field", "part"), [("max_class_share", "class"), ("max_hour_share", "hour")])
def test_class_and_hour_quotas_hold_or_give_way_aloud(field: str, part: str) -> None:
    """No class and no hour gets more than its share while others have sights; else the notes say that it gave way."""
    pool = make_pool(400)
    policy = SelectionPolicy.model_validate({"audit_share": 0, "explore_share": 0, field: 0.25})
    row_of = {name: row for row, name in enumerate(pool.ids)}
    parts = {
        "class": pool.probabilities.reshape(-1, 2, 5).mean(axis=1).argmax(axis=1).repeat(2),
        "hour": (pool.captured_s // 3600).astype(int) % 24,
    }[part]
    selection = select_batch(pool, LabelledSet.empty(DIM), policy, 40, 0)
    assert not selection.notes
    assert np.bincount([parts[row_of[name]] for name in ids_of(selection)]).max() <= 10
    one = replace(
        pool,
        probabilities=np.tile(np.array([0.6, 0.1, 0.1, 0.1, 0.1], np.float32), (len(pool), 1)),
        captured_s=np.zeros(len(pool)),
    )
    forced = select_batch(one, LabelledSet.empty(DIM), policy, 40, 0)
    assert len(forced.items) == 40
    assert any(f"beyond the {part} quota" in note for note in forced.notes)


# -- the parts ---------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 12), st.floats(0.2, 1.0))
def test_bursts_at_once_are_bursts_one_by_one(seed: int, n: int, bursts: int, threshold: float) -> None:
    """Comparing many bursts together leads every row as the leader rule does on its burst alone."""
    rng = np.random.default_rng(seed)
    unit, groups = unit_rows(rng.normal(size=(n, 3))), rng.integers(0, bursts, n)
    expected = np.arange(n)
    for burst in range(bursts):
        rows = np.flatnonzero(groups == burst)
        expected[rows] = rows[find_leaders(unit[rows], threshold)]
    assert burst_leaders(unit, groups, threshold).tolist() == expected.tolist()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=30))
def test_exact_copies_point_to_the_first_of_their_group(rows: list[tuple[int, int]]) -> None:
    """A row's copy is the first row of its group with the same numbers, and rows without one are their own."""
    looks = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float16)
    embeddings = looks[[look for look, _ in rows]] if rows else looks[:0]
    groups = np.array([group for _, group in rows], np.int64)
    index = np.arange(len(rows))
    found = exact_copies(embeddings, index, scan_rows(embeddings).fingerprint, groups)
    assert found.tolist() == [rows.index(row) for row in rows]


def test_a_fingerprint_that_lies_collapses_nothing() -> None:
    """Rows that differ stay apart even if their fingerprints are equal: the bytes decide."""
    embeddings = np.array([[1, 2], [3, 4], [1, 2]], np.float32)
    same = np.zeros(3, np.uint64)
    assert exact_copies(embeddings, np.arange(3), same, np.zeros(3, np.int64)).tolist() == [0, 1, 0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("width", [3, 4, 8])
def test_fingerprints_tell_rows_apart(dtype: type, width: int) -> None:
    """Equal rows share a fingerprint and a change in any single number gives another, in any width and precision."""
    rows = np.tile(np.random.default_rng(0).normal(size=width), (width + 2, 1)).astype(dtype)
    rows[np.arange(width), np.arange(width)] += 1
    prints = scan_rows(rows).fingerprint
    assert prints[-1] == prints[-2]
    assert len(set(prints.tolist())) == width + 1


def test_equal_names_share_a_number() -> None:
    """Names are numbered from 0 as they first appear."""
    assert number_names(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]


def test_cells_grow_with_the_pool() -> None:
    """What fits is one cell; beyond it a cell holds a thousand rows, and √N of a huge pool."""
    assert [wanted_cells(n, 4000) for n in (0, 4000, 4001, 100_000, 1_000_000, 9_000_000)] == [1, 1, 5, 100, 1000, 3000]


def test_rows_seen_before_are_not_read_again() -> None:
    """Assigning a grown pool computes the new rows only, gives the old ones the same cells, and survives storage."""
    old, new = cloud(500), cloud(80, seed=1)
    cells = find_cells(old, 6, np.random.default_rng(0))
    prints = scan_rows(np.concatenate([old, new])).fingerprint
    first, remembering = cells.assign(CountedRows(old), prints[:500])
    stored = Cells.from_bytes(remembering.to_bytes())
    rows = CountedRows(np.concatenate([old, new]))
    second, _ = stored.assign(rows, prints)
    assert rows.read == 80
    assert second[:500].tolist() == first.tolist()
    assert second[500:].tolist() == (new @ cells.centroids.T).argmax(axis=1).tolist()
    assert stored.version == cells.version


@pytest.mark.parametrize("raw", [b"", b"nonsense", WHOLE[:200], WHOLE[:-30], Cells(np.ones(3, np.float32)).to_bytes()])
def test_stored_cells_that_make_no_sense_are_refused(raw: bytes) -> None:
    """A damaged or foreign file is a SelectionError."""
    with pytest.raises(SelectionError, match="cells"):
        Cells.from_bytes(raw)


def test_nearest_in_cells_is_nearest() -> None:
    """With one cell the nearest reference is exact; with many it is never overrated, and copies are always found."""
    unit = cloud(1500)
    noise = np.random.default_rng(2).normal(scale=0.02, size=(300, DIM))
    references = unit_rows(np.concatenate([cloud(300, seed=2), unit[::5] + noise]))
    exact = nearest_similarity(unit, references)
    whole = nearest_by_cell(unit, CellIndex.whole(1500), references, ONE_CELL)
    assert whole == pytest.approx(exact, abs=1e-6)
    cells = find_cells(unit, 60, np.random.default_rng(0))
    assert len(cells.centroids) > 30
    near = nearest_by_cell(unit, CellIndex.build(cells.place(unit), cells), references, cells)
    assert (near <= exact + 1e-6).all()
    assert near[exact >= 0.99] == pytest.approx(exact[exact >= 0.99], abs=1e-6)
    assert np.mean(near >= exact - 1e-6) > 0.9


def test_one_cell_gives_the_full_kernel() -> None:
    """With room for all, the kernel of one cell is the dense one, number by number."""
    unit = cloud(50)
    kernel = build_kernel(unit, np.arange(0, 50, 2), CellIndex.whole(50), 0.7, max_entries=50 * 50)
    assert kernel.columns.reshape(25, 50).tolist() == [list(range(50))] * 25
    assert kernel.values.reshape(25, 50) == pytest.approx(rbf_kernel(unit[::2], unit, 0.7), abs=1e-6)


def test_a_bounded_kernel_keeps_the_nearest() -> None:
    """With room for a few, each candidate keeps itself and its most similar points, and the bound holds."""
    unit = cloud(400)
    cells = find_cells(unit, 5, np.random.default_rng(0))
    index = CellIndex.build(cells.place(unit), cells)
    kernel = build_kernel(unit, np.arange(400), index, 0.7, max_entries=400 * 10)
    assert len(kernel.values) <= 400 * 10
    for candidate in range(400):
        row = slice(kernel.starts[candidate], kernel.starts[candidate + 1])
        around = index.around(int(index.of[candidate]))
        best = np.sort(unit[around] @ unit[candidate])[-10:]
        assert candidate in kernel.columns[row]
        assert np.sort(kernel.values[row]) == pytest.approx(np.exp((best - 1) * 2 / 0.49), abs=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_greedy_over_cells_is_worth_what_greedy_over_all_is(seed: int) -> None:
    """What the bounded kernel over cells picks covers at least 0.95 of what the dense greedy's picks cover."""
    rng = np.random.default_rng(seed)
    unit = cloud(1500, seed)
    cells = find_cells(unit, 30, rng)
    problem = QueryProblem(
        embeddings=unit,
        probabilities=None,
        weights=np.ones(1500),
        evidence=np.zeros(1500),
        candidates=np.arange(1500),
        uncertainty=rng.random(1500),
    )
    celled = replace(problem, cells=CellIndex.build(cells.place(unit), cells), max_entries=1500 * 40)
    dense = rbf_kernel(unit, unit, 1.0)

    def worth(of: QueryProblem) -> float:
        utilities = UHerdingStrategy().utilities(of, rng)
        picks = [pick.candidate for pick in pick_greedily(utilities, (), 60, np.arange(1500))]
        return float(problem.uncertainty @ dense[picks].max(axis=0))

    assert worth(celled) >= 0.95 * worth(problem)


def test_every_source_brings_candidates() -> None:
    """A short list holds the best of each source, no device is crowded out, and the rest goes to the first source."""
    scores = np.arange(100) / 100
    rare = np.where(np.arange(100) < 5, 1.0, 0.0)
    devices = (np.arange(100) >= 90).astype(np.int64)
    kept = gather_candidates([Source(scores, 0.5), Source(rare, 0.2)], devices, 30)
    assert len(kept) == len(set(kept.tolist())) == 30
    assert set(range(5)) <= set(kept.tolist())
    assert {0, 1} == set(devices[kept].tolist())
    assert (kept >= 70).sum() >= 20
    assert gather_candidates([Source(scores, 0.5)], devices, 100).tolist() == list(range(100))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 30), st.integers(1, 6), st.integers(1, 6))
def test_several_quotas_hold_while_they_can(seed: int, n: int, budget: int, by_device: int, by_hour: int) -> None:
    """The budget is always spent; a pick beyond a quota says so, and one that says nothing is within all of them."""
    rng = np.random.default_rng(seed)
    quotas = [
        Quota("device", rng.integers(0, 3, n).tolist(), by_device),
        Quota("hour", rng.integers(0, 3, n).tolist(), by_hour),
    ]
    kernel = build_kernel(cloud(n, seed % 100), np.arange(n), CellIndex.whole(n), 1.0, max_entries=n * n)
    utilities = CoverageUtilities(kernel, np.ones(n, np.float32), np.zeros(n, np.float32))
    picks = pick_greedily(utilities, quotas, budget, np.arange(n))
    assert len({pick.candidate for pick in picks}) == len(picks) == min(budget, n)
    for quota in quotas:
        taken: dict[object, int] = {}
        for pick in picks:
            part = quota.part[pick.candidate]
            taken[part] = taken.get(part, 0) + 1
            assert (quota.name in pick.over_quota) == (taken[part] > quota.limit)


def test_a_view_reads_what_it_is_asked_for() -> None:
    """A view of chosen rows gives their unit vectors by slice and by number, and a view of a view likewise."""
    source = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float16)
    view = UnitRows(source, np.array([8, 2, 5]))
    assert view[:2] == pytest.approx(unit_rows(source[[8, 2]]))
    assert view.take(np.array([2, 0]))[slice(None)] == pytest.approx(unit_rows(source[[5, 8]]))
