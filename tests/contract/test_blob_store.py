"""The law every blob store obeys: a folder and a real S3 server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from curate.errors import (
    AccessDeniedError,
    BlobExistsError,
    BlobNotFoundError,
    ConfigError,
    StorageError,
    StorageUnavailableError,
)
from curate.storage.local import LocalBlobStore
from curate.storage.ports import STREAM_BYTES, BlobInfo, BlobStore
from curate.storage.s3 import S3BlobStore, ensure_bucket
from curate.storage.s3_lean import LeanS3BlobStore
from curate.storage.s3_settings import S3Settings
from tests.conftest import DEVICE_BUCKET, S3Server, free_ports

AnyS3 = type[S3BlobStore] | type[LeanS3BlobStore]
S3_STORES = {"s3": S3BlobStore, "lean": LeanS3BlobStore}


@pytest.fixture(params=S3_STORES)
def any_s3(request: pytest.FixtureRequest) -> AnyS3:
    """The cloud's client and the device's."""
    return S3_STORES[request.param]


@pytest.fixture(params=["local", *S3_STORES])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    """An empty store of each kind."""
    if request.param == "local":
        return LocalBlobStore(tmp_path / "bucket")
    remote = S3_STORES[request.param](request.getfixturevalue("shared_bucket"))
    for blob in remote.list(""):
        remote.delete(blob.key)
    return remote


@pytest.fixture(scope="module")
def shared_bucket(s3_server: S3Server) -> S3Settings:
    """One bucket for all laws: making a bucket costs more than emptying it."""
    settings = s3_server.settings("blob-store-law")
    ensure_bucket(settings)
    return settings


def test_put_then_get_returns_the_bytes(store: BlobStore) -> None:
    """What was written is read back, also empty and binary, and `size` agrees."""
    for key, data in {"a/empty": b"", "a/b/binary.jpg": bytes(range(256)) * 300}.items():
        store.put(key, data, content_type="image/jpeg")
        assert store.get(key) == data
        assert store.size(key) == len(data)


def test_a_stream_starts_where_it_is_told(store: BlobStore) -> None:
    """A blob streamed from any byte on is the rest of it; from its end and beyond there is nothing; absent is said."""
    data = bytes(range(256)) * 700
    store.put("tuf/targets/model.onnx", data)
    for start in (0, 1, 65536, len(data) - 1, len(data), len(data) + 5):
        pieces = list(store.stream("tuf/targets/model.onnx", start=start))
        assert b"".join(pieces) == data[start:]
        assert all(0 < len(piece) <= STREAM_BYTES for piece in pieces)
    with pytest.raises(BlobNotFoundError):
        list(store.stream("tuf/targets/absent"))


def test_put_replaces(store: BlobStore) -> None:
    """A second put wins."""
    store.put("twin/cam-1/reported.json", b"old and longer")
    store.put("twin/cam-1/reported.json", b"new")
    assert store.get("twin/cam-1/reported.json") == b"new"


def test_create_refuses_a_taken_key_and_keeps_the_first(store: BlobStore) -> None:
    """`create` never overwrites."""
    store.create("captures/x.jpg", b"first")
    with pytest.raises(BlobExistsError):
        store.create("captures/x.jpg", b"second")
    assert store.get("captures/x.jpg") == b"first"


def test_of_many_creators_exactly_one_wins(store: BlobStore) -> None:
    """Racing creators of one key: one succeeds, all others learn that the key is taken."""
    barrier = threading.Barrier(8)

    def attempt(number: int) -> bool:
        barrier.wait()
        try:
            store.create("race", str(number).encode())
        except BlobExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(attempt, range(8)))
    assert sum(outcomes) == 1
    assert store.get("race") == str(outcomes.index(True)).encode()


def test_missing_blob(store: BlobStore) -> None:
    """What is not there raises on get, has no size, and deletes without complaint, twice."""
    with pytest.raises(BlobNotFoundError):
        store.get("no/such")
    assert store.size("no/such") is None
    store.delete("no/such")
    store.put("there", b"1")
    store.delete("there")
    store.delete("there")
    assert store.size("there") is None


def test_get_refuses_more_than_max_bytes(store: BlobStore) -> None:
    """`max_bytes` bounds what is read; a blob of exactly that size passes."""
    store.put("big", b"x" * 1000)
    with pytest.raises(StorageError, match="1000 bytes"):
        store.get("big", max_bytes=999)
    assert len(store.get("big", max_bytes=1000)) == 1000


def test_an_unchanged_blob_is_not_read_again(store: BlobStore) -> None:
    """A tag gets nothing until somebody writes the key, even to the same length; then it gets the new bytes."""
    store.put("twin/desired.json", b"old")
    first = store.get_if_changed("twin/desired.json", None)
    assert first is not None
    assert first.data == b"old"
    assert store.get_if_changed("twin/desired.json", first.tag) is None
    store.put("twin/desired.json", b"new")
    second = store.get_if_changed("twin/desired.json", first.tag)
    assert second is not None
    assert (second.data, second.tag != first.tag) == (b"new", True)
    with pytest.raises(StorageError, match="3 bytes"):
        store.get_if_changed("twin/desired.json", first.tag, max_bytes=2)
    for tag in (None, first.tag):
        with pytest.raises(BlobNotFoundError):
            store.get_if_changed("twin/nothing.json", tag)


def test_list_yields_the_prefix_in_key_order(store: BlobStore) -> None:
    """Listing gives exactly the keys under the prefix, as bytes sort, with sizes; nothing under nothing."""
    keys = ["inbox/cam-1/b-2.json", "inbox/cam-1/b-1.json", "inbox/cam-10/b-1.json", "inbox/cam/b-1.json", "other/x"]
    for length, key in enumerate(keys):
        store.put(key, b"x" * length)
    assert [blob.key for blob in store.list("inbox/")] == sorted(keys[:4])
    assert list(store.list("inbox/cam-1/")) == [
        BlobInfo("inbox/cam-1/b-1.json", 1),
        BlobInfo("inbox/cam-1/b-2.json", 0),
    ]
    assert [blob.key for blob in store.list("inbox/cam-1")] == sorted(keys[:3])
    assert [blob.key for blob in store.list("")] == sorted(keys)
    assert list(store.list("nothing/here/")) == []


def test_list_crosses_pages(store: BlobStore) -> None:
    """More blobs than one S3 page (1,000) are all listed, once."""
    keys = [f"many/{number:05d}" for number in range(1050)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(key, b""), keys))
    assert [blob.key for blob in store.list("many/")] == keys


@pytest.mark.parametrize(
    "key", ["", "/etc/x", "../x", "a/../../x", "a//b", "a/./b", "a/", ".hidden", "a\\b", "a\nb", "x" * 1025]
)
def test_climbing_keys_are_refused(store: BlobStore, key: str) -> None:
    """A key that is not plain names joined by slashes never reaches the store."""
    calls: list[Callable[[], object]] = [
        lambda: store.put(key, b""),
        lambda: store.create(key, b""),
        lambda: store.get(key),
        lambda: store.get_if_changed(key, None),
        lambda: store.size(key),
        lambda: store.delete(key),
    ]
    for call in calls:
        with pytest.raises(StorageError) as caught:
            call()
        assert type(caught.value) is StorageError
    if key not in ("", "a/"):
        with pytest.raises(StorageError):
            list(store.list(key))


def test_a_reader_never_sees_half_a_blob(store: BlobStore) -> None:
    """While a key is replaced again and again, every read is one of the whole values."""
    values = [bytes([number]) * 50_000 for number in range(2)]
    store.put("flip", values[0])
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for value in values:
                store.put("flip", value)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert all(store.get("flip") in values for _ in range(50))
    finally:
        stop.set()
        writer.join()


def test_local_leaves_no_temporary_files(tmp_path: Path) -> None:
    """After writes and refused creates only the blobs lie in the folder."""
    store = LocalBlobStore(tmp_path)
    store.put("a/x", b"1")
    with pytest.raises(BlobExistsError):
        store.create("a/x", b"2")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["x"]


def test_local_file_and_folder_of_one_name_exclude_each_other(tmp_path: Path) -> None:
    """The folder's one limit is told as an error of ours and loses nothing."""
    store = LocalBlobStore(tmp_path)
    store.put("a", b"1")
    with pytest.raises(StorageError, match="in the way"):
        store.put("a/b", b"2")
    store.put("c/d", b"1")
    with pytest.raises(StorageError):
        store.put("c", b"2")
    assert store.get("a") == b"1"
    assert store.get("c/d") == b"1"
    assert store.size("c") is None


