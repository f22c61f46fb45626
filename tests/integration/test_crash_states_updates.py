"""Slots and update state over every disk that a power cut may leave behind (P3)."""

from __future__ import annotations

import copy
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from curate.storage.local import LocalBlobStore
from edge_agent.errors import CorruptFileError
from edge_agent.models.slots import Slots
from edge_agent.models.trust import MetadataVersions, TrustFloor
from edge_agent.models.updater_state import UpdaterState, load_state
from tests.fakes.crash_states import CrashState, Recorder, Recording, recorded
from tests.fakes.nightly import Tell, cases
from tests.fakes.power_cut import fast_folder
from tests.fakes.releases import Device, Publisher

LIMIT_EACH = cases(thin=6, full=4096)
UNKNOWN = "none"


@dataclass(frozen=True)
class Standing:
    """What a device says that it is sure of."""

    committed: str
    state: UpdaterState

    @classmethod
    def read(cls, folder: Path) -> Standing:
        """Read it from the disk, as a start does."""
        slots = Slots(folder / "slots")
        name = slots.committed()
        try:
            committed = slots.load(name).manifest.release_id if name else UNKNOWN
        except CorruptFileError:
            committed = "unreadable"
        return cls(committed, load_state(folder / "updater.json"))


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder on a fast disk."""
    with fast_folder() as name:
        yield Path(name)


class Story:
    """A publisher, and a device whose disk is recorded through three releases and a signed downgrade."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.publisher = Publisher(folder / "cloud")
        self.buckets: list[Path] = []
        (folder / "device").mkdir()
        with recorded(folder / "device") as recorder:
            self._live(recorder)
        self.recording: Recording = recorder.recording

    def _live(self, recorder: Recorder) -> None:
        self._release("r-1", 0.0)
        device = Device(self.folder / "device", self.publisher)
        self._turn(device, recorder)
        self._release("r-2", 0.2)
        self._turn(device, recorder)
        device.restart()
        self._release("r-3", 0.4)
        self._turn(device, recorder)
        self.publisher.assign("r-2", policy="back", downgrade=True)
        self._turn(device, recorder)

    def _release(self, release_id: str, bias: float) -> None:
        self.publisher.publish(release_id, bias)
        self.publisher.assign(release_id)

    def _turn(self, device: Device, recorder: Recorder) -> None:
        event = device.turn()
        assert event is not None
        assert event.outcome == "committed", event
        recorder.mark(Standing.read(device.folder))
        self.buckets.append(self.folder / f"bucket{len(self.buckets)}")
        shutil.copytree(self.folder / "cloud" / "bucket", self.buckets[-1])

    def bucket(self, number: int) -> Publisher:
        """The cloud as it was after that turn."""
        then = copy.copy(self.publisher)
        then.store = LocalBlobStore(self.buckets[number])
        return then


def is_below(found: TrustFloor, promised: TrustFloor) -> bool:
    """Whether a floor lets through what the promised one does not; a newer root starts the other roles anew."""
    versions, least = found.metadata, promised.metadata
    if versions.root == least.root and any(
        getattr(versions, role) < getattr(least, role) for role in MetadataVersions.model_fields
    ):
        return True
    return (
        versions.root < least.root
        or found.release_number < promised.release_number
        or found.assignment_version < promised.assignment_version
    )


def verify_standing(story: Story, state: CrashState, folder: Path) -> None:
    """On the disk lies what was committed last or what comes next; floor and assignment have not gone back."""
    marks: list[Standing] = story.recording.marks
    now = Standing.read(folder)
    new_device = Standing(UNKNOWN, UpdaterState())
    last = marks[state.marks - 1] if state.marks else new_device
    following = marks[state.marks] if state.marks < len(marks) else last
    assert now.committed in {last.committed, following.committed}
    assert not is_below(now.state.floor, last.state.floor)
    assert not is_below(following.state.floor, now.state.floor)
    if last.state.assignment is not None:
        assert now.state.assignment in (last.state.assignment, following.state.assignment)


def verify_device(story: Story, state: CrashState, folder: Path) -> None:
    """Started from that disk the device runs what it had or the next; an older bucket does not take it back; the newest
    bucket takes it to the end."""
    marks: list[Standing] = story.recording.marks
    allowed = {UNKNOWN} if state.marks == 0 else {marks[state.marks - 1].committed}
    if state.marks < len(marks):
        allowed.add(marks[state.marks].committed)
    device = Device(folder, story.bucket(max(0, state.marks - 2)))
    assert (device.release_id or UNKNOWN) in allowed
    device.turn()
    if state.marks:
        assert device.release_id in allowed
    device = Device(folder, story.bucket(-1))
    device.turn()
    assert device.release_id == marks[-1].committed
    assert Standing.read(folder).committed == marks[-1].committed


def test_whatever_a_power_cut_leaves_no_floor_and_no_release_goes_back(disk: Path, tell: Tell) -> None:
    """Over every crash of three updates and a signed downgrade, and every legal loss of what was not synced: the
    committed slot, the floor and the accepted assignment are those before or after the step, never older; a sample is
    started, shown an older bucket, and brought up to date."""
    story = Story(disk)
    states = list(story.recording.crash_states(limit_each=LIMIT_EACH, rng=random.Random(3)))
    started = {id(state) for state in random.Random(4).sample(states, min(len(states), cases(thin=25, full=2000)))}
    for state in states:
        state.materialise(disk / "crashed")
        try:
            verify_standing(story, state, disk / "crashed")
            if id(state) in started:
                verify_device(story, state, disk / "crashed")
        except BaseException as exc:
            done = story.recording.operations[: state.operations_done]
            exc.add_note(f"crash after {len(done)} operations, the last: {done[-4:]!r:.2000}")
            exc.add_note(f"on the disk: { {name: len(raw or b'') for name, raw in state.tree.items()} }")
            raise
    operations = len(story.recording.operations)
    tell(f"updates: {operations} operations, {len(states)} crash states verified, {len(started)} of them started")
    assert len(states) > 200
