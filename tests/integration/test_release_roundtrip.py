"""Releases from publisher to device over a bucket, with the real TUF client, real signatures and a real ONNX model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from curate.contracts.paths import TUF_METADATA, desired_key
from curate.contracts.telemetry import UpdateEvent
from curate.errors import AccessDeniedError, BlobNotFoundError, ReleaseError, TrustError
from curate.release.assignments import assign
from curate.release.publish import publish_release
from curate.release.repository import init_repository
from curate.storage.local import LocalBlobStore
from curate.storage.ports import BlobStore
from curate.storage.s3_lean import LeanS3BlobStore
from curate.storage.s3_settings import S3Settings
from edge_agent.models.updater_state import load_state
from tests.fakes.recording_store import CrashError, RecordingStore
from tests.fakes.releases import DEVICE, Device, Publisher, draft, release_files


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


def test_a_release_travels_over_a_real_s3_server(tmp_path: Path, s3_settings: S3Settings) -> None:
    """Publisher and device meet over real S3, where missing keys are answers of a server."""
    publisher = Publisher(tmp_path / "cloud", bucket=LeanS3BlobStore(s3_settings))
    device = Device(tmp_path / "device", publisher)
    assert device.turn() is None
    for release_id, bias in (("r-1", 0.0), ("r-2", 0.4)):
        publisher.publish(release_id, bias)
        publisher.assign(release_id)
        assert _outcome(device.turn())[0] == "committed"
        assert device.release_id == release_id
    assert device.turn() is None


def test_a_bucket_that_hides_what_is_missing_is_no_obstacle(tmp_path: Path) -> None:
    """S3 denies access to a missing key where listing is not allowed: no assignment yet, no newer root."""

    class Secretive(LocalBlobStore):
        def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
            try:
                return super().get(key, max_bytes=max_bytes)
            except BlobNotFoundError as exc:
                raise AccessDeniedError(str(exc)) from exc

    publisher = Publisher(tmp_path / "cloud")
    device = Device(tmp_path / "device", publisher)
    device.store.inner = Secretive(publisher.folder / "bucket")
    assert device.turn() is None
    publisher.publish("r-1")
    publisher.assign("r-1")
    assert _outcome(device.turn())[0] == "committed"


def test_a_steady_poll_is_one_request(device: Device, publisher: Publisher) -> None:
    """Nothing new costs one conditional GET; a new policy without a new release three; a release eight."""
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
    assert {method for method, _ in device.store.requests} == {"get", "stream"}


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
    again = publish_release(store, publisher.keys, draft("r-1"), release_files(), later)
    assert (again.release_id, again.number) == ("r-1", 1)
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


def _fresh_release(folder: Path, publisher: Publisher) -> str | None:
    device = Device(folder, publisher)
    event = device.turn()
    assert event is not None
    assert device.release_id == (event.release_id if event.outcome == "committed" else None)
    return device.release_id


def _count_requests(work: Callable[[RecordingStore], object], store: BlobStore) -> int:
    recording = RecordingStore(store)
    work(recording)
    return len(recording.requests)


@pytest.mark.parametrize("crash_after", [False, True], ids=["before", "after"])
def test_a_publisher_that_dies_anywhere_leaves_a_whole_repository(tmp_path: Path, crash_after: bool) -> None:
    """Wherever publishing dies, a new device gets the old release or the new one, and running again completes it."""

    def publish(publisher: Publisher, store: BlobStore) -> int:
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