def test_devices_cannot_write_into_each_others_prefix(s3_server: S3Server, any_s3: AnyS3) -> None:
    """With its own key a device writes its prefixes and nothing else, and cannot remove what others wrote."""
    one, two = (any_s3(s3_server.as_device(device)) for device in ("cam-1", "cam-2"))
    one.put("captures/cam-1/a.jpg", b"mine")
    one.put("inbox/cam-1/b-00000001.json", b"{}")
    calls: list[Callable[[], None]] = [
        lambda: two.put("captures/cam-1/a.jpg", b"yours"),
        lambda: two.create("inbox/cam-1/b-00000002.json", b"{}"),
        lambda: two.put("twin/cam-2/desired.json", b"{}"),
        lambda: two.delete("captures/cam-1/a.jpg"),
    ]
    for call in calls:
        with pytest.raises(AccessDeniedError):
            call()
    assert S3BlobStore(s3_server.settings(DEVICE_BUCKET)).get("captures/cam-1/a.jpg") == b"mine"


def test_wrong_credentials_are_denied_not_retried(s3_server: S3Server, s3_settings: S3Settings, any_s3: AnyS3) -> None:
    """An unknown key and a wrong secret are final errors."""
    for access_key, secret_key in (("nobody", "x"), ("admin", "wrong")):
        bad = s3_server.settings(s3_settings.bucket, access_key=access_key, secret_key=secret_key)
        with pytest.raises(AccessDeniedError) as caught:
            any_s3(bad).put("x", b"")
        assert not caught.value.retryable


