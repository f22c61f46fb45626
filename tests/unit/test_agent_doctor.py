"""The doctor: every finding in words with a next step, and no examination hides the next."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from curate.errors import AccessDeniedError
from curate.storage.local import LocalBlobStore
from edge_agent.config.agent import AgentConfig
from edge_agent.config.cameras import FolderCameraConfig
from edge_agent.doctor import bucket as bucket_module
from edge_agent.doctor import examine as examine_module
from edge_agent.doctor.agent import examine_model, examine_port, examine_switches, examine_trust, judge_unit
from edge_agent.doctor.bucket import examine_bucket
from edge_agent.doctor.camera import Look, examine_camera, judge_look, judge_running_camera, measure_picture
from edge_agent.doctor.examine import examine
from edge_agent.doctor.findings import Finding, Level, fail, ok, warn, worst
from edge_agent.doctor.machine import (
    examine_disk,
    examine_memory,
    examine_processor,
    judge_memory,
    judge_processor,
    judge_room,
    judge_skew,
    judge_temperature,
)
from edge_agent.switches import Switches
from tests.fakes.releases import Device, Publisher

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def levels(findings: list[Finding]) -> list[Level]:
    assert all((finding.advice is None) is (finding.level is Level.OK) for finding in findings)
    return [finding.level for finding in findings]


def device(folder: Path, **changes: object) -> AgentConfig:
    document = {
        "device_id": "cam-1",
        "state_dir": folder / "state",
        "camera": {"camera_id": "front", "path": folder / "frames", "follow": False, "fps": 200},
        "bucket": {"kind": "folder", "path": folder / "bucket"},
        "trust": {"root_file": folder / "root.json"},
        "spool": {"max_bytes": 1024 * 1024, "min_free_bytes": 0},
        "api": {"port": 0},
    }
    return AgentConfig.model_validate(document | changes)


def write_picture(folder: Path, name: str = "0.png", level: int | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (48, 64, 3), np.uint8) if level is None else np.full((48, 64, 3), level, np.uint8)
    Image.fromarray(pixels).save(folder / name)


# -- findings -------------------------------------------------------------------------------------------------------


def test_a_finding_is_one_line_and_its_next_step() -> None:
    """Level, name and text stand on the first line, the advice on the second, and the worst decides."""
    assert fail("disk", "is full", "Free space.").lines() == "fail  disk: is full\n      -> Free space."
    assert ok("disk", "fine").lines() == "ok    disk: fine"
    assert worst([ok("a", ""), fail("b", "", "x"), warn("c", "", "x")]) is Level.FAIL
    assert worst([]) is Level.OK


# -- the machine ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("finding", "level"),
    [
        (judge_processor("flags : fpu avx512_vnni sse"), Level.OK),
        (judge_processor("Features : fp asimd asimddp"), Level.OK),
        (judge_processor("flags : fpu avx2"), Level.WARN),
        (judge_temperature([], 0), Level.OK),
        (judge_temperature([45.0, 60.0], 0), Level.OK),
        (judge_temperature([60.0], 3), Level.WARN),
        (judge_temperature([85.0], 0), Level.WARN),
        (judge_temperature([99.0], 0), Level.FAIL),
        (judge_memory(2**30, 2**31), Level.OK),
        (judge_memory(2**20, 2**31), Level.WARN),
        (judge_skew(1.0), Level.OK),
        (judge_skew(-60.0), Level.WARN),
        (judge_skew(1e9), Level.WARN),
        (judge_room(10, 10, Path("/")), Level.OK),
        (judge_room(9, 10, Path("/")), Level.WARN),
    ],
)
def test_the_machine_is_judged(finding: Finding, level: Level) -> None:
    """Each measure has its limits, and everything that is not fine comes with advice."""
    assert levels([finding]) == [level]


def test_what_linux_tells_is_read(tmp_path: Path) -> None:
    """Processor, sensors, throttling and memory are read from files that Linux has; one without is ok."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text("flags\t: fpu avx_vnni\n")
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 2048 kB\nMemAvailable: 1024 kB\nHugePages_Total: 0\n")
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "temp").write_text("52500\n")
    throttle = tmp_path / "sys/devices/system/cpu/cpu0/thermal_throttle"
    throttle.mkdir(parents=True)
    (throttle / "core_throttle_count").write_text("7\n")
    processor, heat = examine_processor(tmp_path)
    assert "AVX VNNI" in processor.text
    assert (heat.level, "52 degrees" in heat.text, "7 times" in heat.text) == (Level.WARN, True, True)
    (memory,) = examine_memory(tmp_path)
    assert "1 MiB of 2 MiB" in memory.text
    assert list(examine_memory(tmp_path / "elsewhere")) == []


