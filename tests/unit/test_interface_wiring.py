"""What is on and what is off; settings that do not fit; the spool's word on a capture."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from curate.contracts.ids import BootId
from curate.errors import ConfigError
from edge_agent.config.interfaces import ApiConfig, MqttConfig
from edge_agent.interfaces.mqtt_topics import Topics, discovery_messages, summarise
from edge_agent.interfaces.wiring import Interfaces
from edge_agent.spool.files import Batch
from edge_agent.spool.index import CapturePlace, SpoolIndex
from edge_agent.spool.retention import Held
from tests.fakes.agent_bench import Bench
from tests.fakes.api_bench import ApiBench
from tests.unit.test_agent_config import MINIMAL, load_config, write


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"host": "0.0.0.0"}, "token_file"),
        ({"host": "192.168.1.9"}, "token_file"),
        ({"host": "localhost"}, "octets"),
        ({"tls_cert": "c.pem"}, "go together"),
        ({"tls_key": "k.pem"}, "go together"),
    ],
)
def test_an_open_door_is_refused(settings: dict[str, Any], words: str) -> None:
    """Beyond loopback a token is needed, and half a certificate is none."""
    with pytest.raises(ValidationError, match=words):
        ApiConfig.model_validate(settings)
    ApiConfig.model_validate({"host": "0.0.0.0", "token_file": "tokens"})
    ApiConfig.model_validate({"host": "127.0.0.9"})


@pytest.mark.parametrize(
    "settings",
    [{"topic_prefix": "a/#"}, {"topic_prefix": "+"}, {"topic_prefix": "/a"}, {"password_file": "p"}, {"ca_file": "c"}],
)
def test_mqtt_settings_that_do_not_fit(settings: dict[str, Any]) -> None:
    """Wildcards in a prefix, a password without a user and certificates without TLS are refused."""
    with pytest.raises(ValidationError):
        MqttConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("section", "module", "extra"),
    [
        ({"grpc": {"port": 0}}, "grpc", "agent,grpc"),
        ({"mqtt": {"host": "127.0.0.1"}}, "paho.mqtt.client", "agent,mqtt"),
    ],
)
def test_a_missing_library_is_said_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: dict[str, Any], module: str, extra: str
) -> None:
    """A feature that is on without its library names what to install, and binds nothing."""
    for name in ("edge_agent.interfaces.inference_grpc", "edge_agent.interfaces.mqtt"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    config = load_config(write(tmp_path, MINIMAL | {"api": {"port": 0}} | section))
    api = ApiBench(Bench(tmp_path), tmp_path)
    with pytest.raises(ConfigError) as caught:
        Interfaces(config, api.view, api.service)
    assert extra in str(caught.value.hint)
    assert not (tmp_path / "state" / "api.json").exists()


def test_what_is_off_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gRPC and MQTT neither library is needed."""
    for module in ("grpc", "paho.mqtt.client"):
        monkeypatch.setitem(sys.modules, module, None)
    config = load_config(write(tmp_path, MINIMAL | {"api": {"port": 0}}))
    config.state_dir.mkdir()
    api = ApiBench(Bench(tmp_path), tmp_path)
    interfaces = Interfaces(config, api.view, api.service)
    assert (interfaces.grpc_port, interfaces.loops) == (None, {})
    interfaces.start()
    interfaces.stop(5.0)
    assert not (config.state_dir / "api.json").exists()


def test_summaries_are_few_words() -> None:
    """A label, or how many of what is shown; never longer than Home Assistant takes."""
    boxes = [{"label": "car", "shown": True}, {"label": "car", "shown": True}, {"label": "dog", "shown": False}]
    assert summarise({"label": "dark"}) == "dark"
    assert summarise({"boxes": boxes}) == "2 car"
    assert summarise({"boxes": []}) == "nothing"
    assert len(summarise({"label": "x" * 1000})) == 255


def test_pictures_are_discovered_only_when_they_are_sent() -> None:
    """Without pictures no camera entity appears; each entity of two cameras has an id of its own."""

    def topics_of(*, with_images: bool) -> list[str]:
        messages = discovery_messages(
            Topics("gleaner", "cam-1"), ["a", "b"], discovery_prefix="ha", agent_version="1", with_images=with_images
        )
        assert len({message["unique_id"] for message in messages.values()}) == len(messages)
        return [topic for topic in messages if topic.startswith("ha/camera/")]

    assert topics_of(with_images=False) == []
    assert topics_of(with_images=True) == [f"ha/camera/gleaner_cam-1/{name}_picture/config" for name in ("a", "b")]


def test_the_spool_says_where_a_capture_is() -> None:
    """From waiting to acknowledged, or evicted; what was never kept is nowhere."""
    index = SpoolIndex()
    for sequence in (1, 2):
        index.add_capture(Held(sequence, 100), prediction_id=f"boot-{sequence}", since_s=0.0)
    places = [index.capture_place("boot-1")]
    batch = Batch(1, BootId("boot"), 1, (1,), ())
    index.freeze(batch)
    places.append(index.capture_place("boot-1"))
    index.uploaded_captures = frozenset({1})
    places.append(index.capture_place("boot-1"))
    index.forget(index.departure({"boot": 1}))
    places.append(index.capture_place("boot-1"))
    assert places == [CapturePlace.WAITING, CapturePlace.IN_BATCH, CapturePlace.UPLOADED, CapturePlace.ACKNOWLEDGED]
    index.remove_captures([2])
    assert index.capture_place("boot-2") is CapturePlace.EVICTED
    assert index.capture_place("boot-3") is None
