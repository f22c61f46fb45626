"""A release in the field: on trial, half-fetched, without room, from the factory, and what the heartbeat says of it."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from curate.contracts.assignment import Assignment
from curate.contracts.device_settings import BandwidthSpec, DeviceSettings
from curate.contracts.paths import desired_key
from curate.errors import AgentError, SelfCheckError, StorageUnavailableError
from curate.release.assignments import sign_assignment
from curate.release.keys import create_keys
from edge_agent.models.inference import LiveModel
from edge_agent.models.installer import UpdateLimits
from edge_agent.models.live_seat import LiveSeat
from edge_agent.models.loading import ModelLoader
from edge_agent.models.slots import FactoryModel
from edge_agent.models.smoke import RunSettings, examine
from edge_agent.models.trial_watch import TrialRules
from edge_agent.models.updater_state import load_state
from tests.fakes.releases import DEVICE, NO_TRIAL, SIZE, Device, Publisher, write_factory_model

TRIAL = UpdateLimits(trial=TrialRules(window_s=5.0, window_frames=40))


def _on_trial(tmp_path: Path, publisher: Publisher, **more: object) -> Device:
    """A device that runs r-1 and has r-2 on trial."""
    device = Device(tmp_path / "trial", publisher, TRIAL)
    device.turn()
    device.answer_frames(60)
    device.turn()
    publisher.publish("r-2", bias=0.3, **more)  # type: ignore[arg-type]
    publisher.assign("r-2")
    device.turn()
    return device


def test_a_release_on_trial_answers_and_is_kept_when_its_window_is_over(tmp_path: Path, publisher: Publisher) -> None:
    """Until then the pointer stays with the old release and the floor where it was; the heartbeat tells how far."""
    device = _on_trial(tmp_path, publisher)
    assert device.release_id == "r-2"
    device.answer_frames(20)
    state = device.heartbeat().model_state
    assert state is not None
    assert (state.phase, state.candidate_id, state.slot, state.starts) == ("trial", "r-2", "a", 1)
    assert (state.trial_frames, state.trial_answers) == (40, 21)
    assert device.slots.committed() == "a"
    assert load_state(device.folder / "updater.json").floor.release_number == 1
    device.answer_frames(40)
    event = device.turn()
    assert event is not None
    assert (event.outcome, event.release_id) == ("committed", "r-2")
    assert device.slots.committed() == "b"
    assert load_state(device.folder / "updater.json").floor.release_number == 2
    assert device.steps[-5:] == ["downloading", "verified", "smoke", "trial", "committed"]


def test_a_slow_release_is_rolled_back_and_not_tried_again(tmp_path: Path, publisher: Publisher) -> None:
    """A release that is much slower than the old one on what the camera sees gives way to it, for good."""
    device = _on_trial(tmp_path, publisher, treason="slow")
    with real_clock(device):
        device.answer_frames(25, value=255)
    event = device.turn()
    assert event is not None
    assert event.outcome == "rolled_back"
    assert "the old model took" in str(event.detail)
    assert device.release_id == "r-1"
    device.restart()
    device.store.reset()
    assert device.turn() is None
    assert device.release_id == "r-1"
    assert [key for _, key in device.store.requests] == [desired_key(DEVICE)]
    publisher.assign("r-2", policy="again")
    device.turn()
    assert device.release_id == "r-2"


def test_an_incumbent_that_cannot_be_measured_saves_no_slow_release(
    tmp_path: Path, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the old model fails on the frame it is measured with, what it took before stands, and the trial ends."""
    device = _on_trial(tmp_path, publisher, treason="slow")
    incumbent = device.updater._seat._trial.incumbent.model  # type: ignore[union-attr]

    def fail(_: object) -> object:
        raise SelfCheckError("failed on a frame")

    with real_clock(device), monkeypatch.context() as patched:
        patched.setattr(incumbent, "infer", fail)
        device.answer_frames(25, value=255)
        event = device.turn()
    assert event is not None
    assert event.outcome == "rolled_back"
    assert device.release_id == "r-1"