def test_the_disk_is_tried(tmp_path: Path) -> None:
    """A folder that can be written tells its speed and its room; one that cannot says so and stops there."""
    speed, room = examine_disk(tmp_path / "state", needed_bytes=1)
    assert (speed.name, room.level) == ("disk speed", Level.OK)
    assert list((tmp_path / "state").iterdir()) == []
    (tmp_path / "file").write_text("")
    (refused,) = examine_disk(tmp_path / "file" / "state", needed_bytes=1)
    assert refused.level is Level.FAIL
    assert "state_dir" in str(refused.advice)


# -- cameras --------------------------------------------------------------------------------------------------------


def test_a_picture_is_measured() -> None:
    """A flat picture has no edge, a checkerboard many, and brightness is the mean."""
    flat = np.full((20, 20, 3), 100, np.uint8)
    board = np.indices((20, 20)).sum(axis=0)[..., None] % 2 * np.full(3, 255)
    assert measure_picture(flat) == pytest.approx((100.0, 0.0), abs=1e-3)
    brightness, sharpness = measure_picture(board.astype(np.uint8))
    assert brightness == pytest.approx(127.5, abs=1)
    assert sharpness > 10_000
    assert measure_picture(flat[:2, :2])[1] == 0.0


@pytest.mark.parametrize(
    ("brightness", "sharpness", "level", "word"),
    [
        (120, 300, Level.OK, "frames a second"),
        (5, 300, Level.WARN, "black"),
        (250, 300, Level.WARN, "white"),
        (120, 2, Level.WARN, "edge"),
    ],
)
def test_a_look_is_judged(brightness: float, sharpness: float, level: Level, word: str) -> None:
    """Darkness, glare and blur are told apart."""
    finding = judge_look("camera front", Look(10, 5.0, 64, 48, brightness, sharpness))
    assert levels([finding]) == [level]
    assert word in finding.text


def test_a_camera_is_looked_through(tmp_path: Path) -> None:
    """Rate and size of its frames are told; a folder that is missing or empty fails with a hint."""
    camera = FolderCameraConfig(camera_id="front", path=tmp_path / "frames", follow=False, fps=200)
    (missing,) = examine_camera(camera, look_s=0.05)
    (tmp_path / "frames").mkdir()
    (empty,) = examine_camera(camera, look_s=0.05)
    assert levels([missing, empty]) == [Level.FAIL, Level.FAIL]
    write_picture(tmp_path / "frames")
    (found,) = examine_camera(camera, look_s=5.0)
    assert levels([found]) == [Level.OK]
    assert "64x48 pixels" in found.text


@pytest.mark.parametrize(
    ("state", "age_s", "fps", "level"),
    [
        ("delivering", 0.2, 5.0, Level.OK),
        ("delivering", None, None, Level.WARN),
        ("lost", 80.0, 5.0, Level.FAIL),
        ("starting", None, None, Level.FAIL),
    ],
)
def test_a_running_agent_s_cameras_are_not_touched(
    state: str, age_s: float | None, fps: float | None, level: Level
) -> None:
    """What the running agent says of a camera is judged instead of opening it a second time."""
    camera = {"camera_id": "front", "state": state, "last_frame_age_s": age_s, "fps": fps}
    assert levels([judge_running_camera(camera)]) == [level]


# -- the agent's own parts ------------------------------------------------------------------------------------------


def test_the_root_of_trust_is_read(tmp_path: Path) -> None:
    """A root is named with its end; one that ran out warns; what is missing or no root fails."""
    path = tmp_path / "root.json"
    found = [next(examine_trust(path, NOW))]
    for text in (
        "{",
        "[]",
        '{"signed": {"_type": "targets", "expires": "2027-01-01T00:00:00Z"}}',
        '{"signed": {"_type": "root", "version": 3, "expires": "2026-01-01T00:00:00Z"}}',
        '{"signed": {"_type": "root", "version": 3, "expires": "2027-01-01T00:00:00Z"}}',
    ):
        path.write_text(text)
        found += examine_trust(path, NOW)
    assert levels(found) == [Level.FAIL] * 4 + [Level.WARN, Level.OK]
    assert "2027-01-01" in found[-1].text


