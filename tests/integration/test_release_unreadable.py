"""A disk that cannot be read for a while: nothing accepted is forgotten, and nothing takes its place (P2, P3)."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from curate.contracts.device_settings import DeviceSettings, PrivacySpec, RedactionRegion
from curate.contracts.paths import desired_key
from curate.errors import StorageUnavailableError
from edge_agent.models.smoke import SmokeRequest, SmokeResult, examine
from edge_agent.models.update_machine import MAX_STARTS
from edge_agent.models.updater_state import load_state
from tests.fakes.disk_faults import faulty_disk
from tests.fakes.recording_store import CrashError
from tests.fakes.releases import DEVICE, Device, Publisher, write_factory_model

NEVER = 10**9


@pytest.fixture
def updated(device: Device, publisher: Publisher) -> tuple[Device, bytes]:
    """A device that went on to its second release, and the signed assignment of the first, as a thief keeps it."""
    old = publisher.store.get(desired_key(DEVICE))
    publisher.publish("r-2", bias=0.3)
    publisher.assign("r-2")
    device.turn()
    assert (device.release_id, device.slots.committed()) == ("r-2", "b")
    return device, old


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the report's, which may say what is wrong."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "updates.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_floor_survives_a_state_that_cannot_be_read(updated: tuple[Device, bytes], publisher: Publisher) -> None:
    """While the updater's state cannot be read, the committed model answers and nothing is believed or written; an old
    assignment, played again meanwhile, is refused as ever when it can be."""
    device, old = updated
    before, floor = contents(device.folder), load_state(device.folder / "updater.json").floor
    publisher.store.put(desired_key(DEVICE), old)
    with faulty_disk(device.folder / "updater.json", errno.EIO, 0, NEVER):
        device.restart()
        for _ in range(3):
            device.turn()
            assert device.release_id == "r-2"
        assert device.outcomes.count("postponed") == 1
        assert device.policies == []
    assert contents(device.folder) == before
    event = device.turn()
    assert event is not None
    assert (event.outcome, device.release_id) == ("refused", "r-2")
    assert "older than the accepted" in (event.detail or "")
    assert load_state(device.folder / "updater.json").floor == floor
    assert device.policies


@pytest.mark.parametrize("part", ["slots/b/seal", "slots/b/model.onnx", "slots/b/golden.npz"])
def test_a_slot_that_cannot_be_read_is_waited_for(updated: tuple[Device, bytes], part: str) -> None:
    """While the committed slot cannot be read, the release before it answers; the pointer, both slots and the state
    stay as they are, and the slot answers as soon as it can, without a download."""
    device, _ = updated
    before = contents(device.folder / "slots")
    with faulty_disk(device.folder / part, errno.EIO, 0, NEVER):
        device.restart()
        for _ in range(3):
            device.turn()
            assert device.release_id == "r-1"
        assert device.outcomes[-1] == "postponed"
    assert contents(device.folder / "slots") == before
    device.store.offline = True
    with pytest.raises(StorageUnavailableError):
        device.turn()
    assert device.release_id == "r-2"


def test_a_pointer_that_cannot_be_read_is_not_moved(updated: tuple[Device, bytes]) -> None:
    """While nobody can tell which slot is committed, the state does: its release answers, and the pointer stays."""
    device, _ = updated
    before = contents(device.folder / "slots")
    with faulty_disk(device.folder / "slots" / "committed", errno.EIO, 0, NEVER):
        device.restart()
        device.turn()
        assert device.release_id == "r-2"
    device.turn()
    assert device.release_id == "r-2"
    assert contents(device.folder / "slots") == before


def test_an_untried_slot_does_not_answer_while_the_state_cannot_be_read(device: Device, publisher: Publisher) -> None:
    """Without the state nobody knows what the other slot holds: only the committed one may answer, or the factory's."""
    publisher.publish("r-2", bias=0.3)
    publisher.assign("r-2")
    device.turn()
    factory = write_factory_model(device.folder.parent / "factory")
    model = device.slots.model_path("b")
    model.write_bytes(model.read_bytes()[:-1])
    with faulty_disk(device.folder / "updater.json", errno.EIO, 0, NEVER):
        assert Device(device.folder, publisher, factory=factory).release_id == "r-factory"


