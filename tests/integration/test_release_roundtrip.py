"""Publisher and device over a bucket, with the real TUF client, real signatures and a real ONNX model.

Whatever is done to the bucket, the link or the disk: the device runs the old release or the new one, says why
it refused, and recovers without help.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from securesystemslib.signer import CryptoSigner

from curate.contracts.assignment import Assignment
from curate.contracts.paths import TUF_METADATA, TUF_TARGETS, desired_key
from curate.contracts.telemetry import UpdateEvent
from curate.errors import ReleaseError, StorageUnavailableError, TrustError
from curate.release.assignments import assign, sign_assignment
from curate.release.keys import create_keys, key_path
from curate.release.publish import fetch_releases, publish_release
from curate.release.repository import init_repository, refresh_timestamp, renew_root
from curate.storage.local import LocalBlobStore
from edge_agent.errors import CorruptFileError
from edge_agent.updater import MAX_TRIAL_STARTS, UpdateLimits
from edge_agent.updater_state import Trial, load_state, persist_state
from tests.fakes.recording_store import CrashError, RecordingStore
from tests.fakes.releases import DEVICE, Device, Publisher, draft, golden_bytes, release_files


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    """A started repository with the first release published and assigned."""
    publisher = Publisher(tmp_path / "cloud")
    publisher.publish("r-1")
    publisher.assign("r-1")
    return publisher


@pytest.fixture
def device(tmp_path: Path, publisher: Publisher) -> Device:
    """A device that runs the first release."""
    device = Device(tmp_path / "device", publisher)
    event = device.turn()
    assert event is not None
    assert event.outcome == "committed"
    return device


def _outcome(event: UpdateEvent | None) -> tuple[str, str]:
    assert event is not None
    return event.outcome, event.detail or ""


def test_a_release_travels_and_its_successor_replaces_it(device: Device, publisher: Publisher) -> None:
    """A device follows one release after the other, and a restart without a link runs the newest."""
    assert device.release_id == "r-1"
    publisher.publish("r-2", bias=0.4)
    publisher.assign("r-2", policy="bold")
    assert _outcome(device.turn())[0] == "committed"
    assert device.release_id == "r-2"
    assert device.policies[-1].version == "bold"
    device.store.offline = True
    device.restart()
    assert device.release_id == "r-2"
    assert [policy.version for policy in device.policies] == ["bold"]


def test_a_steady_poll_is_one_request(device: Device, publisher: Publisher) -> None:
    """Nothing new costs one GET; a new policy without a new release three; a release eight."""
    device.store.reset()
    assert device.turn() is None
    assert device.store.requests == [("get", desired_key(DEVICE))]
    publisher.assign("r-1", policy="bold")
    device.store.reset()
    assert device.turn() is None
    assert [key for _, key in device.store.requests] == [
        desired_key(DEVICE),
        f"{TUF_METADATA}2.root.json",
        f"{TUF_METADATA}timestamp.json",
    ]
    publisher.publish("r-2")
    publisher.assign("r-2", policy="bold")
    device.store.reset()
    device.turn()
    assert len(device.store.requests) == 8
    assert {method for method, _ in device.store.requests} == {"get"}


def test_publishing_and_assigning_again_change_nothing(publisher: Publisher) -> None:
    """The same release and the same assignment again write nothing; numbers count releases; contents are final."""
    store = RecordingStore(publisher.store)
    later = publisher.now + timedelta(days=1)
    assert init_repository(store, publisher.keys, later) == publisher.root
    first = publish_release(store, publisher.keys, draft("r-1"), release_files(), later)
    assert (first.number, first.created_at) == (1, publisher.now)
    before = publisher.assign("r-1")
    assert assign(store, publisher.keys, DEVICE, "r-1", before.capture_policy, now=later) == before
    assert {method for method, _ in store.requests} == {"get"}
    assert publisher.publish("r-2").number == 2
    assert [release.release_id for release in fetch_releases(store, publisher.keys)] == ["r-1", "r-2"]
    with pytest.raises(ReleaseError, match="already published with other contents"):
        publisher.publish("r-1", bias=0.5)


def test_an_assignment_that_was_lost_starts_above_what_the_device_followed(
    device: Device, publisher: Publisher
) -> None:
    """With the bucket's document gone, the heartbeat's version keeps the device following."""
    publisher.store.delete(desired_key(DEVICE))
    assert device.turn() is None
    lost = assign(publisher.store, publisher.keys, DEVICE, "r-1", device.policies[-1], now=publisher.now)
    assert lost.version == 1
    again = assign(
        publisher.store, publisher.keys, DEVICE, "r-1", device.policies[-1], now=publisher.now, accepted_version=7
    )
    assert again.version == 8
    assert device.turn() is None
    assert load_state(device.folder / "updater.json").floor.assignment_version == 8


# --- the publisher dies -------------------------------------------------------------------------------------------


def _fresh_release(folder: Path, publisher: Publisher) -> str | None:
    device = Device(folder, publisher)
    event = device.turn()
    assert event is not None
    assert device.release_id == (event.release_id if event.outcome == "committed" else None)
    return device.release_id


def _count_requests(work: Callable[[RecordingStore], object], store: LocalBlobStore) -> int:
    recording = RecordingStore(store)
    work(recording)
    return len(recording.requests)


@pytest.mark.parametrize("crash_after", [False, True], ids=["before", "after"])
def test_a_publisher_that_dies_anywhere_leaves_a_whole_repository(tmp_path: Path, crash_after: bool) -> None:
    """Wherever publishing dies, a new device gets the old release or the new one, and running again completes it."""

    def publish(publisher: Publisher, store: RecordingStore | LocalBlobStore) -> int:
        return publish_release(store, publisher.keys, draft("r-2"), release_files(0.3), publisher.now).number

    first = Publisher(tmp_path / "first")
    first.publish("r-1")

    def copy(name: str) -> Publisher:
        shutil.copytree(first.folder, tmp_path / name)
        return Publisher(tmp_path / name)

    rehearsal = copy("rehearsal")
    total = _count_requests(lambda store: publish(rehearsal, store), rehearsal.store)
    assert total >= 10
    for index in range(total):
        publisher = copy(f"cloud-{index}")
        store = RecordingStore(publisher.store)
        store.reset(crash_at=index, crash_after=crash_after)
        with pytest.raises(CrashError):
            publish(publisher, store)
        reader = Device(tmp_path / f"device-{index}", publisher)
        publisher.assign("r-1")
        assert _outcome(reader.turn()) == ("committed", "number 1, slot a")
        publisher.assign("r-2")
        outcome, detail = _outcome(reader.turn())
        assert outcome == ("committed" if index == total - 1 and crash_after else "refused"), detail
        assert publish(publisher, publisher.store) == 2
        reader.turn()
        assert reader.release_id == "r-2"


@pytest.mark.parametrize("crash_after", [False, True], ids=["before", "after"])
def test_a_start_that_dies_anywhere_is_finished_by_the_next(tmp_path: Path, crash_after: bool) -> None:
    """Wherever starting a repository dies, starting again gives one that devices trust."""
    keys = tmp_path / "keys"
    now = datetime.now(UTC)
    total = _count_requests(lambda s: init_repository(s, keys, now), LocalBlobStore(tmp_path / "rehearsal"))
    for index in range(total):
        folder = tmp_path / f"cloud-{index}"
        store = RecordingStore(LocalBlobStore(folder / "bucket"))
        store.reset(crash_at=index, crash_after=crash_after)
        with pytest.raises(CrashError):
            init_repository(store, folder / "keys", now)
        publisher = Publisher(folder)
        publisher.publish("r-1")
        publisher.assign("r-1")
        assert _fresh_release(tmp_path / f"device-{index}", publisher) == "r-1"


def test_a_repository_of_other_keys_is_left_alone(tmp_path: Path, publisher: Publisher) -> None:
    """A publisher with other keys neither starts over nor signs over someone else's repository."""
    with pytest.raises(ReleaseError, match="other keys"):
        init_repository(publisher.store, tmp_path / "other-keys", publisher.now)
    with pytest.raises(TrustError, match="not signed by this publisher"):
        publish_release(publisher.store, tmp_path / "other-keys", draft("r-9"), release_files(), publisher.now)


