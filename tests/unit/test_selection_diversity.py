"""Near-duplicates, similarity and the coverage kernel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.errors import SelectionError
from curate.selection.diversity import CHUNK_ROWS, Moments, coverage_radius, nearest_similarity, shared_scenes
from curate.selection.duplicates import MAX_STEPS_BACK, border_leaders, near_duplicate_clusters
from curate.selection.kernel import rbf_kernel
from curate.selection.rows import unit_rows


def rows(*angles_deg: float) -> np.ndarray:
    angles = np.radians(angles_deg)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_exact_copies_are_one_cluster_at_any_threshold() -> None:
    """Copies cluster even at threshold 1, where float rounding alone would split them."""
    copies = np.repeat(np.random.default_rng(0).normal(size=(5, 17)).astype(np.float32), 3, axis=0)
    clusters = near_duplicate_clusters(copies, ["g"] * 15, 1.0)
    assert clusters.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]


def test_similarity_does_not_chain() -> None:
    """A slow sweep is cut into several clusters: each member is near its leader, not only near a neighbour."""
    sweep = rows(*range(0, 91, 2))
    clusters = near_duplicate_clusters(sweep, ["g"] * len(sweep), float(np.cos(np.radians(10))))
    assert clusters.max() + 1 >= 4
    for cluster in range(clusters.max() + 1):
        members = sweep[clusters == cluster]
        assert (members @ members.T).min() >= np.cos(np.radians(21))


def test_one_burst_may_be_held_to_a_looser_threshold() -> None:
    """Frames 15 degrees apart are one sight within a burst and two sights across bursts."""
    pair = rows(0, 15)
    tight, loose = float(np.cos(np.radians(5))), float(np.cos(np.radians(20)))
    assert near_duplicate_clusters(pair, ["a", "a"], tight, group_threshold=loose).tolist() == [0, 0]
    assert near_duplicate_clusters(pair, ["a", "b"], tight, group_threshold=loose).tolist() == [0, 1]


def test_clusters_found_across_blocks() -> None:
    """Copies that lie in different blocks of the computation still meet."""
    base = np.random.default_rng(1).normal(size=(CHUNK_ROWS // 2, 24)).astype(np.float32)
    clusters = near_duplicate_clusters(np.tile(base, (3, 1)), [f"g{i}" for i in range(3 * len(base))], 0.999)
    assert clusters.tolist() == list(range(len(base))) * 3


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.floats(0.2, 1.0))
def test_leaders_are_apart_and_members_are_near(seed: int, n: int, threshold: float) -> None:
    """Every row is at least as similar as the threshold to some member, and cluster numbers have no gap."""
    data = np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)
    clusters = near_duplicate_clusters(data, [f"g{i}" for i in range(n)], threshold)
    assert sorted(set(clusters.tolist())) == list(range(clusters.max() + 1))
    cosines = unit_rows(data) @ unit_rows(data).T
    for cluster in range(clusters.max() + 1):
        inside = cosines[np.ix_(clusters == cluster, clusters == cluster)]
        assert inside.min(axis=1).max() >= min(threshold, 1 - 1e-6) - 1e-5  # one member, the leader, is near all


def test_nonsense_is_refused() -> None:
    """NaN embeddings and mismatched groups raise SelectionError."""
    with pytest.raises(SelectionError, match="finite"):
        near_duplicate_clusters(np.array([[np.nan, 1]], np.float32), ["g"], 0.9)
    with pytest.raises(SelectionError, match="groups"):
        near_duplicate_clusters(rows(0, 1), ["g"], 0.9)


def test_no_rows_no_clusters() -> None:
    """An empty matrix has an empty clustering."""
    assert near_duplicate_clusters(np.empty((0, 4), np.float32), [], 0.9).tolist() == []


def test_kernel_is_the_gaussian_of_the_distance() -> None:
    """The block-wise kernel equals the formula computed pair by pair."""
    a, b = (
        unit_rows(np.random.default_rng(0).normal(size=(7, 5))),
        unit_rows(np.random.default_rng(1).normal(size=(4, 5))),
    )
    squared = ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2)
    assert rbf_kernel(a, b, 0.7) == pytest.approx(np.exp(-squared / 0.7**2), abs=1e-6)


def test_nearest_similarity_without_references_is_minus_one() -> None:
    """With nothing to compare with, everything is as far as can be."""
    assert nearest_similarity(rows(0, 90), np.empty((0, 2), np.float32)).tolist() == [-1.0, -1.0]
    assert nearest_similarity(rows(0, 60), rows(0)) == pytest.approx([1.0, 0.5])


def test_radius_shrinks_as_labels_crowd() -> None:
    """The radius starts at the ceiling, follows the spacing of the labels, and stops at the floor."""
    few, more, crowd = rows(0), rows(*range(0, 181, 30)), rows(*range(0, 181, 1))
    radii = [coverage_radius(labels, floor=0.1, ceiling=1.0) for labels in (few, more, crowd)]
    assert radii == pytest.approx([1.0, 2 * np.sin(np.radians(15)), 0.1], abs=1e-3)


def test_a_scene_needs_camera_moment_and_likeness() -> None:
    """Only captures of one camera, close in time and alike, share a scene."""
    moments = Moments(rows(0, 10, 80, 5, 5), ("a", "a", "a", "b", "a"), np.array([0.0, 1.0, 1.0, 0.0, 9.0]))
    pairs = shared_scenes(moments, moments.take([0]), gap_s=1.0, cosine=0.6)
    assert pairs == [(0, 0), (1, 0)]


def across(angles: tuple[float, ...], seconds: tuple[float, ...], groups: tuple[int, ...], cameras: str) -> list[int]:
    """Join what lies at most 2 s and about 26 degrees apart."""
    seen = Moments(rows(*angles), tuple(cameras), np.array(seconds))
    return border_leaders(seen, np.array(groups), gap_s=2.0, threshold=0.9).tolist()


def test_a_burst_across_a_border_is_one_sight() -> None:
    """The earlier of two look-alikes leads; of two that could lead, the more alike; order in the list is no matter."""
    assert across((10, 0), (1.0, 0.0), (1, 0), "aa") == [1, 1]
    assert across((0, 20, 15), (0.0, 0.5, 1.0), (0, 0, 1), "aaa") == [0, 1, 1]


@pytest.mark.parametrize(
    ("angles", "seconds", "groups", "cameras"),
    [
        ((0, 60), (0.0, 1.0), (0, 1), "aa"),
        ((0, 10), (0.0, 3.0), (0, 1), "aa"),
        ((0, 10), (0.0, 1.0), (0, 0), "aa"),
        ((0, 10), (0.0, 1.0), (0, 1), "ab"),
        ((0, 10), (0.0, np.nan), (0, 1), "aa"),
        ((), (), (), ""),
    ],
    ids=["unlike", "long after", "told apart within the group", "another camera", "time unknown", "nothing"],
)
def test_what_a_border_does_not_join(
    angles: tuple[float, ...], seconds: tuple[float, ...], groups: tuple[int, ...], cameras: str
) -> None:
    """Only one camera's look-alikes of two groups, close in time, are joined."""
    assert across(angles, seconds, groups, cameras) == list(range(len(angles)))


def test_borders_do_not_chain() -> None:
    """What is led by one sight leads no other, however slowly the view turns."""
    assert across((0, 20, 40, 60), (0.0, 1.0, 2.0, 3.0), (0, 1, 2, 3), "aaaa") == [0, 0, 2, 2]


def test_a_stopped_clock_costs_no_square() -> None:
    """Of captures of one moment each is compared with a few before it."""
    count = 10_000
    seen = Moments(np.tile(rows(0), (count, 1)), ("a",) * count, np.zeros(count))
    leaders = border_leaders(seen, np.arange(count), gap_s=1.0, threshold=0.9)
    assert np.flatnonzero(leaders == np.arange(count)).tolist() == list(range(0, count, MAX_STEPS_BACK + 1))
