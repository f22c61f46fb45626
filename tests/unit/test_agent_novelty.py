"""What was kept, as a sketch: distances stay true, memory stays small, restarts and other models are survived."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from curate.answers.folding import fold_embedding
from curate.answers.kept_sketch import KeptSketch, to_document, unpack_centres
from curate.contracts.assignment import Assignment
from curate.contracts.sketch import MAX_FLEET_CENTRES, SKETCH_DIM, EmbeddingSketch
from edge_agent.capture.novelty import NoveltyMemory, load_sketch
from edge_agent.models.assignments import MAX_DESIRED_BYTES
from tests.fakes.agent_bench import NOW


def half_chord(left: np.ndarray, right: np.ndarray) -> float:
    left, right = left / np.linalg.norm(left), right / np.linalg.norm(right)
    return float(np.linalg.norm(left - right)) / 2.0


def sketch_of(points: np.ndarray, max_centres: int = 256) -> KeptSketch:
    sketch = KeptSketch(max_centres)
    for point in points:
        sketch.add(fold_embedding(point))
    return sketch


@settings(max_examples=25, deadline=None)
@given(dim=st.integers(1, SKETCH_DIM), seed=st.integers(0, 999))
def test_small_embeddings_keep_their_distances(dim: int, seed: int) -> None:
    """An embedding of no more values than a centre is folded without loss."""
    left, right = np.random.default_rng(seed).normal(size=(2, dim)).astype(np.float32)
    assert half_chord(fold_embedding(left), fold_embedding(right)) == pytest.approx(half_chord(left, right), abs=1e-3)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 40), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 999))
def test_the_distance_is_to_the_nearest_of_all_that_was_kept(count: int, scale: float, seed: int) -> None:
    """Whatever the embedding's length, the distance is half the chord to the centre that is nearest."""
    rng = np.random.default_rng(seed)
    sketch = sketch_of(rng.normal(size=(count, SKETCH_DIM)).astype(np.float32))
    point = (scale * rng.normal(size=SKETCH_DIM)).astype(np.float32)
    assert sketch.distance(point) == pytest.approx(min(half_chord(point, row) for row in sketch.centres), abs=1e-3)


def test_large_embeddings_keep_their_distances_nearly() -> None:
    """Folding 1280 values leaves squared distances what they were, give or take an eighth."""
    rng = np.random.default_rng(0)
    left = rng.normal(size=(200, 1280)).astype(np.float32)
    right = (left + rng.normal(size=left.shape) * 0.1).astype(np.float32)
    ratios = [
        (half_chord(fold_embedding(a), fold_embedding(b)) / half_chord(a, b)) ** 2
        for a, b in zip(left, right, strict=True)
    ]
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.05)
    assert np.std(ratios) < 0.2


def test_folding_is_the_same_everywhere() -> None:
    """The signs are fixed: a fleet's sketch means the same on every device and in every version."""
    folded = fold_embedding(np.arange(1, 301, dtype=np.float32))
    assert folded[:3] == pytest.approx([-0.12694, -0.12661, 0.04297], abs=1e-4)
    assert fold_embedding(np.zeros(300, np.float32)).tolist() == [0.0] * SKETCH_DIM


@settings(max_examples=30, deadline=None)
@given(centres=st.integers(1, 12), count=st.integers(1, 150), seed=st.integers(0, 999))
def test_everything_kept_is_near_a_centre_and_centres_are_apart(centres: int, count: int, seed: int) -> None:
    """Never more centres than allowed, none closer than twice the radius to another, and each newcomer near one."""
    sketch = KeptSketch(centres)
    for point in np.random.default_rng(seed).normal(size=(count, 5)).astype(np.float32):
        folded = fold_embedding(point)
        is_new = sketch.distance(folded) > 2.0 * sketch.radius
        assert sketch.add(folded) == is_new
        assert sketch.distance(folded) <= 2.0 * sketch.radius + 1e-3
        assert 1 <= len(sketch) <= centres
    apart = [half_chord(a, b) for row, a in enumerate(sketch.centres) for b in sketch.centres[:row]]
    assert min(apart, default=1.0) >= 2.0 * sketch.radius - 1e-3


def test_more_kinds_than_centres_leave_as_many_centres_as_there_can_be() -> None:
    """Where kinds are about equally far from each other, the sketch stays full: what was seen most is still known."""
    rng = np.random.default_rng(0)
    kinds = np.maximum(rng.normal(size=(200, 64)), 0.0)
    shares = 1.0 / np.arange(1, 101)
    seen = kinds[rng.choice(100, 3000, p=shares / shares.sum())] + 0.2 * rng.normal(size=(3000, 64))
    sketch = sketch_of(seen.astype(np.float32), 64)
    assert len(sketch) == 64
    known = [sketch.distance(fold_embedding(point.astype(np.float32))) for point in seen[-500:]]
    strange = [sketch.distance(fold_embedding(kind.astype(np.float32))) for kind in kinds[100:]]
    assert np.mean(np.array(known)[:, None] < np.array(strange)) > 0.85


@settings(deadline=None)
@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 99))
def test_a_distance_knows_no_scale(scale: float, seed: int) -> None:
    """An embedding that is longer or shorter is as far; one of no length is as far as one at a right angle."""
    rng = np.random.default_rng(seed)
    sketch = sketch_of(rng.normal(size=(6, 300)).astype(np.float32), 4)
    folded = fold_embedding(rng.normal(size=300).astype(np.float32))
    before = sketch.centres.copy()
    assert sketch.distance(folded * np.float32(scale)) == pytest.approx(sketch.distance(folded), abs=1e-4)
    assert sketch.distance(np.zeros(SKETCH_DIM, np.float32)) == pytest.approx(0.5**0.5)
    assert np.array_equal(sketch.centres, before)