def test_what_goes_wrong_between_two_turns_ends_no_updates(
    tmp_path: Path, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a release on trial cannot be judged for a while, for whatever reason, it is counted and judged later."""
    device = _on_trial(tmp_path, publisher)
    judge, failures = device.updater._seat.judge, itertools.count(1)

    def judge_later() -> object:
        if next(failures) <= 10:
            raise RuntimeError("unforeseen")
        return judge()

    monkeypatch.setattr(device.updater._seat, "judge", judge_later)
    device.answer_frames(60)
    stop = threading.Event()
    thread = threading.Thread(target=device.updater.run, args=(stop,))
    thread.start()
    try:
        _wait_until(lambda: device.outcomes == ["committed", "committed"])
    finally:
        stop.set()
        thread.join(20)
    assert device.errors["RuntimeError"] == 10


@contextmanager
def real_clock(device: Device) -> Iterator[None]:
    """Let the probe of the release on trial see real time."""
    probe = device.live.current()._observer  # type: ignore[union-attr]
    scripted, probe._monotonic = probe._monotonic, time.monotonic  # type: ignore[union-attr]
    yield
    probe._monotonic = scripted  # type: ignore[union-attr]


def test_the_first_release_resumes_its_trial_without_a_link(tmp_path: Path, publisher: Publisher) -> None:
    """A device whose first release was on trial when the power failed runs it again before any network is there."""
    device = Device(tmp_path / "device", publisher, TRIAL)
    device.turn()
    device.store.offline = True
    device.restart()
    assert device.release_id == "r-1"
    device.answer_frames(60)
    with pytest.raises(StorageUnavailableError):
        device.turn()
    assert device.outcomes == ["committed"]


def test_stopping_the_agent_does_not_count_against_a_release(tmp_path: Path, publisher: Publisher) -> None:
    """However often the agent is restarted in good order during a trial, the release stays on trial."""
    device = _on_trial(tmp_path, publisher)
    for _ in range(5):
        stop = threading.Event()
        thread = threading.Thread(target=device.updater.run, args=(stop,))
        thread.start()
        _wait_until(lambda: device.release_id == "r-2")
        stop.set()
        thread.join(20)
        assert load_state(device.folder / "updater.json").attempt.starts == 0
        device.restart()
        device.turn()
    assert device.release_id == "r-2"
    assert "rolled_back" not in device.outcomes


def _wait_until(happened: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_a_broken_download_goes_on_where_it_ended(device: Device, publisher: Publisher) -> None:
    """What had come before the link broke is not fetched again, also after a restart."""
    manifest = publisher.publish("r-2", bias=0.3)
    publisher.assign("r-2")
    size = manifest.variants["int8"].size_bytes
    golden = manifest.golden.size_bytes
    for _ in range(3):
        device.store.cut_after_bytes = 100
        with pytest.raises(StorageUnavailableError):
            device.turn()
        device.restart()
    part = next((device.folder / "slots").rglob("*.part"))
    assert part.stat().st_size == 300
    device.store.served_bytes = 0
    event = device.turn()
    assert event is not None
    assert event.outcome == "committed"
    assert device.store.served_bytes == size + golden - 300
    assert not list((device.folder / "slots").rglob("*.part"))


def test_a_part_that_a_power_cut_spoiled_is_fetched_anew(device: Device, publisher: Publisher) -> None:
    """Bytes of a part that are not what was written cost a second download and refuse nothing."""
    publisher.publish("r-2", bias=0.3)
    publisher.assign("r-2")
    device.store.cut_after_bytes = 300
    with pytest.raises(StorageUnavailableError):
        device.turn()
    part = next((device.folder / "slots").rglob("*.part"))
    part.write_bytes(bytes(part.stat().st_size))
    event = device.turn()
    assert event is not None
    assert event.outcome == "committed"
    assert device.outcomes == ["committed", "committed"]


def test_without_room_for_two_models_the_old_one_stops_first(
    tmp_path: Path, device: Device, publisher: Publisher
) -> None:
    """With little memory the old model is gone before the new one is loaded, and comes back when that fails."""
    live = LiveModel()
    loader = ModelLoader(device.slots, RunSettings(), smoke=examine)
    seat = LiveSeat(live, loader, device.report, memory=lambda: 0)
    content = device.slots.load("a")
    seat.restore(content)
    old = live.current()
    assert old is not None
    shown = loader.prove(content)
    seat.begin_trial(content, shown, TrialRules())
    with pytest.raises(SelfCheckError, match="answers no more"):
        old.infer(np.zeros((SIZE, SIZE, 3), np.uint8))
    assert live.current() is not old
    seat.give_up_challenger()
    back = live.current()
    assert back is not None
    assert np.isfinite(back.infer(np.zeros((SIZE, SIZE, 3), np.uint8)).outputs["probabilities"]).all()


def test_the_factory_model_answers_when_nothing_else_can(tmp_path: Path, publisher: Publisher) -> None:
    """A new device starts with it, a release replaces it, and it is back when both slots are lost; nobody writes to its
    folder, and the floor stays."""
    folder = write_factory_model(tmp_path / "factory")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for path in folder.iterdir():
        path.chmod(0o444)
    device = Device(tmp_path / "device", publisher, NO_TRIAL, factory=folder)
    assert device.release_id == "r-factory"
    publisher.publish("r-2", bias=0.2)
    publisher.assign("r-2")
    device.turn()
    assert device.release_id == "r-2"
    for seal in (device.folder / "slots").glob("?/seal"):
        seal.unlink()
    device.store.offline = True
    device.restart()
    assert device.release_id == "r-factory"
    assert device.heartbeat().model_state.slot == "factory"  # type: ignore[union-attr]
    assert device.outcomes[-1] == "rolled_back"
    assert load_state(device.folder / "updater.json").floor.release_number == 2
    device.store.offline = False
    device.turn()
    assert device.release_id == "r-2"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("damage", ["model.onnx", "golden.npz", "manifest.json"])
def test_a_damaged_or_replaced_factory_model_is_not_run(tmp_path: Path, publisher: Publisher, damage: str) -> None:
    """Every file of it proves itself; one that does not is told."""
    folder = write_factory_model(tmp_path / "factory")
    path = folder / damage
    path.write_bytes(path.read_bytes()[:-2])
    device = Device(tmp_path / "device", publisher, NO_TRIAL, factory=folder)
    assert device.release_id is None
    assert device.outcomes == ["restore_failed"]


def test_a_pinned_factory_model_is_no_other(tmp_path: Path) -> None:
    """A whole and consistent model whose manifest is not the pinned one is refused."""
    folder = write_factory_model(tmp_path / "factory")
    with pytest.raises(AgentError, match="factory_manifest_sha256"):
        FactoryModel(folder, manifest_sha256="0" * 64, variant="int8").load()


def test_bad_settings_keep_the_old_ones_and_nothing_else(device: Device, publisher: Publisher) -> None:
    """Settings that cannot be read are told by name; release and policy of the same assignment are followed, and the
    old settings stay, also after a restart."""
    publisher.publish("r-2", bias=0.3)
    good = DeviceSettings(bandwidth=BandwidthSpec(max_bytes_per_hour=1_000_000))
    _assign_raw(publisher, version=5, release_id="r-1", settings=good.model_dump(mode="json"))
    device.turn()
    assert device.settings[-1] == good
    _assign_raw(publisher, version=6, release_id="r-2", settings={"bandwidth": {"max_bytes_per_hour": -1}})
    event = device.turn()
    assert event is not None
    assert (event.outcome, device.release_id) == ("committed", "r-2")
    refused = next(e for e in device.heartbeat().updates if e.outcome == "settings_refused")
    assert "settings.bandwidth.max_bytes_per_hour" in str(refused.detail)
    assert device.settings[-1] == good
    device.restart()
    assert device.settings == [good]


@dataclass
class _Document:
    """An assignment that may say anything."""

    fields: dict[str, object]

    def to_bytes(self) -> bytes:
        """Serialise it."""
        return json.dumps(self.fields).encode()


def _assign_raw(publisher: Publisher, **fields: object) -> None:
    """Sign and write an assignment that may hold anything."""
    document = _Document({"device_id": DEVICE, "issued_at": publisher.now.isoformat(), **fields})
    signer = create_keys(publisher.keys)["assignment"]
    publisher.store.put(desired_key(DEVICE), sign_assignment(cast(Assignment, document), signer))


def test_a_slot_from_an_older_agent_is_checked_once(device: Device) -> None:
    """A committed slot without a proof is checked before it runs, and then remembered."""
    calls = []

    def smoke(request: object) -> object:
        calls.append(request)
        return examine(request)  # type: ignore[arg-type]

    device.smoke = smoke  # type: ignore[assignment]
    (device.folder / "slots" / "a" / "proof").unlink()
    device.restart()
    assert (device.release_id, len(calls)) == ("r-1", 1)
    device.restart()
    assert (device.release_id, len(calls)) == ("r-1", 1)