# --- someone tampers with the bucket ------------------------------------------------------------------------------


def _key_of(publisher: Publisher, prefix: str, ending: str) -> str:
    (key,) = [blob.key for blob in publisher.store.list(prefix) if blob.key.endswith(ending)]
    return key


def _flip(publisher: Publisher, key: str) -> None:
    raw = publisher.store.get(key)
    middle = len(raw) // 2
    publisher.store.put(key, raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :])


def _rewrite(publisher: Publisher, key: str, **changes: Any) -> None:
    """Change signed fields and keep the signature."""
    document = json.loads(publisher.store.get(key))
    document["signed"].update(changes)
    publisher.store.put(key, json.dumps(document).encode())


def _forge_root(publisher: Publisher, folder: Path) -> None:
    """A second root, well-formed, of an attacker's own keys."""
    forger = LocalBlobStore(folder / "forger")
    init_repository(forger, folder / "forged-keys", publisher.now)
    renew_root(forger, folder / "forged-keys", publisher.now)
    publisher.store.put(f"{TUF_METADATA}2.root.json", forger.get(f"{TUF_METADATA}2.root.json"))


_TAMPERINGS: dict[str, tuple[Callable[[Publisher, Path], None], str]] = {
    "model": (lambda p, _: _flip(p, _key_of(p, TUF_TARGETS, "r-2.model-int8.onnx")), "does not match expected hash"),
    "golden": (lambda p, _: _flip(p, _key_of(p, TUF_TARGETS, "r-2.golden.npz")), "does not match expected hash"),
    "manifest": (lambda p, _: _flip(p, _key_of(p, TUF_TARGETS, "r-2.manifest.json")), "does not match expected hash"),
    "longer model": (
        lambda p, _: p.store.put(
            (key := _key_of(p, TUF_TARGETS, "r-2.model-int8.onnx")), p.store.get(key) + b"\0" * 4096
        ),
        "more than",
    ),
    "shorter model": (
        lambda p, _: p.store.put((key := _key_of(p, TUF_TARGETS, "r-2.model-int8.onnx")), p.store.get(key)[:-9]),
        "does not match expected length",
    ),
    "swapped model": (
        lambda p, _: p.store.put(
            _key_of(p, TUF_TARGETS, "r-2.model-int8.onnx"), p.store.get(_key_of(p, TUF_TARGETS, "r-1.model-int8.onnx"))
        ),
        "does not match expected hash",
    ),
    "swapped manifest": (
        lambda p, _: p.store.put(
            _key_of(p, TUF_TARGETS, "r-2.manifest.json"), p.store.get(_key_of(p, TUF_TARGETS, "r-1.manifest.json"))
        ),
        "does not match expected hash",
    ),
    "missing model": (lambda p, _: p.store.delete(_key_of(p, TUF_TARGETS, "r-2.model-int8.onnx")), "nothing lies"),
    "timestamp bytes": (lambda p, _: _flip(p, f"{TUF_METADATA}timestamp.json"), "release repository"),
    "timestamp version": (
        lambda p, _: _rewrite(p, f"{TUF_METADATA}timestamp.json", version=99),
        "timestamp was signed by 0/1 keys",
    ),
    "missing timestamp": (lambda p, _: p.store.delete(f"{TUF_METADATA}timestamp.json"), "nothing lies there"),
    "snapshot bytes": (lambda p, _: _flip(p, f"{TUF_METADATA}3.snapshot.json"), "does not match expected hash"),
    "snapshot expiry": (
        lambda p, _: _rewrite(p, f"{TUF_METADATA}3.snapshot.json", expires="2999-01-01T00:00:00Z"),
        "more than",
    ),
    "targets bytes": (lambda p, _: _flip(p, f"{TUF_METADATA}3.targets.json"), "does not match expected hash"),
    "older targets": (
        lambda p, _: p.store.put(f"{TUF_METADATA}3.targets.json", p.store.get(f"{TUF_METADATA}2.targets.json")),
        "does not match",
    ),
    "forged root": (_forge_root, "root was signed by 0/1 keys"),
    "noise for a root": (lambda p, _: p.store.put(f"{TUF_METADATA}2.root.json", b"{}"), "deserialize"),
}