def test_a_candidate_that_cannot_be_read_is_no_failed_start(device: Device, publisher: Publisher) -> None:
    """A read error before the check of a new release puts it off without a count against it, however often."""

    def die(_: SmokeRequest) -> SmokeResult:
        raise CrashError

    publisher.publish("r-2", bias=0.3)
    publisher.assign("r-2")
    device.smoke = die
    device.restart()
    with pytest.raises(CrashError):
        device.turn()
    device.smoke = examine
    with faulty_disk(device.slots.folder("b") / "model.onnx", errno.EIO, 0, NEVER):
        device.restart()
        for _ in range(2 * MAX_STARTS):
            device.turn()
            assert device.release_id == "r-1"
    device.store.offline = True
    with pytest.raises(StorageUnavailableError):
        device.turn()
    assert device.release_id == "r-2"


def test_a_model_waits_for_an_unmetered_link(device: Device, publisher: Publisher) -> None:
    """On a metered link assignments are followed and a release's files are not fetched, which is told once; as soon as
    the link costs nothing they are."""
    publisher.publish("r-2", bias=0.3)
    publisher.assign("r-2", policy="new")
    device.is_metered = True
    device.store.reset()
    for _ in range(3):
        device.turn()
    assert device.release_id == "r-1"
    assert device.policies[-1].version == "new"
    assert [key for _, key in device.store.requests if key.startswith("tuf/targets/")] == []
    assert device.outcomes[-1:] == ["postponed"]
    assert device.outcomes.count("postponed") == 1
    state = device.heartbeat()
    assert "unmetered" in str(state.updates[-1].detail)
    assert state.model_state is not None
    assert "unmetered" in str(state.model_state.reason)
    device.is_metered = False
    device.turn()
    assert device.release_id == "r-2"
    told = device.heartbeat().model_state
    assert told is not None
    assert told.reason is None


@pytest.fixture
def bounded(device: Device, publisher: Publisher) -> DeviceSettings:
    """The settings of a device whose assignment wants a corner blacked out."""
    region = RedactionRegion(points=((0.0, 0.0), (0.5, 0.0), (0.5, 0.5), (0.0, 0.5)))
    settings = DeviceSettings(privacy=PrivacySpec(regions=(region,)))
    publisher.assign("r-1", settings=settings)
    device.turn()
    assert device.settings[-1] == settings
    return settings


def test_while_the_state_cannot_be_read_nobody_knows_the_regions(device: Device, bounded: DeviceSettings) -> None:
    """No settings are told to be followed before the state was read, though frames are answered; then the accepted
    ones are, and no others."""
    with faulty_disk(device.folder / "updater.json", errno.EIO, 0, NEVER):
        device.restart()
        device.turn()
        assert device.release_id == "r-1"
        assert device.settings == []
    device.store.offline = True
    with pytest.raises(StorageUnavailableError):
        device.turn()
    assert device.settings == [bounded]


def test_a_damaged_state_waits_for_the_assignment(device: Device, bounded: DeviceSettings) -> None:
    """Whoever has forgotten what was assigned tells no settings until an assignment is accepted anew, however often it
    starts, and says so; the model goes on to answer."""
    (device.folder / "updater.json").write_bytes(b"rotten")
    device.store.offline = True
    for _ in range(2):
        device.restart()
        with pytest.raises(StorageUnavailableError):
            device.turn()
        assert (device.release_id, device.settings) == ("r-1", [])
    assert "settings_lost" in device.outcomes
    device.store.offline = False
    device.turn()
    assert device.settings == [bounded]
    device.store.offline = True
    device.restart()
    assert device.settings == [bounded]


def test_a_new_device_goes_by_its_own_file(publisher: Publisher, tmp_path: Path) -> None:
    """Where nothing was ever assigned that is known from the start, also without the bucket."""
    publisher.store.delete(desired_key(DEVICE))
    device = Device(tmp_path / "new", publisher)
    assert device.settings == [DeviceSettings()]
    device.restart()
    assert device.settings == [DeviceSettings()]
