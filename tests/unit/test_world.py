"""The simulated world: deterministic, honest about its splits, and drifting as told."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from curate.errors import ConfigError
from flows.sandbox.fashion_mnist import FashionMnist
from flows.sandbox.simulator import load_control_file, persist_control_file
from flows.sandbox.world import CameraWorld, WorldConfig, held_out, seed_samples
from flows.sandbox.world_schedule import (
    DEFAULT_CAMERAS,
    CameraStyle,
    Schedule,
    WorldControl,
    truth,
)

CAMERA_IDS = [camera.camera_id for camera in DEFAULT_CAMERAS]
PER_CLASS = 4
RESERVED = 20


def _garments(level: int, n: int) -> np.ndarray:
    """A bright square per garment: its level tells the split, so a frame shows where its garment comes from."""
    images = np.zeros((n, 28, 28), dtype=np.uint8)
    images[:, 4:24, 4:24] = level
    return images


@pytest.fixture(scope="module")
def data() -> FashionMnist:
    labels = np.tile(np.arange(10, dtype=np.uint8), PER_CLASS)
    reserved = np.tile(np.arange(10, dtype=np.uint8), RESERVED // 10)
    return FashionMnist(
        train_images=np.concatenate([_garments(255, len(labels)), _garments(120, RESERVED)]),
        train_labels=np.concatenate([labels, reserved]),
        test_images=_garments(190, len(labels)),
        test_labels=labels,
    )


def _config(**changes: object) -> WorldConfig:
    return WorldConfig.model_validate({"reserved_images": RESERVED, **changes})


def _plain_camera(camera_id: str = "cam-1") -> CameraStyle:
    """No noise, no tint: the frame shows the scene as it is."""
    return CameraStyle(
        camera_id=camera_id, class_mix=(0.1,) * 10, gain=1.0, tint=(1.0, 1.0, 1.0), noise_levels=0.0, background=0.0
    )


def _plain_config(**changes: object) -> WorldConfig:
    style = {"cameras": (_plain_camera(),), "drift_camera": "cam-1", "light_range": 0.0}
    return _config(**{**style, **changes})


@given(seed=st.integers(0, 2**32), low=st.integers(1, 20), more=st.integers(0, 20), camera=st.sampled_from(CAMERA_IDS))
@settings(max_examples=25, deadline=None)
def test_bursts_tile_the_stream(seed: int, low: int, more: int, camera: str) -> None:
    """Bursts follow each other without gap or overlap, within the configured lengths, and labels() agrees with them."""
    config = _config(seed=seed, min_burst_frames=low, max_burst_frames=low + more)
    schedule = Schedule(config, camera)
    labels = schedule.labels(600)
    frame = number = 0
    while frame < 600:
        burst = schedule.burst_at(frame)
        assert (burst.number, burst.first) == (number, frame)
        assert low <= burst.length <= low + more
        assert set(labels[frame : frame + burst.length]) == {burst.label}
        frame, number = frame + burst.length, number + 1
    assert len(labels) == 600


def test_frames_do_not_depend_on_who_asks_or_in_which_order(data: FashionMnist) -> None:
    """Two simulators of one config show bit-identical frames, read in any order."""
    config = _config(seed=5, drift_from_frame=60)
    order = list(range(0, 120, 3))
    first = {i: CameraWorld(config, "cam-3", data).frame(i).image for i in order}
    world = CameraWorld(config, "cam-3", data)
    random.Random(1).shuffle(order)
    assert all(np.array_equal(world.frame(i).image, first[i]) for i in order)


def test_seeds_and_cameras_give_different_streams(data: FashionMnist) -> None:
    """Another seed or another camera is another stream."""
    streams = [(seed, camera) for seed in (0, 1) for camera in CAMERA_IDS]
    shown = {
        tuple(CameraWorld(_config(seed=seed), camera, data).frame(i).label for i in range(0, 3_000, 30))
        for seed, camera in streams
    }
    assert len(shown) == len(streams)


def test_drift_darkens_and_changes_nothing_else(data: FashionMnist) -> None:
    """Dusk makes frames darker from its first frame on; labels and bursts stay what truth() says without it."""
    config = _config(seed=2)
    world = CameraWorld(config, "cam-3", data)
    day = [world.frame(i) for i in range(120)]
    world.drift_from_frame = 50
    drifted = [world.frame(i) for i in range(120)]
    assert [(f.label, f.burst) for f in day] == [(f.label, f.burst) for f in drifted]
    assert [f.condition for f in drifted] == ["day"] * 50 + ["dusk"] * 70
    assert all(np.array_equal(a.image, b.image) for a, b in zip(day[:50], drifted[:50], strict=True))
    assert all(a.image.mean() > 1.5 * b.image.mean() for a, b in zip(day[50:], drifted[50:], strict=True))


def test_truth_is_what_the_camera_showed(data: FashionMnist) -> None:
    """truth() knows label, burst and condition of every frame from config and control file alone."""
    config = _config(seed=9)
    control = WorldControl(drift_from_frame={"cam-3": 40})
    for camera in CAMERA_IDS:
        world = CameraWorld(config, camera, data)
        world.drift_from_frame = control.drift_from_frame.get(camera)
        for i in range(0, 80, 5):
            frame = world.frame(i)
            assert truth(config, camera, i, control) == (frame.label, frame.burst, frame.condition)


def test_a_garment_moves_smoothly_within_its_limit(data: FashionMnist) -> None:
    """Within a burst the garment moves at most two pixels from the centre and jumps between frames are small."""
    config = _plain_config(min_burst_frames=30)
    world = CameraWorld(config, "cam-1", data)
    tops = []
    for i in range(300):
        rows = np.flatnonzero(world.frame(i).image[:, :, 0].max(axis=1) > 60)
        tops.append((world.frame(i).burst, int(rows[0])))
    places = {top for _, top in tops}
    jumps = [abs(b[1] - a[1]) for a, b in pairwise(tops) if a[0] == b[0]]
    assert places == {4, 5, 6, 7, 8}
    assert np.mean(jumps) < 0.8


def test_splits_never_mix(data: FashionMnist) -> None:
    """Streams, held-out frames and seed samples show garments of the train split, the test split and the reserve."""
    config = _plain_config()
    world = CameraWorld(config, "cam-1", data)
    shown = {
        255: np.array([world.frame(i).image for i in range(0, 900, 9)]),
        190: held_out(config, "cam-1", "day", 100, data).images,
        120: seed_samples(config, 100, 0, data).images,
    }
    for level, images in shown.items():
        brightest = images.max(axis=(1, 2, 3)) / 200 * 255  # undo the scene's 200 grey levels for white cloth
        assert np.all(np.abs(brightest - level) < 0.1 * level)


def test_no_reserve_leaves_every_train_image_to_the_streams(data: FashionMnist) -> None:
    """Without a reserve the streams use all train images, and there are no seed samples to draw."""
    config = _config(reserved_images=0)
    assert CameraWorld(config, "cam-1", data).frame(0).image.shape == (32, 32, 3)
    with pytest.raises(ConfigError, match="reserves no garment"):
        seed_samples(config, 1, 0, data)


def test_held_out_follows_the_camera(data: FashionMnist) -> None:
    """Held-out labels have the camera's class mix, are the same for day and dusk, and extend as n grows."""
    config = _config(seed=4)
    for camera in config.cameras:
        images, labels = held_out(config, camera.camera_id, "day", 800, data)
        share = np.bincount(labels, minlength=10) / len(labels)
        assert np.abs(share - camera.class_mix).max() < 0.06
        few = held_out(config, camera.camera_id, "dusk", 50, data)
        assert np.array_equal(few.labels, labels[:50])
        assert np.array_equal(held_out(config, camera.camera_id, "day", 50, data).images, images[:50])
        assert few.images.mean() < 0.7 * images[:50].mean()