@pytest.mark.parametrize("name", _TAMPERINGS)
def test_tampering_is_refused_with_its_reason_and_healing_is_noticed(
    name: str, device: Device, publisher: Publisher, tmp_path: Path
) -> None:
    """Whatever is changed in the bucket, the old model keeps running and the reason is told once; once the bucket
    is whole again the device updates by itself, also after a restart in between."""
    tamper, reason = _TAMPERINGS[name]
    publisher.publish("r-2", bias=0.3)
    publisher.assign("r-2")
    shutil.copytree(publisher.folder / "bucket", tmp_path / "healthy")
    tamper(publisher, tmp_path)
    outcome, detail = _outcome(device.turn())
    assert outcome == "refused"
    assert reason in detail
    assert device.release_id == "r-1"
    assert device.turn() is None
    assert device.outcomes == ["committed", "refused"]
    device.restart()
    assert device.release_id == "r-1"
    shutil.rmtree(publisher.folder / "bucket")
    shutil.copytree(tmp_path / "healthy", publisher.folder / "bucket")
    assert _outcome(device.turn())[0] == "committed"
    assert device.release_id == "r-2"


def _replay(device: Device, publisher: Publisher) -> bytes:
    old = publisher.store.get(desired_key(DEVICE))
    publisher.assign("r-1", policy="newer")
    device.turn()
    return old


