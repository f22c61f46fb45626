"""The agent's configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from curate.contracts.assignment import CapturePolicySpec
from curate.errors import ConfigError
from edge_agent.config.agent import AgentConfig, load_config
from edge_agent.config.cameras import UsbCameraConfig, VideoCameraConfig

SIZE = {"device", "width", "height"}
EXAMPLE = Path(__file__).parents[2] / "configs" / "agent.yaml"
MINIMAL: dict[str, Any] = {
    "device_id": "cam-1",
    "state_dir": "state",
    "camera": {"camera_id": "front", "path": "frames"},
    "bucket": {"kind": "folder", "path": "bucket"},
    "trust": {"root_file": "root.json"},
}


def write(folder: Path, document: object) -> Path:
    path = folder / "agent.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_the_example_loads_and_states_the_defaults() -> None:
    """configs/agent.yaml is valid, and every value in it that has a default is that default."""
    raw = yaml.safe_load(EXAMPLE.read_text())
    config = load_config(EXAMPLE)
    for name in ("api", "spool", "sync", "update", "capture", "ring", "inference", "log"):
        assert getattr(config, name) == AgentConfig.model_fields[name].get_default(call_default_factory=True), name
        assert set(raw[name]) >= set(type(getattr(config, name)).model_fields) - {"file"}, name


def test_the_example_names_every_setting() -> None:
    """No setting exists that configs/agent.yaml does not show, at least as a comment."""
    text = EXAMPLE.read_text()

    def names(annotation: Any) -> set[str]:
        """Return the settings of every section that an annotation mentions, at any depth."""
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            own = set(annotation.model_fields)
            return own.union(*(names(info.annotation) for info in annotation.model_fields.values()))
        return set().union(*(names(part) for part in get_args(annotation)))

    assert {"max_queued_frames", "follow"} <= names(AgentConfig)

    assert [name for name in sorted(names(AgentConfig)) if f"{name}:" not in text] == []


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    """Relative paths do not depend on where the agent was started; absolute ones stay."""
    config = load_config(write(tmp_path, MINIMAL | {"trust": {"root_file": "/etc/root.json"}}))
    assert config.state_dir == tmp_path / "state"
    assert config.camera.path == tmp_path / "frames"
    assert config.trust.root_file == Path("/etc/root.json")


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"colour": "red"}, "colour"),
        ({"camera": {"camera_id": "front", "path": "f", "fsp": 3}}, "camera.fsp"),
        ({"capture": {"policy": {"random_probabilty": 0.1}}}, "capture.policy.random_probabilty"),
        ({"capture": {"policy": {"uncertainty_score": "bald"}}}, "least_confidence"),
        ({"device_id": "../cam"}, "device_id"),
        ({"device_id": "x" * 65}, "device_id"),
        ({"api": {"host": "0.0.0.0"}}, "loopback"),
        ({"api": {"host": "example.org"}}, "api.host"),
        ({"bucket": {"kind": "s3"}}, "bucket"),
        ({"bucket": {"kind": "folder"}}, "path"),
        ({"camera": {"camera_id": "front", "path": "f", "fps": float("nan")}}, "camera.fps"),
        ({"camera": {"camera_id": "front", "kind": "vidio", "source": "f"}}, "camera: .*'vidio'"),
        ({"camera": {"camera_id": "front", "kind": "video"}}, r"camera\.source"),
        ({"camera": {"camera_id": "front", "kind": "video", "source": "f", "follow": True}}, r"camera\.follow"),
        ({"camera": {"camera_id": "front", "kind": "video", "source": "f", "fps": 0}}, r"camera\.fps"),
        ({"camera": "front"}, "camera"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, change: dict[str, object], where: str) -> None:
    """Unknown keys and wrong values are ConfigErrors that name the setting and hint at the example."""
    with pytest.raises(ConfigError, match=where) as caught:
        load_config(write(tmp_path, MINIMAL | change))
    assert caught.value.hint


@pytest.mark.parametrize("content", ["", "[1, 2]", "a: [", "just words", "!!python/object:os.system {}"])
def test_what_is_no_configuration_is_refused(tmp_path: Path, content: str) -> None:
    """Empty files, lists, broken YAML and YAML tags are ConfigErrors, never traces."""
    path = tmp_path / "agent.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError):
        load_config(path)
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "absent.yaml")


def test_the_policy_setting_becomes_the_wire_document(tmp_path: Path) -> None:
    """The configured policy is handed on as the same document that the cloud would send."""
    policy = {"version": "v7", "random_probability": 0.5, "cooldown_frames": 3}
    config = load_config(write(tmp_path, MINIMAL | {"capture": {"policy": policy}}))
    assert config.capture.policy == CapturePolicySpec(version="v7", random_probability=0.5, cooldown_frames=3)


def video(folder: Path, source: str) -> VideoCameraConfig:
    camera = {"camera_id": "front", "kind": "video", "source": source}
    found = load_config(write(folder, MINIMAL | {"camera": camera})).camera
    assert isinstance(found, VideoCameraConfig)
    return found


def test_a_video_source_is_a_file_or_an_address(tmp_path: Path) -> None:
    """A relative file starts at the configuration's folder; an address stays as it is and is live."""
    assert (video(tmp_path, "clip.avi").address, video(tmp_path, "clip.avi").is_live) == (f"{tmp_path}/clip.avi", False)
    assert video(tmp_path, "/data/clip.avi").address == "/data/clip.avi"
    for address in ("rtsp://10.0.0.7:554/main", "http://cam.local/video.mjpg"):
        assert (video(tmp_path, address).address, video(tmp_path, address).is_live) == (address, True)


