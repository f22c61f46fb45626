"""Cameras: every frame once and in order, or counted as skipped."""

from __future__ import annotations

import io
import struct
import zlib
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from edge_agent.cameras.base import (
    CameraState,
    Frame,
    Skipped,
    SkipReason,
    UndecodableError,
    decode_image,
    encode_jpeg,
)
from edge_agent.cameras.folder import FollowedFolder, LoopedFolder
from edge_agent.config.cameras import FolderCameraConfig

MAX_PIXELS = 10_000


def png(value: int, size: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder: Path, index: int, data: bytes | None = None) -> Path:
    temporary = folder / f".{index}.tmp"
    temporary.write_bytes(png(index % 256) if data is None else data)
    return temporary.rename(folder / f"{index:06d}.png")


def config(folder: Path, **changes: object) -> FolderCameraConfig:
    values = {"camera_id": "front", "path": folder, "max_lag_frames": 10, "max_image_pixels": MAX_PIXELS}
    return FolderCameraConfig.model_validate(values | changes)


def drain(camera: FollowedFolder) -> tuple[list[int], dict[str, int]]:
    """Poll until there is nothing new."""
    frames: list[int] = []
    skipped: dict[str, int] = {}
    while (event := camera.poll()) is not None:
        if isinstance(event, Frame):
            frames.append(event.index)
        else:
            skipped[event.reason.value] = skipped.get(event.reason.value, 0) + event.count
    return frames, skipped


def test_it_starts_at_the_newest_and_reads_each_once(tmp_path: Path) -> None:
    """History is not replayed; afterwards each new index comes once, in order, whatever else lies there."""
    camera = FollowedFolder(config(tmp_path))
    assert camera.poll() is None
    for index in range(5):
        write(tmp_path, index)
    (tmp_path / "notes.txt").write_text("no frame")
    (tmp_path / "12.png.tmp").write_bytes(b"half")
    assert drain(camera) == ([4], {})
    for index in (5, 6, 7):
        write(tmp_path, index)
    assert drain(camera) == ([5, 6, 7], {})
    assert drain(camera) == ([], {})


def test_a_frame_says_what_it_is(tmp_path: Path) -> None:
    """Pixels, index, time of writing in UTC and the camera's own bytes are those of the file."""
    path = write(tmp_path, 3)
    frame = FollowedFolder(config(tmp_path), monotonic=lambda: 12.5).poll()
    assert isinstance(frame, Frame)
    assert (frame.camera_id, frame.index, frame.monotonic_s) == ("front", 3, 12.5)
    assert frame.image.shape == (8, 8, 3)
    assert frame.image.dtype == np.uint8
    assert int(frame.image[0, 0, 0]) == 3
    assert frame.captured_at == datetime.fromtimestamp(path.stat().st_mtime, UTC)
    assert frame.encoded == path.read_bytes()


def test_falling_behind_skips_the_oldest(tmp_path: Path) -> None:
    """With more than max_lag_frames waiting, the oldest count as backpressure and the newest are read."""
    camera = FollowedFolder(config(tmp_path))
    write(tmp_path, 0)
    drain(camera)
    for index in range(1, 26):
        write(tmp_path, index)
    assert drain(camera) == (list(range(16, 26)), {"backpressure": 15})


def test_pruned_frames_count_as_skipped(tmp_path: Path) -> None:
    """Files the writer removed unread are counted, both before and after they were listed."""
    camera = FollowedFolder(config(tmp_path))
    write(tmp_path, 0)
    drain(camera)
    paths = [write(tmp_path, index) for index in range(1, 7)]
    for path in paths[:2]:
        path.unlink()
    (tmp_path / "000000.png").unlink()
    first = camera.poll()
    assert first == Skipped(SkipReason.BACKPRESSURE, 2)
    paths[3].unlink()
    assert drain(camera) == ([3, 5, 6], {"backpressure": 1})


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=8))
def test_no_frame_is_read_twice_or_forgotten(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int]]
) -> None:
    """However writer, pruner and reader interleave, indices only grow and seen + skipped is what was written."""
    folder = tmp_path_factory.mktemp("frames")
    camera = FollowedFolder(config(folder))
    write(folder, 0)
    read, skipped = drain(camera)
    count = 1
    for written, kept in steps:
        for _ in range(written):
            write(folder, count)
            count += 1
        for path in sorted(folder.iterdir())[: -max(kept, 1)]:
            path.unlink()
        frames, lost = drain(camera)
        read += frames
        skipped["backpressure"] = skipped.get("backpressure", 0) + lost.get("backpressure", 0)
    assert read == sorted(set(read))
    assert len(read) + skipped.get("backpressure", 0) == count


@pytest.mark.parametrize("data", [b"", b"no picture", png(1)[:40], b"GIF89a" + b"\0" * 50])
def test_undecodable_files_are_skipped(tmp_path: Path, data: bytes) -> None:
    """A damaged file is one skipped frame, and the next one is read."""
    camera = FollowedFolder(config(tmp_path))
    write(tmp_path, 0)
    drain(camera)
    write(tmp_path, 1, data)
    write(tmp_path, 2)
    assert drain(camera) == ([2], {"undecodable": 1})