def test_what_was_kept_is_no_longer_new(tmp_path: Path) -> None:
    """Before anything is kept everything is new; afterwards its like is near and other things stay far."""
    memory = NoveltyMemory(tmp_path / "n.json")
    street, cat = np.array([1.0, 0.1, 0.0], np.float32), np.array([0.0, 0.1, 1.0], np.float32)
    assert memory.distance(street, "r-1") == 1.0
    memory.remember(street, "r-1")
    assert memory.distance(street, "r-1") == pytest.approx(0.0, abs=1e-3)
    assert memory.distance(cat, "r-1") == pytest.approx(half_chord(street, cat), abs=1e-3)
    assert memory.distance(np.empty(0, np.float32), "r-1") is None


def test_the_sketch_survives_a_restart_and_belongs_to_one_release(tmp_path: Path) -> None:
    """The file brings the sketch back; another release, or another length, starts with nothing."""
    path = tmp_path / "n.json"
    memory = NoveltyMemory(path)
    points = np.random.default_rng(0).normal(size=(50, 300)).astype(np.float32)
    for point in points:
        memory.remember(point, "r-1")
    stop = threading.Event()
    stop.set()
    memory.run(stop)
    again = NoveltyMemory(path)
    assert all((again.distance(point, "r-1") or 0.0) < 0.05 for point in points)
    assert again.distance(points[0], "r-2") == 1.0
    assert again.distance(points[0][:200], "r-1") == 1.0


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00" * 100, b'{"space":"r","dim":3,"count":2,"data":"AAAA"}'])
def test_a_damaged_file_starts_anew(tmp_path: Path, content: bytes) -> None:
    """What cannot be read is forgotten, and the next save works."""
    path = tmp_path / "n.json"
    path.write_bytes(content)
    memory = NoveltyMemory(path)
    memory.remember(np.ones(3, np.float32), "r-1")
    memory.persist()
    saved = load_sketch(path)
    assert saved is not None
    assert (saved.space, saved.dim, saved.count) == ("r-1", 3, 1)


def test_a_disk_that_refuses_is_asked_again(tmp_path: Path) -> None:
    """A failed save is not raised, and the next one has what is missing."""
    folder = tmp_path / "gone"
    memory = NoveltyMemory(folder / "n.json")
    memory.remember(np.ones(3, np.float32), "r-1")
    memory.persist()
    folder.mkdir()
    memory.persist()
    assert load_sketch(folder / "n.json") is not None


def fleet_of(points: np.ndarray, space: str) -> EmbeddingSketch:
    return to_document(sketch_of(points, MAX_FLEET_CENTRES), space, points.shape[1])


def test_what_the_fleet_has_sent_is_not_new(tmp_path: Path) -> None:
    """A fleet's sketch of the same release counts as kept, whether it comes before or after the first frame."""
    points = np.random.default_rng(1).normal(size=(20, 8)).astype(np.float32)
    for frame_first in (True, False):
        memory = NoveltyMemory(tmp_path / "n.json")
        if frame_first:
            memory.remember(-points[0], "r-1")
        memory.follow_fleet(fleet_of(points, "r-1"))
        assert max(memory.distance(point, "r-1") or 0.0 for point in points) < 0.05


def test_a_fleet_sketch_of_another_model_is_ignored_and_told_once(tmp_path: Path) -> None:
    """Another release or another length of embeddings changes nothing and is reported once a sketch."""
    told: list[str] = []
    memory = NoveltyMemory(tmp_path / "n.json", on_mismatch=told.append)
    points = np.ones((1, 8), np.float32)
    for fleet in (fleet_of(points, "r-9"), fleet_of(points[:, :4], "r-1")):
        memory.follow_fleet(fleet)
        for _ in range(3):
            assert memory.distance(points[0], "r-1") == 1.0
            assert memory.distance(points[0], "r-2") == 1.0
    assert len(told) == 2
    assert "r-9" in told[0]


def test_a_fleet_sketch_fits_a_signed_assignment() -> None:
    """The largest one leaves more than half of an assignment's bytes, base64 twice; a larger one is refused."""
    raw = np.zeros((MAX_FLEET_CENTRES, SKETCH_DIM), "<f2").tobytes()
    sketch = EmbeddingSketch.from_raw(raw, space="r-1", dim=1280)
    assignment = Assignment(device_id="cam-1", version=1, fleet_sketch=sketch, issued_at=NOW)
    assert len(assignment.to_bytes()) * 4 / 3 < MAX_DESIRED_BYTES / 2
    with pytest.raises(ValidationError, match="at most 64 centres"):
        Assignment.model_validate(
            assignment.model_dump() | {"fleet_sketch": EmbeddingSketch.from_raw(raw * 2, space="r-1", dim=1280)}
        )


def test_centres_without_a_direction_are_left_out() -> None:
    """A hostile sketch of NaN, infinity and zeros leaves only what can be compared."""
    rows = np.zeros((4, SKETCH_DIM), "<f2")
    rows[0, 0], rows[1, 0], rows[2, 0] = np.nan, np.inf, 3.0
    centres = unpack_centres(EmbeddingSketch.from_raw(rows.tobytes(), space="r", dim=3))
    assert centres.shape == (1, SKETCH_DIM)
    assert centres[0, 0] == 1.0
