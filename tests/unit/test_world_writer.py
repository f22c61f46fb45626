"""The writer of the cameras' frames: whole files, in order, resumable, and stopping when told."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from curate.errors import ConfigError
from flows.sandbox.fashion_mnist import FashionMnist
from flows.sandbox.simulator import load_control_file, persist_control_file
from flows.sandbox.world import CameraWorld, WorldConfig
from flows.sandbox.world_schedule import WorldControl
from flows.sandbox.world_writer import STOP_FILE, WriterConfig, main, newest_frame, run_cameras, schedule_dusk


@pytest.fixture(scope="module")
def data() -> FashionMnist:
    labels = np.tile(np.arange(10, dtype=np.uint8), 3)
    images = np.random.default_rng(0).integers(0, 256, size=(30, 28, 28), dtype=np.uint8)
    return FashionMnist(images, labels, images[:10], labels[:10])


def _config(root: Path, **changes: object) -> WriterConfig:
    values = {
        "world": WorldConfig(reserved_images=10),
        "folders": {"cam-1": root / "one", "cam-3": root / "three"},
        "fps": 1_000.0,
        "control_file": root / "world.json",
        "dataset_cache": root / "cache",
        "max_frames": 30,
    }
    return WriterConfig.model_validate({**values, **changes})


def _indices(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in folder.glob("*.png"))


def _shown(folder: Path, index: int) -> np.ndarray:
    with Image.open(folder / f"{index:08d}.png") as image:
        return np.asarray(image)


def test_files_hold_the_frames_exactly(tmp_path: Path, data: FashionMnist) -> None:
    """Every camera's folder holds its world's frames, bit for bit, up to max_frames."""
    config = _config(tmp_path)
    run_cameras(config, data, threading.Event())
    for camera_id, folder in config.folders.items():
        assert _indices(folder) == list(range(30))
        world = CameraWorld(config.world, camera_id, data)
        assert all(np.array_equal(_shown(folder, i), world.frame(i).image) for i in range(30))


def test_a_killed_writer_resumes_without_gap(tmp_path: Path, data: FashionMnist) -> None:
    """After a kill in the middle of a write, with cameras at different frames, each stream continues where it stood."""
    config = _config(tmp_path, max_frames=12)
    run_cameras(config, data, threading.Event())
    (tmp_path / "three" / "00000011.png").unlink()
    (tmp_path / "three" / ".next-frame").write_bytes(b"half a fra")
    run_cameras(_config(tmp_path), data, threading.Event())
    world = CameraWorld(config.world, "cam-3", data)
    for folder in config.folders.values():
        assert _indices(folder) == list(range(30))
    assert all(np.array_equal(_shown(tmp_path / "three", i), world.frame(i).image) for i in range(30))


def test_only_the_newest_frames_stay(tmp_path: Path, data: FashionMnist) -> None:
    """A folder keeps `keep_frames` files, also after a restart that allows fewer."""
    run_cameras(_config(tmp_path, keep_frames=20), data, threading.Event())
    assert _indices(tmp_path / "one") == list(range(10, 30))
    run_cameras(_config(tmp_path, keep_frames=5, max_frames=31), data, threading.Event())
    assert _indices(tmp_path / "one") == list(range(26, 31))


def test_stop_file_stops_its_camera_only(tmp_path: Path, data: FashionMnist) -> None:
    """A STOP file ends one camera's stream while the other runs to its end."""
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / STOP_FILE).touch()
    run_cameras(_config(tmp_path), data, threading.Event())
    assert _indices(tmp_path / "one") == []
    assert len(_indices(tmp_path / "three")) == 30


def test_stopping_event_ends_the_run(tmp_path: Path, data: FashionMnist) -> None:
    """A set event ends an endless run."""
    stopping = threading.Event()
    stopping.set()
    run_cameras(_config(tmp_path, max_frames=None), data, stopping)
    assert newest_frame(tmp_path / "one") is None


def test_dusk_falls_at_the_frame_of_the_control_file(tmp_path: Path, data: FashionMnist) -> None:
    """A writer shows dusk from exactly the frame that the control file names, also one before a restart."""
    config = _config(tmp_path)
    persist_control_file(config.control_file, WorldControl(drift_from_frame={"cam-3": 10}))
    run_cameras(config, data, threading.Event())
    world = CameraWorld(config.world, "cam-3", data)
    world.drift_from_frame = 10
    assert all(np.array_equal(_shown(tmp_path / "three", i), world.frame(i).image) for i in range(30))


def test_every_third_frame_only(tmp_path: Path, data: FashionMnist) -> None:
    """Frames that are passed over keep their numbers, the others show what they always show, old files still go."""
    config = _config(tmp_path, keep_frames=12)
    persist_control_file(config.control_file, WorldControl(frame_step=3, drift_from_frame={"cam-3": 20}))
    run_cameras(config, data, threading.Event())
    world = CameraWorld(config.world, "cam-3", data)
    world.drift_from_frame = 20
    assert _indices(tmp_path / "three") == _indices(tmp_path / "one") == [18, 21, 24, 27]
    assert all(np.array_equal(_shown(tmp_path / "three", i), world.frame(i).image) for i in (18, 21, 24, 27))
    schedule_dusk(config, "cam-3")
    assert load_control_file(config.control_file, WorldControl).frame_step == 3


def test_dusk_while_running_agrees_with_truth(tmp_path: Path, data: FashionMnist) -> None:
    """Dusk scheduled while the writer runs falls in the future: every file shows what the control file says of it."""
    config = _config(tmp_path, fps=100.0, max_frames=380)
    thread = threading.Thread(target=run_cameras, args=(config, data, threading.Event()))
    thread.start()
    while not newest_frame(tmp_path / "three"):
        time.sleep(0.01)
    first = schedule_dusk(config, "cam-3")
    thread.join()
    world = CameraWorld(config.world, "cam-3", data)
    world.drift_from_frame = first
    assert 300 < first < 379
    assert all(np.array_equal(_shown(tmp_path / "three", i), world.frame(i).image) for i in range(first - 20, 380))


def test_scheduling_dusk_twice_changes_nothing(tmp_path: Path) -> None:
    """A driver that is killed and asks again gets the first answer; a camera nobody shows is a ConfigError."""
    config = _config(tmp_path)
    first = schedule_dusk(config, "cam-3")
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "00009999.png").touch()
    assert schedule_dusk(config, "cam-3") == first
    assert load_control_file(config.control_file, WorldControl).drift_from_frame == {"cam-3": first}
    with pytest.raises(ConfigError):
        schedule_dusk(config, "cam-2")


def test_broken_control_file_keeps_the_stream_going(tmp_path: Path, data: FashionMnist) -> None:
    """A control file that cannot be read does not stop the cameras."""
    config = _config(tmp_path)
    config.control_file.write_text("{")
    run_cameras(config, data, threading.Event())
    assert len(_indices(tmp_path / "one")) == 30


def test_main_refuses_a_world_without_that_camera(tmp_path: Path) -> None:
    """The process ends with code 2 for a config that names a strange camera, and for none at all."""
    config = _config(tmp_path, folders={"cam-9": tmp_path / "nine"})
    path = tmp_path / "writer.json"
    path.write_text(json.dumps(config.model_dump(mode="json")))
    assert main([str(path)]) == 2
    assert main([]) == 2