def _signed(publisher: Publisher, signer: CryptoSigner | None = None, **changes: object) -> bytes:
    values = {"device_id": DEVICE, "version": 9, "release_id": "r-2", "issued_at": publisher.now, **changes}
    return sign_assignment(Assignment.model_validate(values), signer or create_keys(publisher.keys)["assignment"])


@pytest.mark.parametrize(
    ("forge", "reason"),
    [
        (_replay, "older than the accepted 2"),
        (lambda _, p: _signed(p, device_id="cam-2"), "for device cam-2"),
        (lambda _, p: _signed(p, CryptoSigner.generate_ed25519()), "not signed by a trusted key"),
        (lambda _, p: _signed(p, create_keys(p.keys)["online"]), "not signed by a trusted key"),
        (lambda _, p: _signed(p, version=1), "accepted before with other contents"),
        (lambda _, p: b"{}", "not a signed envelope"),
    ],
    ids=["replayed", "other device", "unknown key", "key of another role", "same version", "noise"],
)
def test_a_false_assignment_changes_nothing(
    forge: Callable[[Device, Publisher], bytes], reason: str, device: Device, publisher: Publisher
) -> None:
    """A false assignment changes neither model nor policy, and the next true one is followed."""
    publisher.publish("r-2", bias=0.3)
    forged = forge(device, publisher)
    policies = list(device.policies)
    publisher.store.put(desired_key(DEVICE), forged)
    outcome, detail = _outcome(device.turn())
    assert (outcome, device.release_id, device.policies) == ("refused", "r-1", policies)
    assert reason in detail
    publisher.store.put(desired_key(DEVICE), _signed(publisher, version=10))
    assert _outcome(device.turn())[0] == "committed"


