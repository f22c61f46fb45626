"""Whatever is done to the bucket: the old model keeps running, the reason is told, and healing is noticed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner

from curate.contracts.assignment import Assignment
from curate.contracts.paths import TUF_METADATA, TUF_TARGETS, desired_key
from curate.contracts.telemetry import UpdateEvent
from curate.release.assignments import sign_assignment
from curate.release.keys import KEY_NAMES, create_keys, key_path
from curate.release.repository import init_repository, refresh_timestamp, renew_root
from curate.storage.local import LocalBlobStore
from tests.fakes.recording_store import RecordingStore
from tests.fakes.releases import DEVICE, Device, Publisher


def _outcome(event: UpdateEvent | None) -> tuple[str, str]:
    assert event is not None
    return event.outcome, event.detail or ""


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
            (key := _key_of(p, TUF_TARGETS, "r-2.model-int8.onnx")), b"\0" * 4096 + p.store.get(key)
        ),
        "does not match expected hash",
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
    for name in KEY_NAMES:
        if name != "online":
            key_path(publisher.keys, name).unlink()
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
    newcomer = Device(device.folder.parent / "newcomer", publisher)
    assert _outcome(newcomer.turn())[0] == "committed"
