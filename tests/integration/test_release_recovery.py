"""Whatever fails, model, link, disk or process: the device runs the old release or the new one, and recovers."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curate.contracts.paths import desired_key
from curate.contracts.telemetry import UpdateEvent
from curate.errors import StorageUnavailableError
from edge_agent.errors import CorruptFileError
from edge_agent.models.installer import UpdateLimits
from edge_agent.models.smoke import SmokeRequest, SmokeResult, examine
from edge_agent.models.update_machine import MAX_STARTS
from tests.fakes.recording_store import CrashError
from tests.fakes.releases import DEVICE, Device, Publisher, golden_bytes


def _outcome(event: UpdateEvent | None) -> tuple[str, str]:
    assert event is not None
    return event.outcome, event.detail or ""


def test_a_model_that_fails_its_self_check_is_refused_and_not_tried_again(device: Device, publisher: Publisher) -> None:
    """A model with other answers than its golden ones never goes live, and costs nothing more until another is
    assigned, also after a restart."""
    publisher.publish("r-2", bias=0.3, golden=golden_bytes(bias=-0.3))
    publisher.assign("r-2")
    outcome, detail = _outcome(device.turn())
    assert (outcome, device.release_id) == ("refused", "r-1")
    assert "golden input" in detail
    with pytest.raises(CorruptFileError):
        device.slots.load(device.slots.idle())
    device.restart()
    device.store.reset()
    for _ in range(5):
        assert device.turn() is None
    assert device.store.requests == [("get", desired_key(DEVICE))] * 5
    publisher.publish("r-3", bias=0.3)
    publisher.assign("r-3")
    assert _outcome(device.turn())[0] == "committed"
    assert device.release_id == "r-3"


def test_a_model_that_kills_the_agent_is_given_up(device: Device, publisher: Publisher) -> None:
    """A release over which the process died too often is refused until the assignment changes."""

    def die(_: SmokeRequest) -> SmokeResult:
        raise CrashError

    publisher.publish("r-2", bias=0.3)
    publisher.assign("r-2")
    device.smoke = die
    for _ in range(MAX_STARTS):
        device.restart()
        with pytest.raises(CrashError):
            device.turn()
    device.restart()
    outcome, detail = _outcome(device.turn())
    assert (outcome, device.release_id) == ("refused", "r-1")
    assert f"cut off {MAX_STARTS} times" in detail
    device.smoke = examine
    device.restart()
    assert device.turn() is None
    publisher.assign("r-2", policy="again")
    assert _outcome(device.turn())[0] == "committed"


@pytest.mark.parametrize("damage", ["model.onnx", "golden.npz", "seal"])
def test_a_damaged_slot_falls_back_to_the_other_and_heals(damage: str, device: Device, publisher: Publisher) -> None:
    """With the committed slot damaged the agent starts from the other one, says so, and installs anew."""
    publisher.publish("r-2", bias=0.3)
    publisher.assign("r-2")
    device.turn()
    committed = device.slots.committed()
    assert committed is not None
    path = device.slots.folder(committed) / damage
    path.write_bytes(path.read_bytes()[:-1])
    device.store.offline = True
    device.restart()
    assert device.release_id == "r-1"
    device.store.offline = False
    assert _outcome(device.turn())[0] == "committed"
    assert device.release_id == "r-2"


def test_both_slots_damaged_download_again(device: Device) -> None:
    """Without any good slot the agent runs without a model and downloads the assigned release."""
    shutil.rmtree(device.folder / "slots")
    device.restart()
    assert device.release_id is None
    assert _outcome(device.turn())[0] == "committed"
    assert device.release_id == "r-1"


def test_a_device_that_dies_at_any_request_comes_back(tmp_path: Path, publisher: Publisher) -> None:
    """Whichever request of an update the device dies at, it restarts with the old model and then completes."""
    device = Device(tmp_path / "device", publisher)
    device.turn()
    for index in range(8):
        name = f"r-{index + 2}"
        publisher.publish(name, bias=0.1 * index)
        publisher.assign(name)
        old = device.release_id
        device.store.reset(crash_at=index)
        with pytest.raises(CrashError):
            device.turn()
        device.store.reset()
        device.restart()
        assert device.release_id == old
        device.turn()
        assert device.release_id == name


def _renames(device: Device, monkeypatch: pytest.MonkeyPatch, fail_at: int, error: Exception, after: bool) -> list[str]:
    """Let the disk's `fail_at`-th rename of a durable file fail, before or after it took effect."""
    seen: list[str] = []
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        index = len(seen)
        seen.append(Path(target).name)
        if index == fail_at and not after:
            raise error
        real(source, target)
        if index == fail_at:
            raise error

    monkeypatch.setattr(os, "replace", replace)
    return seen


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_device_that_dies_at_any_write_comes_back(
    after: bool, tmp_path: Path, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever durable write of an update the device dies at, it restarts with the old or the new model and
    ends on the new."""
    device = Device(tmp_path / "device", publisher)
    device.turn()
    for index in range(30):
        name = f"r-{index + 2}"
        publisher.publish(name, bias=0.05 * index)
        publisher.assign(name)
        old = device.release_id
        with monkeypatch.context() as patch:
            seen = _renames(device, patch, index, CrashError(), after)
            if _survives(device):
                break
        device.restart()
        assert device.release_id in (old, name)
        device.turn()
        assert device.release_id == name
    assert len(seen) == index
    assert {"updater.json", "seal", "committed"} <= set(seen)


def _survives(device: Device) -> bool:
    try:
        device.turn()
    except CrashError:
        return False
    return True


def test_a_full_disk_puts_an_update_off_and_it_heals(
    tmp_path: Path, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that refuses any one write stops no frame and is told; with room again the update passes."""
    device = Device(tmp_path / "device", publisher)
    device.turn()
    hit: set[str] = set()
    for index in range(30):
        name = f"r-{index + 2}"
        publisher.publish(name, bias=0.05 * index)
        publisher.assign(name)
        old = device.release_id
        with monkeypatch.context() as patch:
            seen = _renames(device, patch, index, OSError(28, "No space left on device"), after=False)
            event = device.turn()
        if index >= len(seen):
            break
        hit.add(seen[index])
        assert device.release_id in (old, name)
        if seen[index] != "updates.json":  # the report logs it and goes on
            assert _outcome(event)[0] == "postponed"
            assert "No space left" in _outcome(event)[1]
        device.turn()
        assert device.release_id == name
        assert device.slots.load(device.slots.committed() or "a").manifest.release_id == name
    assert {"updater.json", "seal", "proof", "committed", "model.onnx", "updates.json"} <= hit


def test_a_dead_link_is_not_a_refusal(device: Device, publisher: Publisher) -> None:
    """An unreachable bucket raises a retryable error, refuses nothing and waits for nothing."""
    publisher.publish("r-2", bias=0.3)
    publisher.assign("r-2")
    device.store.offline = True
    with pytest.raises(StorageUnavailableError):
        device.turn()
    device.store.offline = False
    assert _outcome(device.turn(after=timedelta(0)))[0] == "committed"


def test_the_loop_outlives_a_dead_link(device: Device, publisher: Publisher) -> None:
    """The running loop counts the outage once a turn, and updates by itself when the link is back."""
    publisher.publish("r-2", bias=0.3)
    publisher.assign("r-2")
    device.store.offline = True
    stop = threading.Event()
    thread = threading.Thread(target=device.updater.run, args=(stop,))
    thread.start()
    try:
        _wait_until(lambda: device.errors.get("StorageUnavailableError", 0) >= 2)
        assert device.release_id == "r-1"
        device.store.offline = False
        _wait_until(lambda: device.release_id == "r-2")
    finally:
        stop.set()
        thread.join(timeout=10)
    assert not thread.is_alive()


def _wait_until(happened: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_device_takes_no_more_bytes_than_it_may(tmp_path: Path, publisher: Publisher) -> None:
    """A signed model above the device's own bound is refused before a byte of it is fetched."""
    device = Device(tmp_path / "device", publisher, UpdateLimits(max_model_bytes=10))
    assert "takes at most 10" in _outcome(device.turn())[1]
    assert not any("model-int8" in key for _, key in device.store.requests)


def test_answers_differ_between_releases(device: Device, publisher: Publisher) -> None:
    """The swap is real: after it the live model gives the new release's answers."""
    frame = np.full((8, 8, 3), 128, np.uint8)
    before = device.live.current()
    assert before is not None
    publisher.publish("r-2", bias=1.0)
    publisher.assign("r-2")
    device.turn()
    after = device.live.current()
    assert after is not None
    assert not np.allclose(before.infer(frame).outputs["probabilities"], after.infer(frame).outputs["probabilities"])
