"""What the fleet has sent travels to its devices: bounded, rarely, and only where it can be compared."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, Root

from curate.answers.folding import fold_embedding, fold_rows
from curate.answers.kept_sketch import unpack_centres
from curate.catalog.columns import EmbeddingBlock, Position
from curate.catalog.models import DatasetVersion, ModelRow, ModelStatus
from curate.contracts.assignment import Assignment, CapturePolicySpec
from curate.contracts.embedding import Embedding
from curate.contracts.paths import desired_key
from curate.contracts.signing import ASSIGNMENT_KEYS_FIELD
from curate.contracts.sketch import MAX_FLEET_CENTRES
from curate.contracts.telemetry import DeviceCounters, ReportedState
from curate.errors import StorageUnavailableError
from curate.release.assignments import sign_assignment
from curate.release.fleet_sketch import SentSketch, grow_sketch, is_due, should_tell
from curate.release.keys import load_key
from curate.settings import ScheduleSettings
from curate.storage.local import LocalBlobStore
from edge_agent.capture.novelty import NoveltyMemory
from edge_agent.models.assignments import MAX_DESIRED_BYTES
from edge_agent.models.trust import TrustFloor, verify_assignment
from flows._fleet_sketch import refresh_sketches, sketch_for
from flows._wiring import Services
from flows.commands import add_device, assign_device, start_repository
from tests.catalog_builders import batch, capture, plan
from tests.fakes.wiring import local_services

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
NOVEL = CapturePolicySpec(novel_budget_fraction=0.02)
DIM = 8
Rows = NDArray[np.float16]


def _points(count: int, seed: int = 0, dim: int = DIM) -> Rows:
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float16)


def _blocks(points: Rows, size: int) -> list[EmbeddingBlock]:
    return [
        EmbeddingBlock(points[start : start + size], Position(NOW, f"s-{start:06d}"))
        for start in range(0, len(points), size)
    ]


def _grown(points: Rows, before: SentSketch | None = None, size: int = 50, now: datetime = NOW) -> SentSketch | None:
    return grow_sketch(before, _blocks(points, size), release_id="r0001", now=now)


def _distances(found: SentSketch, points: Rows) -> NDArray[np.float64]:
    cosine = (fold_rows(points.astype("f4")) @ unpack_centres(found.sketch).T).max(axis=1).astype(np.float64)
    return np.asarray(np.sqrt(np.maximum(0.0, (1.0 - cosine) / 2.0)))


# -- pure ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 127, 128, 300, 1280])
def test_many_fold_as_one_does(dim: int) -> None:
    """Folding rows together gives what the device gives for each; one of no length is left out."""
    rows = _points(20, dim=dim).astype("f4")
    rows[7] = 0.0
    expected = [fold_embedding(row) for number, row in enumerate(rows) if number != 7]
    assert fold_rows(rows) == pytest.approx(np.array(expected), abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 400), size=st.integers(1, 90), seed=st.integers(0, 99))
def test_a_sketch_is_small_and_near_everything(count: int, size: int, seed: int) -> None:
    """However many were sent, in whatever blocks: few centres, each capture near one, the same every time."""
    points = _points(count, seed)
    found = _grown(points, size=size)
    assert found is not None
    assert found == _grown(points, size=size)
    assert 1 <= found.sketch.count <= MAX_FLEET_CENTRES
    assert (found.sketch.space, found.sketch.dim) == ("r0001", DIM)
    assert np.median(_distances(found, points)) <= 2.0 * found.sketch.radius + 2e-3
    assert found.reached == _blocks(points, size)[-1].last


def test_nothing_sent_is_no_sketch() -> None:
    """Without a capture, or with none that has a direction, there is nothing to tell."""
    assert _grown(_points(0)) is None
    assert _grown(np.zeros((3, DIM), np.float16)) is None


def test_more_of_the_same_changes_no_byte() -> None:
    """What lies near a centre moves the place in the order and leaves the document as it was."""
    points = _points(30)
    first = _grown(points)
    assert first is not None
    again = _grown(np.repeat(points, 20, axis=0), first, now=NOW + DAY)
    assert again is not None
    assert again.sketch is first.sketch
    assert (again.begun_at, again.looked_at) == (NOW, NOW + DAY)
    other = _grown(-points, again)
    assert other is not None
    assert other.sketch != first.sketch
    assert _distances(other, np.concatenate([points, -points])).max() <= 2.0 * other.sketch.radius + 2e-3


def test_the_state_survives_being_stored() -> None:
    """As JSON and back it is the same, so that the next run goes on where this one ended."""
    found = _grown(_points(200))
    assert found is not None
    assert SentSketch.model_validate_json(found.model_dump_json()) == found


def test_waits_double_up_to_the_interval() -> None:
    """Looked at every minute, a sketch is renewed often at first and then once an interval."""
    interval, looks = timedelta(hours=6), list[datetime]()
    state: SentSketch | None = None
    for minute in range(0, 48 * 60, 10):
        now = NOW + timedelta(minutes=minute)
        if is_due(state, now, interval):
            state = _grown(_points(1), state, now=now)
            looks.append(now)
    waits = [int((b - a).total_seconds() // 60) for a, b in itertools.pairwise(looks)]
    assert waits[:7] == [10, 10, 20, 40, 80, 160, 320]
    assert set(waits[7:]) == {360}


def test_only_who_can_use_it_is_told() -> None:
    """Another release, no novel arm, the same sketch again, or one made by hand to go back: nothing is signed."""
    found = _grown(_points(5))
    assert found is not None
    fits = Assignment(device_id="cam-1", version=3, release_id="r0001", capture_policy=NOVEL, issued_at=NOW)
    assert should_tell(fits, found.sketch)
    unfit: Sequence[dict[str, object]] = (
        {"release_id": "r0002"},
        {"release_id": None},
        {"capture_policy": CapturePolicySpec()},
        {"fleet_sketch": found.sketch},
        {"allow_downgrade": True},
    )
    assert not any(should_tell(fits.model_copy(update=change), found.sketch) for change in unfit)


# -- with a catalog and a bucket -----------------------------------------------------------------------------


@pytest.fixture
def wired(tmp_path: Path) -> Iterator[Services]:
    """A fleet of two that answers with r0001 and has a novel arm."""
    with local_services(tmp_path, capture_policy=NOVEL) as services:
        _start(services, tmp_path)
        yield services


def _start(wired: Services, tmp_path: Path) -> None:
    start_repository(wired, tmp_path / "root.json", NOW)
    wired.catalog.save_dataset_version(DatasetVersion("d" * 64, 0, NOW, ()))
    for number in (1, 2):
        wired.catalog.save_model(
            ModelRow(f"m{number}", number, "d" * 64, NOW, ModelStatus.RELEASED, {}, {}, f"r000{number}", number)
        )
    for device in ("cam-1", "cam-2"):
        add_device(wired, device, NOW)
        assign_device(wired, device, "r0001", allow_downgrade=False, now=NOW)
        _runs(wired, device, "r0001")


def _runs(wired: Services, device: str, release_id: str) -> None:
    state = ReportedState(
        device_id=device,
        boot_id="b",
        reported_at=NOW,
        agent_version="1",
        counters=DeviceCounters(),
        release_id=release_id,
    )
    wired.catalog.save_reported(state, now=NOW)


def _send(wired: Services, device: str, points: Rows, sequence: int, now: datetime, release_id: str = "r0001") -> None:
    """Admit captures with these embeddings."""
    captures = []
    for number, point in enumerate(points):
        one = capture(number, f"{device}-{sequence}")
        wire = Embedding.from_raw(point.astype("<f2").tobytes())
        prediction = one.prediction.model_copy(update={"embedding": wire, "release_id": release_id})
        captures.append(one.model_copy(update={"prediction": prediction}))
    wired.catalog.admit_batch(plan(batch(sequence, captures, device=device), now=now))


def _believed(wired: Services, tmp_path: Path, device: str) -> Assignment:
    """What the agent's own check makes of the bucket's document."""
    root = Metadata[Root].from_file(str(tmp_path / "root.json")).signed
    keys = {
        key_id: Key.from_dict(key_id, dict(value))
        for key_id, value in root.unrecognized_fields[ASSIGNMENT_KEYS_FIELD].items()
    }
    raw = wired.store.get(desired_key(device), max_bytes=MAX_DESIRED_BYTES)
    return verify_assignment(raw, keys, device, TrustFloor()).assignment


def test_what_one_device_sent_is_not_new_to_the_other(wired: Services, tmp_path: Path) -> None:
    """A device that believes its assignment finds near what only the other has sent, and new what nobody has."""
    sent, strange = _points(20, 1), -_points(20, 1)
    _send(wired, "cam-1", sent, 1, NOW)
    before = _believed(wired, tmp_path, "cam-2")
    assert refresh_sketches(wired, NOW) == 2
    after = _believed(wired, tmp_path, "cam-2")
    assert (after.version, after.release_id) == (before.version + 1, "r0001")
    memory = NoveltyMemory(tmp_path / "novelty.json")
    memory.follow_fleet(after.fleet_sketch)
    near = [memory.distance(point.astype("f4"), "r0001") or 0.0 for point in sent]
    assert max(near) < 0.05
    assert max(memory.distance(point.astype("f4"), "r0001") or 0.0 for point in strange) > 0.3


def test_a_steady_fleet_is_left_alone(wired: Services) -> None:
    """Nothing new, or only more of the same, writes no document, however often the flow runs."""
    points = _points(20)
    _send(wired, "cam-1", points, 1, NOW)
    refresh_sketches(wired, NOW)
    written = [wired.store.get(desired_key(device)) for device in ("cam-1", "cam-2")]
    for day in range(1, 4):
        _send(wired, "cam-2", points, day, NOW + day * DAY)
        assert refresh_sketches(wired, NOW + day * DAY + DAY / 2) == 0
    assert [wired.store.get(desired_key(device)) for device in ("cam-1", "cam-2")] == written
    _send(wired, "cam-2", -points, 9, NOW + 9 * DAY)
    assert refresh_sketches(wired, NOW + 9 * DAY) == 2


def test_before_anything_was_sent_nothing_is_told(wired: Services, tmp_path: Path) -> None:
    """Captures that another release answered lie in another space: they do not count."""
    _send(wired, "cam-1", _points(5), 1, NOW, release_id="r0002")
    assert refresh_sketches(wired, NOW) == 0
    assert sketch_for(wired, "r0001") is None
    assert _believed(wired, tmp_path, "cam-1").fleet_sketch is None


def test_a_new_assignment_carries_the_sketch_of_its_release(wired: Services, tmp_path: Path) -> None:
    """Assigning again, or adding a device, brings what is known of that release, and only of that one."""
    _send(wired, "cam-1", _points(5), 1, NOW)
    refresh_sketches(wired, NOW)
    add_device(wired, "cam-3", NOW)
    assert _believed(wired, tmp_path, "cam-3").fleet_sketch is None  # the fleet's release is r0002
    assign_device(wired, "cam-3", "r0001", allow_downgrade=False, now=NOW)
    carried = _believed(wired, tmp_path, "cam-3").fleet_sketch
    assert carried is not None
    assert carried == sketch_for(wired, "r0001")
    assert carried.space == "r0001"


def test_who_answers_with_another_model_is_not_told(wired: Services, tmp_path: Path) -> None:
    """A device still on another release is told once it runs the assigned one, with nothing new from anybody."""
    _runs(wired, "cam-2", "r0002")
    _send(wired, "cam-1", _points(5), 1, NOW)
    assert refresh_sketches(wired, NOW) == 1
    _runs(wired, "cam-2", "r0001")
    assert refresh_sketches(wired, NOW + DAY) == 1
    assert _believed(wired, tmp_path, "cam-2").fleet_sketch == sketch_for(wired, "r0001")


def test_a_document_that_was_not_signed_here_is_never_signed_again(wired: Services) -> None:
    """Forged bytes, and another device's assignment put in its place, stay as they are."""
    forged = sign_assignment(
        Assignment(device_id="cam-1", version=9, release_id="r0001", capture_policy=NOVEL, issued_at=NOW),
        load_key(wired.settings.key_dir, "online"),
    )
    others = wired.store.get(desired_key("cam-1"))
    wired.store.put(desired_key("cam-1"), forged)
    wired.store.put(desired_key("cam-2"), others)
    _send(wired, "cam-1", _points(5), 1, NOW)
    assert refresh_sketches(wired, NOW) == 0
    assert wired.store.get(desired_key("cam-1")) == forged
    assert wired.store.get(desired_key("cam-2")) == others


