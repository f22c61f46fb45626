"""Cluster-Margin and TypiClust: clusters take turns."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.selection.balance import pick_greedily
from curate.selection.cells import CellIndex, find_cells
from curate.selection.query import QueryProblem
from curate.selection.rows import unit_rows
from curate.selection.turns import (
    ClusterMarginStrategy,
    TurnUtilities,
    TypiClustStrategy,
    link,
    link_by_cell,
    neighbour_distance,
)

SIZES = (40, 12, 3)
DIM = 6


def make_clouds(sizes: tuple[int, ...] = SIZES, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows around as many axes, far apart, and the cloud of each."""
    rng = np.random.default_rng(seed)
    cloud = np.repeat(np.arange(len(sizes)), sizes)
    return unit_rows(np.eye(DIM)[cloud] + rng.normal(scale=0.05, size=(len(cloud), DIM))), cloud


def make_problem(rows: np.ndarray, *, batch: int, uncertainty: np.ndarray | None = None) -> QueryProblem:
    n = len(rows)
    return QueryProblem(
        embeddings=rows,
        probabilities=None,
        weights=np.ones(n),
        evidence=np.zeros(n),
        candidates=np.arange(n),
        uncertainty=np.full(n, 0.5) if uncertainty is None else uncertainty,
        batch=batch,
    )


def picks_of(strategy: ClusterMarginStrategy | TypiClustStrategy, problem: QueryProblem, budget: int) -> list[int]:
    utilities = strategy.utilities(problem, np.random.default_rng(0))
    found = pick_greedily(utilities, (), budget, np.arange(len(problem.candidates)))
    return [int(problem.candidates[pick.candidate]) for pick in found]


@settings(max_examples=40)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=25), st.integers(0, 2**16))
def test_turns_go_round_the_clusters(cluster: list[int], seed: int) -> None:
    """No cluster is picked from again while another with something left has had fewer picks; within one, in order."""
    order = np.random.default_rng(seed).permutation(len(cluster))
    utilities = TurnUtilities(np.array(cluster), order, np.zeros(5))
    left, had = Counter(cluster), Counter[int]()
    place = {int(row): number for number, row in enumerate(order)}
    last = dict.fromkeys(cluster, -1)
    for pick in pick_greedily(utilities, (), len(cluster), np.arange(len(cluster))):
        mine = cluster[pick.candidate]
        assert had[mine] == min(had[each] for each in left if left[each])
        assert place[pick.candidate] > last[mine]
        last[mine] = place[pick.candidate]
        had[mine] += 1
        left[mine] -= 1


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 2**16))
def test_linkage_gives_at_most_so_many_clusters(n: int, wanted: int, seed: int) -> None:
    """Clusters are numbered from 0 without a gap, at most as many as wanted, and exactly as many of distinct rows."""
    rows = unit_rows(np.random.default_rng(seed).normal(size=(n, 4)))
    found = link(rows, wanted)
    assert sorted(set(found.tolist())) == list(range(min(n, wanted)))


def test_linkage_finds_the_clouds() -> None:
    """Rows far apart are linked last."""
    rows, cloud = make_clouds()
    found = link(rows, len(SIZES))
    assert len({(int(a), int(b)) for a, b in zip(found, cloud, strict=True)}) == len(SIZES)


def test_cluster_margin_asks_one_of_each_cluster_smallest_first() -> None:
    """A batch of three takes one of each of three clouds, beginning with the smallest."""
    rows, cloud = make_clouds()
    picks = picks_of(ClusterMarginStrategy(margin_factor=30), make_problem(rows, batch=3), 3)
    assert cloud[picks].tolist() == [2, 1, 0]


def test_cluster_margin_looks_at_small_margins_only() -> None:
    """What is not among the smallest margins comes after all that are, by its own margin."""
    rows, _ = make_clouds()
    uncertainty = np.random.default_rng(5).permutation(len(rows)) / len(rows)
    picks = picks_of(
        ClusterMarginStrategy(margin_factor=4), make_problem(rows, batch=5, uncertainty=uncertainty), len(rows)
    )
    by_margin = np.argsort(-uncertainty)
    assert set(picks[:20]) == set(by_margin[:20].tolist())
    assert picks[20:] == by_margin[20:].tolist()


