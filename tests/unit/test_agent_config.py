"""The agent's configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from curate.contracts.assignment import CapturePolicySpec
from curate.errors import ConfigError
from edge_agent.config.agent import AgentConfig, load_config
from edge_agent.config.cameras import VideoCameraConfig

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

    def names(model: type[BaseModel]) -> set[str]:
        found = set(model.model_fields)
        for info in model.model_fields.values():
            for annotation in (info.annotation, *get_args(info.annotation)):
                part = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
                if isinstance(part, type) and issubclass(part, BaseModel):
                    found |= names(part)
        return found

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
    assert video(tmp_path, "rtsp://admin:se@ret@10.0.0.7/a@b").public_source == "rtsp://10.0.0.7/a@b"


def test_the_example_s_video_camera_loads(tmp_path: Path) -> None:
    """The commented video section of configs/agent.yaml is valid and states the defaults."""
    text = EXAMPLE.read_text()
    block = text[text.index("# camera:") : text.index("\nbucket:")]
    camera = yaml.safe_load("\n".join(line.removeprefix("# ").removeprefix("#") for line in block.splitlines()))[
        "camera"
    ]
    found = load_config(write(tmp_path, MINIMAL | {"camera": camera})).camera
    assert isinstance(found, VideoCameraConfig)
    assert set(camera) == set(VideoCameraConfig.model_fields)
    fields = VideoCameraConfig.model_fields
    assert [
        name for name in set(camera) - {"camera_id", "kind", "source", "fps"} if camera[name] != fields[name].default
    ] == []
