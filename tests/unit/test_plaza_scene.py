"""Recognising what a picture of the plaza shows, without any counter."""

from __future__ import annotations

import numpy as np
import pytest

from flows.sandbox.plaza_scene import ClipReader, Scene, decode, encode, show

HEIGHT, WIDTH, COUNT, FIRST = 144, 192, 24, 199


def _clip(seed: int = 0) -> list[np.ndarray]:
    """A textured place that three figures cross, a few pixels a frame."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 180, size=(9, 12, 3), dtype=np.uint8)
    place = np.kron(coarse, np.ones((16, 16, 1), np.uint8)).astype(np.uint8)
    frames = []
    for number in range(COUNT):
        frame = place.copy()
        for row, (start, speed) in enumerate([(5, 4), (150, -5), (60, 3)]):
            left = start + speed * number
            frame[20 + 40 * row : 50 + 40 * row, max(left, 0) : max(left + 14, 0)] = (20, 30, 200)
        frames.append(frame)
    return frames


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    return _clip()


@pytest.fixture(scope="module")
def reader(frames: list[np.ndarray]) -> ClipReader:
    return ClipReader(range(FIRST, FIRST + COUNT), frames)


@pytest.mark.parametrize("condition", ["day", "dusk"])
def test_every_frame_is_recognised_as_the_camera_sends_it(
    condition: str, frames: list[np.ndarray], reader: ClipReader
) -> None:
    """After the sensor, the camera's JPEG and a second JPEG, each picture still says its frame and the light."""
    for number, frame in enumerate(frames, start=FIRST):
        sent = encode(decode(encode(show(frame, number, condition, seed=3))))
        assert reader.recognise(decode(sent)) == Scene(number, condition)


def test_a_smaller_copy_is_recognised_too(frames: list[np.ndarray], reader: ClipReader) -> None:
    """The picture's size does not matter."""
    assert reader.recognise(np.ascontiguousarray(frames[7][::2, ::2])) == Scene(FIRST + 7, "day")


def test_dusk_is_the_same_every_time_and_dark(frames: list[np.ndarray]) -> None:
    """Dusk is a function of frame and seed; day is the frame itself."""
    first, again = (show(frames[3], 202, "dusk", seed=1) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, show(frames[3], 202, "dusk", seed=2))
    assert 0.1 < first.mean() / frames[3].mean() < 0.3
    assert show(frames[3], 202, "day", seed=1) is frames[3]


def test_a_scene_is_read_as_it_was_written() -> None:
    """Text and scene lead to each other; other words are refused."""
    assert Scene.parse(str(Scene(231, "dusk"))) == Scene(231, "dusk")
    for odd in ("231", "231/night", "x/day", ""):
        with pytest.raises(ValueError, match=r"scene|invalid"):
            Scene.parse(odd)


def test_what_is_no_picture_is_a_value_error() -> None:
    """Callers tell a damaged picture from a lost link."""
    with pytest.raises(ValueError, match="no picture"):
        decode(b"\xff\xd8 not really")
