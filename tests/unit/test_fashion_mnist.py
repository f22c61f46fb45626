"""The data set's loader: sources in order, nothing unverified, nothing half-fetched."""

from __future__ import annotations

import gzip
import hashlib
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from flows.sandbox import fashion_mnist as subject
from flows.sandbox.fashion_mnist import DatasetError, IdxFile, load_fashion_mnist, load_idx

NOWHERE = "http://127.0.0.1:9"


def _idx_bytes(values: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


class Mirror:
    """A tiny data set of the right form, its folder of .gz files and a fake apt-get and dpkg that deliver it."""

    def __init__(self, root: Path) -> None:
        rng = np.random.default_rng(0)
        shapes = {"train-images": (6, 28, 28), "train-labels": (6,), "t10k-images": (3, 28, 28), "t10k-labels": (3,)}
        self.folder = root / "mirror"
        self.folder.mkdir()
        self.calls = root / "apt-calls"
        self.bin = root / "bin"
        self.bin.mkdir()
        self.files = []
        for name, shape in shapes.items():
            content = _idx_bytes(rng.integers(0, 10, size=shape, dtype=np.uint8))
            self.files.append(IdxFile(name, shape, hashlib.sha256(content).hexdigest()))
            (self.folder / f"{name}.gz").write_bytes(gzip.compress(content))

    def serve_debian(self, *, system_lists: bool) -> None:
        """With `system_lists` false, `apt-get download` works only after an update into lists of its own."""
        refuse = "" if system_lists else 'case "$*" in *Dir::State*) ;; *) echo "E: no package" >&2; exit 100;; esac'
        self._script(
            "apt-get",
            f'echo "$*" >> {self.calls}\n{refuse}\n'
            f'case "$*" in *download*) touch {subject.DEBIAN_PACKAGE}_1_all.deb;; esac',
        )
        target = '"$3/usr/share/datasets/fashion-mnist"'
        self._script("dpkg", f"mkdir -p {target}\ncp {self.folder}/*.gz {target}")

    def break_debian(self) -> None:
        """Debian's archive cannot be reached."""
        self._script("apt-get", 'echo "E: archive out of reach" >&2; exit 100')
        self._script("dpkg", "exit 1")

    def apt_calls(self) -> list[str]:
        """The command lines that apt-get got."""
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    def _script(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    mirror = Mirror(tmp_path)
    monkeypatch.setattr(subject, "FILES", tuple(mirror.files))
    monkeypatch.setattr(subject, "SYSTEM_FOLDER", tmp_path / "system")
    monkeypatch.setattr(subject, "PROJECT_URL", NOWHERE)
    monkeypatch.setenv("PATH", f"{mirror.bin}:/usr/bin:/bin")
    monkeypatch.setenv("no_proxy", "*")
    return mirror


def test_given_folder_is_used(mirror: Mirror, tmp_path: Path) -> None:
    """A given folder is read in place, images and labels in their shapes, and cannot be written to."""
    data = load_fashion_mnist(tmp_path / "cache", mirror.folder)
    assert data.train_images.shape == (6, 28, 28)
    assert data.test_labels.shape == (3,)
    assert not data.train_images.flags.writeable
    assert not (tmp_path / "cache").exists()


def test_given_folder_is_never_replaced_by_another_source(mirror: Mirror, tmp_path: Path) -> None:
    """A given folder without the data is an error that says what it must hold, even if a download would work."""
    mirror.serve_debian(system_lists=True)
    with pytest.raises(DatasetError, match="cannot be read") as caught:
        load_fashion_mnist(tmp_path / "cache", tmp_path / "empty")
    assert "train-images" in (caught.value.hint or "")
    assert mirror.apt_calls() == []


def test_system_folder_comes_before_the_network(mirror: Mirror, tmp_path: Path) -> None:
    """What the system's package installed is used without asking apt."""
    mirror.serve_debian(system_lists=True)
    (tmp_path / "system").symlink_to(mirror.folder)
    load_fashion_mnist(tmp_path / "cache")
    assert mirror.apt_calls() == []


@pytest.mark.parametrize("system_lists", [True, False])
def test_debian_package_is_fetched_once(mirror: Mirror, tmp_path: Path, system_lists: bool) -> None:
    """Debian's package fills the cache, with the system's lists or lists of its own, and the next load needs no apt."""
    mirror.serve_debian(system_lists=system_lists)
    first = load_fashion_mnist(tmp_path / "cache")
    calls = mirror.apt_calls()
    again = load_fashion_mnist(tmp_path / "cache")
    assert any("update" in call for call in calls) == (not system_lists)
    assert mirror.apt_calls() == calls
    assert np.array_equal(first.train_images, again.train_images)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted(
        ["fetch.lock", *(f"{file.name}.gz" for file in mirror.files)]
    )


def test_concurrent_loads_fetch_once(mirror: Mirror, tmp_path: Path) -> None:
    """Loads that start together share one fetch and all get the data."""
    mirror.serve_debian(system_lists=True)
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(load_fashion_mnist, [tmp_path / "cache"] * 4))
    assert len(mirror.apt_calls()) == 1
    assert all(np.array_equal(data.test_labels, loaded[0].test_labels) for data in loaded)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_damaged_cache_is_fetched_again(mirror: Mirror, tmp_path: Path, suffix: str) -> None:
    """A damaged file in the cache, plain or compressed, and the remains of a killed fetch are replaced by good data."""
    mirror.serve_debian(system_lists=True)
    cache = tmp_path / "cache"
    before = load_fashion_mnist(cache)
    (cache / f"train-labels{suffix}").write_bytes(b"damaged")
    (cache / "fetching-killed").mkdir()
    after = load_fashion_mnist(cache)
    assert np.array_equal(before.train_labels, after.train_labels)
    assert not (cache / "fetching-killed").exists()


def test_project_page_is_the_last_resort(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When Debian's archive fails, the project's own files are downloaded."""
    mirror.break_debian()
    handler = partial(_QuietHandler, directory=str(mirror.folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setattr(subject, "PROJECT_URL", f"http://127.0.0.1:{server.server_port}")
        data = load_fashion_mnist(tmp_path / "cache")
        server.shutdown()
        thread.join()
    assert data.train_images.shape == (6, 28, 28)


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def test_all_sources_failing_says_what_to_do(mirror: Mirror, tmp_path: Path) -> None:
    """Without any source the error names each failure and the next step, and trying again may help."""
    mirror.break_debian()
    with pytest.raises(DatasetError, match=r"out of reach.*did not arrive") as caught:
        load_fashion_mnist(tmp_path / "cache")
    assert subject.DEBIAN_PACKAGE in (caught.value.hint or "")
    assert caught.value.retryable


def test_wrong_content_from_a_source_is_refused(mirror: Mirror, tmp_path: Path) -> None:
    """Data with another checksum never reaches the cache, whoever delivers it."""
    mirror.serve_debian(system_lists=True)
    forged = _idx_bytes(np.zeros((6,), dtype=np.uint8))
    (mirror.folder / "train-labels.gz").write_bytes(gzip.compress(forged))
    with pytest.raises(DatasetError, match="SHA-256"):
        load_fashion_mnist(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.gz"))


@pytest.mark.parametrize("content", [b"", b"not gzip at all", gzip.compress(b"x" * 999, mtime=0)[:-9]])
def test_unreadable_file_is_our_error(tmp_path: Path, content: bytes) -> None:
    """Empty, foreign and cut-off files raise DatasetError, not the decoder's own error."""
    path = tmp_path / "train-labels.gz"
    path.write_bytes(content)
    with pytest.raises(DatasetError):
        load_idx(path, IdxFile("train-labels", (6,), "0" * 64))