@pytest.mark.parametrize("truncated", [False, True], ids=["TUF files kept", "TUF files truncated"])
def test_an_older_repository_is_refused_even_when_tuf_forgot(
    truncated: bool, device: Device, publisher: Publisher, tmp_path: Path
) -> None:
    """A genuine but older repository is refused, also when a power cut emptied every file that TUF keeps."""
    publisher.publish("r-2", bias=0.3)
    shutil.copytree(publisher.folder / "bucket", tmp_path / "older")
    publisher.publish("r-3", bias=0.2)
    publisher.assign("r-3")
    assert _outcome(device.turn())[0] == "committed"
    publisher.assign("r-2", downgrade=True)
    desired = publisher.store.get(desired_key(DEVICE))
    shutil.copytree(publisher.folder / "bucket", tmp_path / "newest")
    shutil.rmtree(publisher.folder / "bucket")
    shutil.copytree(tmp_path / "older", publisher.folder / "bucket")
    publisher.store.put(desired_key(DEVICE), desired)
    if truncated:
        for path in (device.folder / "tuf").rglob("*.json"):
            path.write_bytes(b"")
        device.restart()
    outcome, detail = _outcome(device.turn())
    assert outcome == "refused"
    expected = "timestamp version 3 is older than the accepted 4" if truncated else "must be >= 4"
    assert expected in detail
    assert device.release_id == "r-3"
    shutil.copytree(tmp_path / "newest", publisher.folder / "bucket", dirs_exist_ok=True)
    assert _outcome(device.turn())[0] == "committed"
    assert device.release_id == "r-2"


def test_an_older_release_needs_a_signed_permission(device: Device, publisher: Publisher) -> None:
    """An older release is refused until its assignment allows it; the permission does not lower the floor."""
    for name, bias in (("r-2", 0.2), ("r-3", 0.3)):
        publisher.publish(name, bias)
    publisher.assign("r-3")
    device.turn()
    publisher.assign("r-1")
    outcome, detail = _outcome(device.turn())
    assert (outcome, device.release_id) == ("refused", "r-3")
    assert "release number 1 is older than the accepted 3" in detail
    publisher.assign("r-1", downgrade=True)
    assert _outcome(device.turn())[0] == "committed"
    assert device.release_id == "r-1"
    publisher.assign("r-2")
    assert _outcome(device.turn())[0] == "refused"


def test_expired_metadata_stop_updates_but_not_the_model(tmp_path: Path) -> None:
    """Expired metadata keep the model and still let a new policy through; a refresh lets the update through."""
    publisher = Publisher(tmp_path / "cloud", now=datetime.now(UTC) - timedelta(days=13))
    publisher.publish("r-1")
    publisher.assign("r-1")
    device = Device(tmp_path / "device", publisher)
    device.turn()
    publisher.now -= timedelta(days=7)
    publisher.publish("r-2", bias=0.3)
    publisher.assign("r-2", policy="bold")
    outcome, detail = _outcome(device.turn())
    assert (outcome, device.release_id, device.policies[-1].version) == ("refused", "r-1", "bold")
    assert "timestamp.json is expired" in detail
    refresh_timestamp(publisher.store, publisher.keys, datetime.now(UTC))
    assert _outcome(device.turn())[0] == "committed"
    assert device.release_id == "r-2"


def test_a_refresh_writes_only_what_nears_its_end(publisher: Publisher) -> None:
    """Most refreshes write the timestamp alone, and the online key is enough; older ones renew the rest."""

    def written(after: timedelta) -> list[str]:
        store = RecordingStore(publisher.store)
        refresh_timestamp(store, publisher.keys, publisher.now + after)
        return [key.removeprefix(TUF_METADATA) for method, key in store.requests if method == "put"]

    assert written(timedelta(days=200)) == ["3.targets.json", "3.snapshot.json", "timestamp.json"]
    for name in ("root", "targets", "assignment"):
        key_path(publisher.keys, name).unlink()  # type: ignore[arg-type]
    assert written(timedelta(days=201)) == ["timestamp.json"]
    assert written(timedelta(days=250)) == ["4.snapshot.json", "timestamp.json"]


def test_a_revoked_assignment_key_is_noticed(device: Device, publisher: Publisher) -> None:
    """After the root names another assignment key, the old one is worth nothing and the new one is followed."""
    publisher.publish("r-2", bias=0.3)
    stolen = create_keys(publisher.keys)["assignment"]
    key_path(publisher.keys, "assignment").unlink()
    renew_root(publisher.store, publisher.keys, publisher.now)
    assert device.turn() is None
    publisher.store.put(desired_key(DEVICE), _signed(publisher, stolen))
    assert "not signed by a trusted key" in _outcome(device.turn())[1]
    publisher.store.put(desired_key(DEVICE), _signed(publisher, version=10))
    assert _outcome(device.turn())[0] == "committed"
    assert _fresh_release(device.folder.parent / "newcomer", publisher) == "r-2"