def test_a_taken_port_is_told(tmp_path: Path) -> None:
    """A port that another program listens on fails."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert levels(list(examine_port("127.0.0.1", port))) == [Level.FAIL]
    assert levels(list(examine_port("127.0.0.1", 0))) == [Level.OK]


def test_a_forgotten_switch_is_told(tmp_path: Path) -> None:
    """Nothing is said while captures are allowed; when they are not, how to allow them."""
    assert list(examine_switches(tmp_path)) == []
    Switches(tmp_path / "switches.json").flip(capture_allowed=False)
    (finding,) = examine_switches(tmp_path)
    assert "switch capture on" in str(finding.advice)


def test_no_model_yet_is_no_failure(tmp_path: Path) -> None:
    """A device that has never had a release is warned about."""
    assert levels(list(examine_model(device(tmp_path)))) == [Level.WARN]


def test_the_installed_model_answers_its_golden_inputs(tmp_path: Path) -> None:
    """The committed release is loaded and checked as a start would; a damaged file of it fails."""
    publisher = Publisher(tmp_path / "cloud")
    publisher.publish("r-1")
    publisher.assign("r-1")
    camera = Device(tmp_path / "device", publisher)
    event = camera.turn()
    assert event is not None
    config = device(tmp_path, state_dir=camera.folder)
    (finding,) = examine_model(config)
    assert (finding.level, "r-1" in finding.text) == (Level.OK, True)
    name = camera.slots.committed()
    assert name is not None
    camera.slots.model_path(name).write_bytes(b"rust")
    assert levels(list(examine_model(config))) == [Level.FAIL]


@pytest.mark.parametrize(
    ("properties", "level"),
    [
        ({"LoadState": "loaded", "WatchdogUSec": "1min", "Restart": "always"}, Level.OK),
        ({"LoadState": "loaded", "WatchdogUSec": "infinity", "Restart": "always"}, Level.WARN),
        ({"LoadState": "loaded", "WatchdogUSec": "1min", "Restart": "no"}, Level.WARN),
        ({"LoadState": "not-found"}, Level.WARN),
        ({}, Level.WARN),
    ],
)
def test_the_unit_is_judged(properties: dict[str, str], level: Level) -> None:
    """Only a unit that is watched and started again is ok."""
    assert levels([judge_unit(properties)]) == [level]


# -- the bucket -----------------------------------------------------------------------------------------------------


class OwnPrefixOnly(LocalBlobStore):
    """A folder with the rights that a device should have."""

    def put(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        if not key.startswith("captures/cam-1/"):
            raise AccessDeniedError(f"{key} is not yours")
        super().put(key, data, content_type=content_type)


def test_rights_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own captures may be written, others' not; keys that may do more are warned about, and one probe is all that
    is left behind."""
    config = device(tmp_path).bucket
    loose = {finding.name: finding.level for finding in examine_bucket(config, "cam-1")}
    assert (loose["own prefix"], loose["other devices"], loose["releases"]) == (Level.OK, Level.WARN, Level.WARN)
    tight_folder = tmp_path / "tight"
    monkeypatch.setattr(bucket_module, "open_store", lambda _: OwnPrefixOnly(tight_folder))
    findings = list(examine_bucket(config, "cam-1"))
    tight = {finding.name: finding.level for finding in findings}
    assert (tight["own prefix"], tight["other devices"], tight["conditional writes"]) == (Level.OK,) * 3
    assert len([info.key for info in OwnPrefixOnly(tight_folder).list("captures/")]) == 1
    denied = {finding.name: finding.level for finding in examine_bucket(config, "cam-2")}
    assert denied["own prefix"] is Level.FAIL


# -- all of it ------------------------------------------------------------------------------------------------------


def test_a_device_is_examined_whole(tmp_path: Path) -> None:
    """On a device with everything missing each part is told, none hides the next, and nothing is created but the state
    folder; with everything there nothing fails."""
    findings = list(examine(device(tmp_path)))
    names = [finding.name for finding in findings]
    assert {"configuration", "camera front", "trust", "model", "bucket", "disk speed", "memory"} <= set(names)
    assert worst(findings) is Level.FAIL
    levels(findings)
    write_picture(tmp_path / "frames")
    (tmp_path / "bucket").mkdir(exist_ok=True)
    (tmp_path / "root.json").write_text(
        json.dumps({"signed": {"_type": "root", "version": 1, "expires": "2099-01-01T00:00:00Z"}})
    )
    failed = [finding for finding in examine(device(tmp_path)) if finding.level is Level.FAIL]
    assert [finding.name for finding in failed if finding.name != "temperature"] == []


def test_an_examination_that_breaks_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part whose examination raises something unforeseen fails by name, and the rest goes on."""

    def broken() -> Iterator[Finding]:
        raise RuntimeError("no such file in this kernel")

    monkeypatch.setattr(examine_module, "examine_memory", broken)
    findings = {finding.name: finding for finding in examine(device(tmp_path))}
    assert findings["memory"].level is Level.FAIL
    assert "no such file in this kernel" in findings["memory"].text
    assert "processor" in findings


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A video camera without OpenCV fails with the extra to install."""
    monkeypatch.setitem(sys.modules, "cv2", None)
    video = {"camera_id": "front", "kind": "video", "source": "rtsp://127.0.0.1:9/x"}
    findings = {finding.name: finding for finding in examine(device(tmp_path, camera=video))}
    assert findings["camera front"].level is Level.FAIL
    assert "video" in str(findings["camera front"].advice)