def test_a_password_stays_out_of_file_and_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address may come from the environment, and what is logged never shows user and password."""
    config = video(tmp_path, "env:CAMERA_URL")
    with pytest.raises(ConfigError, match="CAMERA_URL"):
        assert config.address
    monkeypatch.setenv("CAMERA_URL", "rtsp://admin:secret@10.0.0.7/main")
    assert (config.is_live, config.address) == (True, "rtsp://admin:secret@10.0.0.7/main")
    assert config.public_source == "env:CAMERA_URL"


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("rtsp://admin:se@ret@10.0.0.7/main", "rtsp://10.0.0.7"),
        ("rtsp://admin:secret@cam-7.local:554/main", "rtsp://cam-7.local:554"),
        ("rtsp://admin:secret@[fe80::1]:554/main", "rtsp://[fe80::1]:554"),
        ("rtsp://admin:sec/ret@10.0.0.7/main", "rtsp://***"),
        ("rtsp://admin:12/secret@10.0.0.7/main", "rtsp://***"),
        ("rtsp://admin:sec#ret@10.0.0.7/main", "rtsp://***"),
        ("rtsp://admin:sec?ret@10.0.0.7/main", "rtsp://***"),
        ("rtsp://admin:secret", "rtsp://***"),
        ("rtsp://10.0.0.7/user=admin_password=secret_channel=1.sdp", "rtsp://10.0.0.7"),
        ("rtsp://10.0.0.7/user=admin@password=secret", "rtsp://***"),
        ("https://cam.local/video.mjpg?token=secret", "https://cam.local"),
        ("http://cam.local?token=secret", "http://cam.local"),
    ],
)
def test_no_part_of_an_address_that_may_be_secret_is_shown(tmp_path: Path, source: str, shown: str) -> None:
    """Passwords with any character in them, and those in path or query, stay out of logs and messages."""
    assert video(tmp_path, source).public_source == shown


def test_a_mistyped_address_is_no_file_and_is_not_repeated(tmp_path: Path) -> None:
    """An address of an unknown kind is refused in words without the password in it; from the environment, too."""
    with pytest.raises(ConfigError, match="begins with rtsp") as caught:
        video(tmp_path, "rtps://admin:secret@10.0.0.7/main")
    assert "secret" not in str(caught.value)


def commented_cameras() -> list[dict[str, Any]]:
    """Return the camera sections that configs/agent.yaml shows as comments."""
    text = EXAMPLE.read_text()
    block = text[text.index("# Instead of a folder: video") : text.index("\nbucket:")]
    parts = block.split("# camera:\n")[1:]
    lines = [[line for line in part.splitlines() if line.startswith("#   ")] for part in parts]
    return [yaml.safe_load("\n".join(line.removeprefix("#") for line in part)) for part in lines]


@pytest.mark.parametrize(("at", "kind", "by_choice"), [(0, VideoCameraConfig, {"source"}), (1, UsbCameraConfig, SIZE)])
def test_the_example_s_other_cameras_load(tmp_path: Path, at: int, kind: type[BaseModel], by_choice: set[str]) -> None:
    """Each commented camera of configs/agent.yaml is valid, names every setting and states the defaults."""
    camera = commented_cameras()[at]
    assert isinstance(load_config(write(tmp_path, MINIMAL | {"camera": camera})).camera, kind)
    fields = kind.model_fields
    assert set(camera) == set(fields)
    stated = set(camera) - {"camera_id", "kind", "fps"} - by_choice
    assert [name for name in stated if camera[name] != fields[name].default] == []


def test_several_cameras_are_a_list(tmp_path: Path) -> None:
    """`cameras` holds several, each of its own kind; `camera` is a list of one."""
    usb = {"camera_id": "back", "kind": "usb", "device": 1}
    several = {key: value for key, value in MINIMAL.items() if key != "camera"} | {"cameras": [MINIMAL["camera"], usb]}
    found = load_config(write(tmp_path, several)).all_cameras
    assert [(camera.camera_id, camera.kind) for camera in found] == [("front", "folder"), ("back", "usb")]
    single = load_config(write(tmp_path, MINIMAL))
    assert single.all_cameras == (single.camera,)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"camera": None}, "either `camera`"),
        ({"cameras": [MINIMAL["camera"]]}, "either `camera`"),
        ({"camera": None, "cameras": [MINIMAL["camera"]] * 2}, "of its own"),
        ({"camera": None, "cameras": [{"camera_id": "a", "kind": "usb", "device": "video0"}]}, r"cameras\.0\.device"),
        ({"camera": {"camera_id": "a", "kind": "usb", "device": 0, "width": 640}}, "`height` go together"),
        ({"privacy": {"regions": [{"camera_id": "frnt", "points": [[0, 0], [1, 0], [1, 1]]}]}}, "do not exist: frnt"),
        ({"privacy": {"redactor": "rm -rf"}}, r"privacy\.redactor"),
    ],
)
def test_what_would_not_work_is_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    """Both or neither form of cameras, names given twice, and regions of a camera that is not there are refused."""
    with pytest.raises(ConfigError, match=words):
        load_config(write(tmp_path, MINIMAL | change))
