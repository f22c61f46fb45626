"""Pictures on the local disk: what comes back, what is kept out, what goes first."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from curate.errors import BlobNotFoundError
from curate.storage.image_cache import ImageCache
from flows._blobs import fetch_images, fetch_images_if_there
from tests.fakes.wiring import local_services


def _key(data: bytes) -> str:
    return f"captures/cam-1/{hashlib.sha256(data).hexdigest()}.jpg"


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_what_was_put_comes_back_in_another_process(tmp_path: Path) -> None:
    """The folder is all the state there is."""
    ImageCache(tmp_path, 1000).put(_key(b"one"), b"one")
    assert ImageCache(tmp_path, 1000).get(_key(b"one")) == b"one"
    assert ImageCache(tmp_path, 1000).get(_key(b"two")) is None


@pytest.mark.parametrize("key", ["captures/cam-1/latest.jpg", _key(b"other"), "twin/cam-1/ack.json"], ids=str.__len__)
def test_only_what_its_key_names_is_kept(tmp_path: Path, key: str) -> None:
    """A blob that may change, or that is not what its key promises, is asked of the bucket each time."""
    cache = ImageCache(tmp_path, 1000)
    cache.put(key, b"one")
    assert cache.get(key) is None
    assert not _files(tmp_path)


def test_a_damaged_file_is_as_good_as_none(tmp_path: Path) -> None:
    """Bytes that a power cut left behind never reach a training."""
    cache = ImageCache(tmp_path, 1000)
    cache.put(_key(b"one"), b"one")
    _files(tmp_path)[0].write_bytes(b"on")
    assert cache.get(_key(b"one")) is None


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    """A full cache makes room by age of use, not of writing, and stays within its bound."""
    cache = ImageCache(tmp_path, 100)
    blobs = [bytes([n]) * 20 for n in range(5)]
    for age, data in enumerate(blobs):
        cache.put(_key(data), data)
        path = next(p for p in _files(tmp_path) if p.read_bytes() == data)
        os.utime(path, (age, age))
    assert cache.get(_key(blobs[0])) == blobs[0]
    cache.put(_key(b"new" * 7), b"new" * 7)
    left = [data for data in blobs if cache.get(_key(data))]
    assert left[0] == blobs[0]
    assert blobs[1] not in left
    assert sum(path.stat().st_size for path in _files(tmp_path)) <= 100


def test_a_cache_without_room_or_folder_does_no_harm(tmp_path: Path) -> None:
    """Neither a size of 0 nor a path that cannot be written stops a round."""
    (tmp_path / "taken").write_bytes(b"")
    for cache in (ImageCache(tmp_path / "none", 0), ImageCache(tmp_path / "taken", 1000)):
        cache.put(_key(b"one"), b"one")
        assert cache.get(_key(b"one")) is None


def test_a_picture_travels_once_but_ingest_looks_again(tmp_path: Path) -> None:
    """A round reads pictures from the disk; whether a device's picture is in the bucket only the bucket can say."""
    gone, there = _key(b"gone"), _key(b"there")
    with local_services(tmp_path) as wired:
        wired.store.put(gone, b"gone")
        wired.store.put(there, b"there")
        assert fetch_images_if_there(wired, [gone, there]) == {gone: b"gone", there: b"there"}
        wired.store.delete(gone)
        assert fetch_images(wired, [there, gone]) == [b"there", b"gone"]
        assert fetch_images_if_there(wired, [gone, there]) == {there: b"there"}
        with pytest.raises(BlobNotFoundError):
            fetch_images(wired, [_key(b"never seen")])
