"""The plaza's cameras: Motion JPEG over HTTP at the clip's own pace, in the light the control file says."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from curate.errors import ConfigError
from flows.sandbox.plaza_camera import (
    Broadcast,
    CameraConfig,
    PlazaControl,
    Reel,
    camera_address,
    run_cameras,
)
from flows.sandbox.plaza_scene import decode, encode
from flows.sandbox.ports import find_free_ports
from flows.sandbox.simulator import load_control_file, persist_control_file

LEVELS = tuple(range(100, 240, 20))


def _reel() -> Reel:
    """Plain pictures, each of a brightness of its own."""
    return Reel([encode(np.full((32, 48, 3), level, np.uint8)) for level in LEVELS], first=199, seed=0)


def _level(jpeg: bytes) -> float:
    return float(decode(jpeg).mean())


def _config(root: Path, **changes: object) -> CameraConfig:
    values = {
        "clip": root / "unused.avi",
        "cameras": {"plaza-1": 0, "plaza-2": 3},
        "port": find_free_ports(1)[0],
        "control_file": root / "world.json",
        "fps": 100.0,
    }
    return CameraConfig.model_validate(values | changes)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., CameraConfig]]:
    stopping = threading.Event()
    threads: list[threading.Thread] = []

    def start(**changes: object) -> CameraConfig:
        config = _config(tmp_path, **changes)
        threads.append(threading.Thread(target=run_cameras, args=(config, _reel(), stopping)))
        threads[-1].start()
        return config

    yield start
    stopping.set()
    for thread in threads:
        thread.join(timeout=10)
        assert not thread.is_alive()


def _open(config: CameraConfig, camera_id: str) -> object:
    for _ in range(200):
        try:
            return urllib.request.urlopen(camera_address(config.port, camera_id), timeout=10)
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError:
            threading.Event().wait(0.02)
    raise AssertionError("the camera never answered")


def _pictures(stream: object, count: int) -> Iterator[bytes]:
    for _ in range(count):
        head = {}
        while (line := stream.readline().strip()) or not head:
            name, _, value = line.partition(b": ")
            head[name] = value
        yield stream.read(int(head[b"Content-Length"]))
        assert stream.readline() == b"\r\n"


def test_a_reader_gets_the_loop_in_order(serve: Callable[..., CameraConfig]) -> None:
    """Whole pictures come one after another, from the end over to the start; none comes twice in a row."""
    with _open(serve(), "plaza-1") as stream:
        assert "multipart/x-mixed-replace" in stream.headers["Content-Type"]
        seen = [min(range(len(LEVELS)), key=lambda n: abs(LEVELS[n] - _level(p))) for p in _pictures(stream, 20)]
    steps = [(after - before) % len(LEVELS) for before, after in pairwise(seen)]
    assert all(step >= 1 for step in steps)
    assert set(seen) == set(range(len(LEVELS)))


def test_dusk_falls_on_the_camera_that_is_told(serve: Callable[..., CameraConfig], tmp_path: Path) -> None:
    """The control file darkens one camera; the other stays at day."""
    persist_control_file(tmp_path / "world.json", PlazaControl(dusk=("plaza-2",)))
    config = serve()
    with _open(config, "plaza-2") as stream:
        assert any(_level(picture) < 0.6 * min(LEVELS) for picture in _pictures(stream, 100))
    with _open(config, "plaza-1") as stream:
        assert all(_level(picture) > 0.9 * min(LEVELS) for picture in _pictures(stream, 5))


def test_an_unknown_camera_is_not_there(serve: Callable[..., CameraConfig]) -> None:
    """Another path answers 404."""
    with pytest.raises(urllib.error.HTTPError, match="404"):
        _open(serve(), "plaza-9")


def test_cameras_show_the_same_loop_from_places_of_their_own(tmp_path: Path) -> None:
    """A camera that is ahead shows now what the other shows later."""
    config = _config(tmp_path)
    broadcast = Broadcast(config, _reel())
    assert broadcast.picture("plaza-2", 1) == broadcast.picture("plaza-1", 4) != broadcast.picture("plaza-1", 1)
    assert broadcast.picture("plaza-1", 0) == broadcast.picture("plaza-1", len(LEVELS))


def test_the_clock_decides_what_is_shown(tmp_path: Path) -> None:
    """Positions follow the time since the start at the configured rate."""
    broadcast = Broadcast(_config(tmp_path, fps=10.0), _reel())
    start_s = broadcast.due_s(0)
    assert broadcast.position(start_s + 3.05) == 30
    assert broadcast.due_s(30) == pytest.approx(start_s + 3.0)


def test_a_camera_may_send_every_third_frame_only(tmp_path: Path) -> None:
    """The clip goes on at its own pace; a slow reader misses frames either way."""
    broadcast = Broadcast(_config(tmp_path, fps=10.0), _reel())
    start_s = broadcast.due_s(0)
    assert broadcast.next_position(30, start_s + 3.05) == 31
    broadcast.control = PlazaControl(frame_step=3)
    assert broadcast.next_position(30, start_s + 3.05) == 33
    assert broadcast.next_position(30, start_s + 4.05) == 40


def test_a_control_file_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    """No file decides nothing; a wrong one is an error of ours."""
    assert load_control_file(tmp_path / "none.json", PlazaControl) == PlazaControl()
    (tmp_path / "odd.json").write_text('{"night": true}')
    with pytest.raises(ConfigError):
        load_control_file(tmp_path / "odd.json", PlazaControl)