# --- the model fails on this device -------------------------------------------------------------------------------


def test_a_model_that_fails_its_self_check_is_refused_and_not_tried_in_a_loop(
    device: Device, publisher: Publisher
) -> None:
    """A model with other answers than its golden ones never goes live, and is not downloaded again at every poll."""
    publisher.publish("r-2", bias=0.3, golden=golden_bytes(bias=-0.3))
    publisher.assign("r-2")
    outcome, detail = _outcome(device.turn())
    assert (outcome, device.release_id) == ("refused", "r-1")
    assert "golden input" in detail
    with pytest.raises(CorruptFileError):
        device.slots.load(device.slots.idle())
    device.store.reset()
    for _ in range(5):
        assert device.turn(after=timedelta(minutes=1)) is None
    assert device.store.requests == [("get", desired_key(DEVICE))] * 5
    publisher.publish("r-3", bias=0.3)
    publisher.assign("r-3")
    assert _outcome(device.turn(after=timedelta(minutes=1)))[0] == "committed"
    assert device.release_id == "r-3"


def test_a_model_that_kills_the_agent_is_given_up(device: Device, publisher: Publisher) -> None:
    """A release over which the process died too often is refused until the assignment changes."""
    publisher.publish("r-2", bias=0.3)
    publisher.assign("r-2")
    _die_while_trying(device)
    for _ in range(2):
        outcome, detail = _outcome(device.turn())
        assert (outcome, device.release_id) == ("refused", "r-1")
        assert f"died {MAX_TRIAL_STARTS} times" in detail
        device.restart()
    publisher.assign("r-2", policy="again")
    assert _outcome(device.turn())[0] == "committed"


def _die_while_trying(device: Device) -> None:
    """Leave the state behind that a process leaves which died over the release each time it tried."""
    path = device.folder / "updater.json"
    device.store.reset(crash_at=7, crash_after=True)  # the model is there, the assignment accepted
    with pytest.raises(CrashError):
        device.turn()
    state = load_state(path)
    trial = Trial(release_id="r-2", desired_sha256=str(state.desired_sha256), starts=MAX_TRIAL_STARTS)
    persist_state(path, state.model_copy(update={"trial": trial}))
    device.store.reset()
    device.restart()


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


# --- the device dies, its link fails, its disk refuses ------------------------------------------------------------


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
    for index in range(20):
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


def test_a_full_disk_rolls_back_or_refuses_and_heals(
    tmp_path: Path, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that refuses any one write keeps the old model running and is told; with room again the update passes."""
    device = Device(tmp_path / "device", publisher)
    device.turn()
    outcomes = []
    for index in range(20):
        name = f"r-{index + 2}"
        publisher.publish(name, bias=0.05 * index)
        publisher.assign(name)
        old = device.release_id
        with monkeypatch.context() as patch:
            seen = _renames(device, patch, index, OSError(28, "No space left on device"), after=False)
            event = device.turn()
        if index >= len(seen) or seen[index] == "updates.json":  # the report logs it and goes on
            break
        outcome, detail = _outcome(event)
        assert "No space left" in detail
        assert device.release_id == old
        outcomes.append(outcome)
        device.turn()
        assert device.release_id == name
    assert set(outcomes) == {"refused", "rolled_back"}


def test_a_dead_link_is_not_a_refusal(device: Device, publisher: Publisher) -> None:
    """An unreachable bucket raises a retryable error, refuses nothing and waits for nothing."""
    publisher.publish("r-2", bias=0.3)
    publisher.assign("r-2")
    device.store.offline = True
    with pytest.raises(StorageUnavailableError):
        device.turn()
    device.store.offline = False
    assert _outcome(device.turn(after=timedelta(0)))[0] == "committed"


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
    assert not np.allclose(before.infer(frame).probabilities, after.infer(frame).probabilities)