def test_an_unreachable_server_is_a_passing_fault_told_in_time(any_s3: AnyS3) -> None:
    """Nobody listening, and a listener that never answers, end in a retryable error within the time limits."""
    import socket

    (dead,) = free_ports(1)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        for port in (dead, mute.getsockname()[1]):
            settings = S3Settings(
                endpoint_url=f"http://127.0.0.1:{port}",
                bucket="bucket",
                access_key=SecretStr("a"),
                secret_key=SecretStr("b"),
                connect_timeout_s=0.5,
                read_timeout_s=0.5,
                max_attempts=1,
            )
            started = time.monotonic()
            with pytest.raises(StorageUnavailableError) as caught:
                any_s3(settings).put("x", b"")
            assert caught.value.retryable
            assert time.monotonic() - started < 30


def test_a_missing_bucket_is_not_a_missing_blob(s3_server: S3Server, any_s3: AnyS3) -> None:
    """Reading from a bucket nobody made is a mistake to fix, not an absent blob."""
    with pytest.raises(StorageError) as caught:
        any_s3(s3_server.settings("nobody-made-this")).get("x")
    assert not isinstance(caught.value, BlobNotFoundError)


def test_ensure_bucket_twice(s3_settings: S3Settings) -> None:
    """Making a bucket that is there keeps what it holds."""
    store = S3BlobStore(s3_settings)
    store.put("kept", b"1")
    ensure_bucket(s3_settings)
    assert store.get("kept") == b"1"


@pytest.mark.parametrize(
    "text",
    [
        '{"access_key": "admin", "secret_key": "admin-secret"}',
        "[default]\naws_access_key_id = admin\naws_secret_access_key = admin-secret\n",
    ],
)
def test_credentials_file_in_both_formats(s3_settings: S3Settings, tmp_path: Path, text: str, any_s3: AnyS3) -> None:
    """A JSON or an AWS ini file gives the same access as keys."""
    path = tmp_path / "credentials"
    path.write_text(text)
    store = any_s3(s3_settings.model_copy(update={"access_key": None, "secret_key": None, "credentials_file": path}))
    store.put("x", b"1")
    assert store.get("x") == b"1"


@pytest.mark.parametrize("text", ["{", "[default]\n", "", '{"access_key": "hunter2"}'])
def test_a_broken_credentials_file_is_told_without_its_content(tmp_path: Path, text: str, any_s3: AnyS3) -> None:
    """The error names the file, never what is in it."""
    path = tmp_path / "credentials"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        any_s3(S3Settings(bucket="bucket", endpoint_url="http://127.0.0.1:1", credentials_file=path))
    assert str(path) in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_settings_show_no_secret_and_refuse_half_a_pair() -> None:
    """Printing settings hides keys; one key without the other is refused."""
    settings = S3Settings(bucket="bucket", access_key=SecretStr("AK"), secret_key=SecretStr("hunter2"))
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in settings.model_dump_json()
    with pytest.raises(ValidationError):
        S3Settings(bucket="bucket", access_key=SecretStr("AK"))
