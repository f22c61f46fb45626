"""The plaza clip: sources in order, nothing unverified, the frames that were asked for."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from flows.sandbox import plaza_clip as subject
from flows.sandbox.fetched_data import DatasetError
from flows.sandbox.plaza_clip import find_clip, iterate_frames, read_frames

CONTENT = b"a clip, for all that the search for it knows"
NOWHERE = "http://127.0.0.1:9/clip"


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without the clip; what apt-get and dpkg do is up to the test."""
    monkeypatch.setattr(subject, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(subject, "SYSTEM_FOLDER", Path("/nowhere/data"))
    monkeypatch.setattr(subject, "PROJECT_URL", NOWHERE)
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("no_proxy", "*")
    _script(folder / "apt-get", 'echo "E: archive out of reach" >&2; exit 100')
    _script(folder / "dpkg", "exit 1")
    return folder


def _script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def _serve_debian(bin_folder: Path, content: bytes) -> None:
    delivered = bin_folder.parent / "delivered.avi"
    delivered.write_bytes(content)
    _script(bin_folder / "apt-get", f'case "$*" in *download*) touch {subject.DEBIAN_PACKAGE}_1_all.deb;; esac')
    target = '"$3/nowhere/data"'
    _script(bin_folder / "dpkg", f"mkdir -p {target}\ncp {delivered} {target}/{subject.NAME}")


def test_given_folder_is_used_in_place(bin_folder: Path, tmp_path: Path) -> None:
    """A clip in the given folder is used where it lies."""
    (tmp_path / subject.NAME).write_bytes(CONTENT)
    assert find_clip(tmp_path / "cache", tmp_path) == tmp_path / subject.NAME
    assert not (tmp_path / "cache").exists()


def test_compressed_clip_is_unpacked_into_the_cache(bin_folder: Path, tmp_path: Path) -> None:
    """A gzipped clip, as documentation folders have it, is unpacked, and the folder stays as it was."""
    folder = tmp_path / "doc"
    folder.mkdir()
    (folder / f"{subject.NAME}.gz").write_bytes(gzip.compress(CONTENT))
    found = find_clip(tmp_path / "cache", folder)
    assert found == tmp_path / "cache" / subject.NAME
    assert found.read_bytes() == CONTENT
    assert [path.name for path in folder.iterdir()] == [f"{subject.NAME}.gz"]


@pytest.mark.parametrize("content", [None, b"another clip"])
def test_given_folder_is_never_replaced_by_another_source(
    bin_folder: Path, tmp_path: Path, content: bytes | None
) -> None:
    """A given folder with no clip, or with another one, is an error with a hint, even if a download would work."""
    _serve_debian(bin_folder, CONTENT)
    folder = tmp_path / "given"
    folder.mkdir()
    if content is not None:
        (folder / subject.NAME).write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        find_clip(tmp_path / "cache", folder)
    assert caught.value.hint


def test_system_folder_comes_before_the_network(
    bin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the system's package installed is used without asking apt."""
    monkeypatch.setattr(subject, "SYSTEM_FOLDER", tmp_path)
    (tmp_path / subject.NAME).write_bytes(CONTENT)
    assert find_clip(tmp_path / "cache") == tmp_path / subject.NAME


def test_debian_package_is_fetched_once(bin_folder: Path, tmp_path: Path) -> None:
    """Debian's package fills the cache, replaces a damaged clip there, and is not needed a second time."""
    _serve_debian(bin_folder, CONTENT)
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / subject.NAME).write_bytes(b"damaged")
    assert find_clip(cache).read_bytes() == CONTENT
    _script(bin_folder / "apt-get", "exit 1")
    assert find_clip(cache) == cache / subject.NAME


def test_project_is_the_last_resort(bin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When Debian's archive fails, the project's own copy is downloaded."""
    (tmp_path / "upstream").write_bytes(CONTENT)
    monkeypatch.setattr(subject, "PROJECT_URL", (tmp_path / "upstream").as_uri())
    assert find_clip(tmp_path / "cache").read_bytes() == CONTENT


def test_all_sources_failing_says_what_to_do(bin_folder: Path, tmp_path: Path) -> None:
    """Without any source the error names each failure and the next step, and trying again may help."""
    with pytest.raises(DatasetError, match=r"out of reach.*did not arrive") as caught:
        find_clip(tmp_path / "cache")
    assert subject.DEBIAN_PACKAGE in (caught.value.hint or "")
    assert caught.value.retryable


def test_wrong_content_from_a_source_is_refused(bin_folder: Path, tmp_path: Path) -> None:
    """A clip with another checksum never reaches the cache, whoever delivers it."""
    _serve_debian(bin_folder, b"forged")
    with pytest.raises(DatasetError, match="SHA-256"):
        find_clip(tmp_path / "cache")
    assert not (tmp_path / "cache" / subject.NAME).exists()


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Six frames, each of one colour: frame n is (R, G, B) = (40 n, 128, 255 - 40 n)."""
    path = tmp_path / "six.avi"
    writer = cv2.VideoWriter(
        str(path), cv2.VideoWriter.fourcc(*"MJPG"), subject.FRAMES_PER_S, (subject.WIDTH_PX, subject.HEIGHT_PX)
    )
    for number in range(6):
        frame = np.empty((subject.HEIGHT_PX, subject.WIDTH_PX, 3), dtype=np.uint8)
        frame[:] = (255 - 40 * number, 128, 40 * number)
        writer.write(frame)
    writer.release()
    return path


def test_frames_are_the_ones_asked_for(video: Path) -> None:
    """The range is inclusive on both sides, in order, and in RGB."""
    frames = read_frames(video, 2, 4)
    assert frames.shape == (3, subject.HEIGHT_PX, subject.WIDTH_PX, 3)
    assert frames.dtype == np.uint8
    assert frames[:, 0, 0, 0] == pytest.approx([80, 120, 160], abs=6)
    assert frames[:, 0, 0, 2] == pytest.approx([175, 135, 95], abs=6)


def test_short_clip_is_our_error(video: Path) -> None:
    """A clip that ends early raises DatasetError after the frames it has."""
    frames = iterate_frames(video, 4, 7)
    assert len([next(frames), next(frames)]) == 2
    with pytest.raises(DatasetError, match="ends before frame 6"):
        next(frames)


@pytest.mark.parametrize(("first", "last"), [(-1, 3), (4, 3), (0, subject.FRAMES)])
def test_range_outside_the_clip_is_refused(video: Path, first: int, last: int) -> None:
    """A range that is not in the clip is refused before anything is decoded."""
    with pytest.raises(DatasetError, match="has frames 0"):
        read_frames(video, first, last)