def bomb(side: int) -> bytes:
    """A PNG whose header promises side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [200, 9_000, 12_000, 60_000])
def test_decompression_bombs_are_refused(side: int) -> None:
    """More pixels than configured are refused from the header alone, at every size Pillow treats differently."""
    with pytest.raises(UndecodableError):
        decode_image(bomb(side), max_pixels=MAX_PIXELS)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    """A file above max_file_bytes is undecodable."""
    camera = FollowedFolder(config(tmp_path, max_file_bytes=100))
    write(tmp_path, 0, png(0) + b"\0" * 200)
    assert drain(camera) == ([], {"undecodable": 1})


@settings(max_examples=60, deadline=None)
@given(position=st.integers(0, 200), value=st.integers(0, 255), cut=st.integers(0, 300))
def test_no_damage_escapes_the_decoder(position: int, value: int, cut: int) -> None:
    """Flipped bytes and cut ends give a picture or an UndecodableError, never another exception."""
    for whole in (png(77, 16), encode_jpeg(np.full((16, 16, 3), 77, np.uint8), quality=90)):
        data = bytearray(whole)
        data[position % len(data)] = value
        try:
            image = decode_image(bytes(data[: len(data) - cut % len(data)]), max_pixels=MAX_PIXELS)
        except UndecodableError:
            continue
        assert image.ndim == 3


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    """Grey, palette, alpha, bilevel and 16-bit pictures all become uint8 [H, W, 3]."""
    buffer = io.BytesIO()
    Image.new(mode, (6, 4)).save(buffer, "PNG")
    image = decode_image(buffer.getvalue(), max_pixels=MAX_PIXELS)
    assert image.shape == (4, 6, 3)
    assert image.dtype == np.uint8


def test_sixteen_bits_of_grey_keep_their_shades() -> None:
    """A 16-bit PNG, as thermal cameras write them, is scaled to eight bits: black, middle and white stay what they
    are."""
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 257, 32768, 65535]], np.uint16)).save(buffer, "PNG")
    image = decode_image(buffer.getvalue(), max_pixels=MAX_PIXELS)
    assert image[0].tolist() == [[0] * 3, [1] * 3, [127] * 3, [255] * 3]


def test_a_writer_that_starts_anew_is_followed(tmp_path: Path) -> None:
    """When the indices begin again at a lower number, the newest of them is next."""
    camera = FollowedFolder(config(tmp_path))
    old = write(tmp_path, 900)
    drain(camera)
    old.unlink()
    write(tmp_path, 0)
    write(tmp_path, 1)
    assert drain(camera) == ([1], {})


def test_a_missing_folder_is_waited_for(tmp_path: Path) -> None:
    """A folder that does not exist yet gives no frames and no error; once it is there, it is followed."""
    folder = tmp_path / "later"
    camera = FollowedFolder(config(folder))
    assert camera.poll() is None
    folder.mkdir()
    write(folder, 0)
    assert drain(camera) == ([0], {})


def test_an_index_is_given_once(tmp_path: Path) -> None:
    """Two files of one index, as a writer that changes its format leaves them, are one frame."""
    camera = FollowedFolder(config(tmp_path))
    write(tmp_path, 1)
    assert drain(camera) == ([1], {})
    for index in (2, 3):
        path = write(tmp_path, index)
        path.with_name(f"{index}.PNG").write_bytes(path.read_bytes())
    assert drain(camera) == ([2, 3], {})


def test_a_folder_that_cannot_be_read_is_lost_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A folder that the system refuses gives no frames and no error, whether it is followed or looped."""
    refused = tmp_path / ("x" * 300)
    for camera in (FollowedFolder(config(refused)), LoopedFolder(config(refused, follow=False))):
        caplog.clear()
        assert [camera.poll(), camera.poll()] == [None, None]
        assert camera.state is CameraState.LOST
        assert [record.message for record in caplog.records] == ["camera folder cannot be read"]


def test_a_loop_plays_pictures_at_their_rate(tmp_path: Path) -> None:
    """Without follow, pictures come in name order, round and round, one each 1 / fps, and lag is skipped."""
    for index in (1, 2):
        write(tmp_path, index)
    now = [0.0]
    camera = LoopedFolder(
        config(tmp_path, follow=False, fps=10),
        monotonic=lambda: now[0],
        wall_clock=lambda: datetime(2026, 1, 1, tzinfo=UTC),
    )
    seen = []
    for tick in range(30):
        now[0] = tick * 0.05 + 0.001
        while (event := camera.poll()) is not None:
            assert isinstance(event, Frame)
            seen.append((event.index, int(event.image[0, 0, 0])))
    assert seen == [(index, 1 + index % 2) for index in range(15)]
    now[0] = 10.0
    assert camera.poll() == Skipped(SkipReason.BACKPRESSURE, 85)
    assert isinstance(camera.poll(), Frame)
    assert camera.poll() is None