def test_what_an_unlearned_device_sent_is_forgotten(wired: Services) -> None:
    """The sketch starts anew without it at the next run, and as it was when the device counts again."""
    mine, others = _points(5, 1), _points(5, 2)
    _send(wired, "cam-1", mine, 1, NOW)
    _send(wired, "cam-2", others, 1, NOW)
    refresh_sketches(wired, NOW)
    both = sketch_for(wired, "r0001")
    wired.catalog.unlearn_device("cam-2", NOW)
    assert sketch_for(wired, "r0001") is None
    assert refresh_sketches(wired, NOW + timedelta(minutes=1)) == 1
    without = sketch_for(wired, "r0001")
    assert without is not None
    assert without.count == 5
    wired.catalog.relearn_device("cam-2")
    assert refresh_sketches(wired, NOW + timedelta(minutes=2)) == 1  # cam-2 was told nothing else meanwhile
    assert sketch_for(wired, "r0001") == both


@pytest.mark.parametrize(
    "off", [{"schedule": ScheduleSettings(fleet_sketch_s=None)}, {"capture_policy": CapturePolicySpec()}]
)
def test_it_can_be_switched_off(tmp_path: Path, off: dict[str, object]) -> None:
    """Switched off, or without a novel arm to use it, nothing is built and nothing is told."""
    with local_services(tmp_path, **({"capture_policy": NOVEL} | off)) as wired:
        _start(wired, tmp_path)
        _send(wired, "cam-1", _points(5), 1, NOW)
        assert refresh_sketches(wired, NOW) == 0
        assert sketch_for(wired, "r0001") is None


class _BrokenFor(LocalBlobStore):
    """A bucket whose link breaks for one key."""

    def __init__(self, root: Path, broken: str) -> None:
        super().__init__(root)
        self._broken = broken

    def get(self, key: str, **options: Any) -> bytes:
        if key == self._broken:
            raise StorageUnavailableError(f"get {key}: the link is down")
        return super().get(key, **options)


def test_a_run_that_dies_while_it_tells_is_made_up_for(wired: Services, tmp_path: Path) -> None:
    """When the bucket breaks after the first device, the next run tells the second the same."""
    _send(wired, "cam-1", _points(5), 1, NOW)
    with pytest.raises(StorageUnavailableError):
        refresh_sketches(replace(wired, store=_BrokenFor(tmp_path / "bucket", desired_key("cam-2"))), NOW)
    assert refresh_sketches(wired, NOW) == 1
    first, second = (_believed(wired, tmp_path, device).fleet_sketch for device in ("cam-1", "cam-2"))
    assert first is not None
    assert first == second
