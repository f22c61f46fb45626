"""What the MQTT bridge says when the wire does not keep up; what a broker does to it: test_agent_interfaces."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from paho.mqtt.enums import MQTTErrorCode

from edge_agent.config.interfaces import MqttConfig
from edge_agent.interfaces.mqtt import MAX_UNSENT, MqttBridge
from edge_agent.models.inference import LoadedModel
from tests.fakes.agent_bench import Bench
from tests.fakes.api_bench import ApiBench


@dataclass
class _Info:
    sent: bool
    rc: MQTTErrorCode = MQTTErrorCode.MQTT_ERR_SUCCESS

    def is_published(self) -> bool:
        return self.sent


@dataclass
class Wire:
    """A client of a broker that takes every message and, while it is stalled, sends none."""

    stalled: bool = False
    topics: list[str] = field(default_factory=list)

    def is_connected(self) -> bool:
        return True

    def publish(self, topic: str, *_: object, **__: object) -> _Info:
        self.topics.append(topic)
        return _Info(sent=not self.stalled)


@pytest.fixture
def bench(tmp_path: Path, classifier: LoadedModel) -> Bench:
    return Bench.answering(tmp_path, classifier, frames=1)


@pytest.fixture
def now_s() -> list[float]:
    return [1000.0]


@pytest.fixture
def bridge(bench: Bench, tmp_path: Path, now_s: list[float]) -> MqttBridge:
    config = MqttConfig(host="127.0.0.1", prediction_interval_s=1.0)
    return MqttBridge(
        config, ApiBench(bench, tmp_path).view, agent_version="1", max_message_bytes=1000, monotonic=lambda: now_s[0]
    )


def stall(bridge: MqttBridge) -> Wire:
    """Let as much wait as may."""
    wire = Wire(stalled=True)
    bridge._client = wire  # type: ignore[assignment]
    while bridge._send("filler", b""):
        pass
    assert len(bridge._unsent) == MAX_UNSENT
    wire.topics.clear()
    return wire


def test_a_greeting_is_never_dropped(bridge: MqttBridge) -> None:
    """However much waits, the device says that it is there: else it would be taken for gone until the next loss."""
    wire = stall(bridge)
    bridge._greeting_due.set()
    bridge.turn()
    assert "gleaner/cam-1/availability" in wire.topics


def test_a_press_is_about_what_was_told(bridge: MqttBridge, bench: Bench, now_s: list[float]) -> None:
    """An answer that was dropped on its way is none that a person saw; it is told again as soon as the wire is free."""
    wire = Wire()
    bridge._client = wire  # type: ignore[assignment]
    bridge.turn()
    wire = stall(bridge)
    bench.camera.add_frames(1)
    bench.run()
    now_s[0] += 1.5
    bridge.turn()
    bridge._desk.receive("gleaner/cam-1/front/dismiss", b"dismiss")
    assert [item.prediction_id for item in bench.spool.feedback] == ["boot-1"]
    bridge._unsent.clear()
    now_s[0] += 1.5
    bridge.turn()
    assert wire.topics == ["gleaner/cam-1/front/prediction", "gleaner/cam-1/state"]