def test_seed_samples_depend_on_their_seed(data: FashionMnist) -> None:
    """The first labelled samples are the same for the same seed and others for another."""
    config = _config()
    first, again, other = (seed_samples(config, 40, seed, data) for seed in (1, 1, 2))
    assert first.images.shape == (40, 32, 32, 3)
    assert np.array_equal(first.images, again.images)
    assert np.array_equal(first.labels, again.labels)
    assert not np.array_equal(first.labels, other.labels)


def test_default_mixes_are_unequal_and_cover_every_class() -> None:
    """Each camera sees every class, none more than a quarter of the time, and no two cameras see the same mix."""
    mixes = [camera.class_mix for camera in DEFAULT_CAMERAS]
    assert all(0.02 <= share <= 0.25 for mix in mixes for share in mix)
    assert all(max(mix) > 3 * min(mix) for mix in mixes)
    distance = [np.abs(np.subtract(a, b)).sum() for i, a in enumerate(mixes) for b in mixes[:i]]
    assert min(distance) > 0.4


def test_config_survives_json() -> None:
    """The config that a writer process reads from its file is the one that was written."""
    config = _config(seed=3, drift_from_frame=700)
    assert WorldConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    "changes",
    [
        {"drift_camera": "cam-9"},
        {"max_burst_frames": 3},
        {"cameras": (_plain_camera(), _plain_camera())},
        {"cameras": (_plain_camera().model_dump() | {"class_mix": (0.2,) * 10},)},
        {"unknown": 1},
    ],
)
def test_impossible_worlds_are_refused(changes: dict[str, object]) -> None:
    """A config that no world can follow is refused when it is made."""
    with pytest.raises(ValidationError):
        _config(**changes)


def test_unknown_camera_is_refused(data: FashionMnist) -> None:
    """Asking for a camera that the world lacks is a ConfigError."""
    with pytest.raises(ConfigError, match="cam-9"):
        CameraWorld(_config(), "cam-9", data)


def test_control_file_round_trip(tmp_path: Path) -> None:
    """No control file decides nothing, a written one is read back, and a broken one is a ConfigError."""
    path = tmp_path / "world.json"
    assert load_control_file(path, WorldControl) == WorldControl()
    persist_control_file(path, WorldControl(drift_from_frame={"cam-3": 12}))
    assert load_control_file(path, WorldControl).drift_from_frame == {"cam-3": 12}
    path.write_text('{"drift_from_frame": "soon"}')
    with pytest.raises(ConfigError):
        load_control_file(path, WorldControl)