def test_cluster_margin_believes_feedback() -> None:
    """A dismissed sight is among the small margins whatever the model says."""
    rows, _ = make_clouds()
    evidence = np.zeros(len(rows))
    evidence[7] = 1.0
    problem = replace(make_problem(rows, batch=1), evidence=evidence)
    assert picks_of(ClusterMarginStrategy(margin_factor=1), problem, 1) == [7]


def test_cluster_margin_links_cell_by_cell() -> None:
    """In a pool of several cells a cluster lies in one cell, and linkage sees no more rows than a kernel has."""
    rng = np.random.default_rng(2)
    rows = unit_rows(rng.normal(size=(300, DIM)))
    cells = find_cells(rows, 6, rng)
    index = CellIndex.build(cells.place(rows), cells)
    problem = replace(make_problem(rows, batch=40), cells=index, max_entries=20**2)
    cluster = link_by_cell(problem, problem.candidates)
    assert all(len(set(index.of[cluster == each].tolist())) == 1 for each in set(cluster.tolist()))
    assert sorted(set(cluster.tolist())) == list(range(cluster.max() + 1))
    assert 30 <= cluster.max() + 1 <= 60
    assert max(Counter(cluster.tolist()).values()) <= 20


def test_typiclust_asks_the_middle_of_the_largest_cloud_first() -> None:
    """One of each cloud, the largest first, and of each the sight that is nearest to its neighbours."""
    rows, cloud = make_clouds((40, 12, 6))
    picks = picks_of(TypiClustStrategy(neighbours=40), make_problem(rows, batch=3), 3)
    assert cloud[picks].tolist() == [0, 1, 2]
    for pick in picks:
        mates = np.flatnonzero(cloud == cloud[pick])
        spread = [np.linalg.norm(rows[mates] - rows[row], axis=1).sum() for row in mates]
        assert pick == mates[int(np.argmin(spread))]


def test_typiclust_leaves_labelled_clouds_for_later() -> None:
    """The largest cloud holds a label already: the others come first."""
    rows, cloud = make_clouds((40, 12, 6))
    problem = replace(make_problem(rows, batch=2), labelled=unit_rows(np.eye(DIM)[:1]))
    assert cloud[picks_of(TypiClustStrategy(), problem, 3)].tolist() == [1, 2, 0]


def test_typiclust_goes_round_when_clusters_run_out() -> None:
    """With fewer clusters than places every cluster is asked as often as the others while it can be."""
    rows, cloud = make_clouds((40, 12, 6))
    picks = picks_of(TypiClustStrategy(max_clusters=3), make_problem(rows, batch=12), 12)
    assert Counter(cloud[picks].tolist()) == {0: 4, 1: 4, 2: 4}


def test_typiclust_weighs_sights_by_what_they_stand_for() -> None:
    """A cloud of few sights that were seen often is larger than one of many seen once."""
    rows, cloud = make_clouds((40, 12, 6))
    problem = replace(make_problem(rows, batch=3), weights=np.where(cloud == 2, 10.0, 1.0))
    assert cloud[picks_of(TypiClustStrategy(), problem, 3)].tolist() == [2, 0, 1]


def test_neighbours_are_sought_among_a_few_of_many() -> None:
    """A cluster of too many sights is sampled: the sight in its middle is still typical, none is its own neighbour."""
    rows, _ = make_clouds((400,))
    index = CellIndex.whole(400)
    spread = neighbour_distance(rows, index, np.arange(400), 10, most=50)
    exact = np.sort(np.linalg.norm(rows[:, None] - rows[None], axis=2), axis=1)[:, 1:11].mean(axis=1)
    assert np.corrcoef(spread, exact)[0, 1] > 0.8
    assert spread.min() > 0.05
