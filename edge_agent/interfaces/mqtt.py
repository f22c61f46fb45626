"""Talks to an MQTT broker: tells predictions and state, takes verdicts. Imported only when on, since it needs paho.

Nothing waits for the broker. The log of predictions is the queue: each turn tells the newest of each camera, and what
came and went meanwhile was never queued. Verdicts come with QoS 1 in a session that the broker keeps, and are
acknowledged once they are durable: one that was under way when the power went is delivered again, and counts once.
"""

from __future__ import annotations

import json
import logging
import queue
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from curate.errors import AgentError, ConfigError, Error
from edge_agent.capture.feedback_limits import FeedbackRefusedError
from edge_agent.config.interfaces import MqttConfig
from edge_agent.interfaces.agent_view import AgentView, prediction_document
from edge_agent.interfaces.mqtt_client import BoundedClient
from edge_agent.interfaces.mqtt_topics import OFFLINE, ONLINE, Topics, discovery_messages, summarise
from edge_agent.interfaces.mqtt_verdicts import VerdictDesk

log = logging.getLogger(__name__)

MAX_WAITING_VERDICTS: Final = 64
MAX_UNSENT: Final = 32
"""Messages handed to the client and not yet on the wire; while there are so many, further ones are dropped."""
_TURN_S: Final = 0.1
_RETRY_S: Final = 2.0
_KEEPALIVE_S: Final = 30
_MAX_RECONNECT_S: Final = 60
_MAX_UNACKNOWLEDGED: Final = 256
_GOODBYE_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class _Incoming:
    topic: str
    payload: bytes
    mid: int
    qos: int
    is_too_long: bool


class MqttBridge:
    """One thread's work beside paho's own. `run` belongs to that thread; the callbacks only fill a bounded queue."""

    def __init__(
        self,
        config: MqttConfig,
        view: AgentView,
        *,
        agent_version: str,
        max_message_bytes: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare the client; nothing is sent yet. A verdict of more than `max_message_bytes` is refused unread.

        Raises:
            ConfigError: the password or the certificates cannot be read.
        """
        if config.host is None:
            raise ConfigError("mqtt.host is not set")
        self._config = config
        self._view = view
        self._agent_version = agent_version
        self._max_message_bytes = max_message_bytes
        self._monotonic = monotonic
        self._topics = Topics(config.topic_prefix, view.device_id)
        self._desk = VerdictDesk(view, self._topics, self._last_told)
        self._incoming: queue.Queue[_Incoming] = queue.Queue(MAX_WAITING_VERDICTS)
        self._retry: _Incoming | None = None
        self._retry_at_s = float("-inf")
        self._unsent: deque[paho.MQTTMessageInfo] = deque()
        self._greeting_due = threading.Event()
        self._told: dict[str, str] = {}
        self._told_s: dict[str, float] = {}
        self._pictured_s: dict[str, float] = {}
        self._state: dict[str, Any] = {}
        self._state_s = float("-inf")
        self._published = 0
        self._dropped = 0
        self._too_long = 0
        self._client = self._make_client()

    def counters(self) -> Mapping[str, float]:
        """Return what `/metrics` tells."""
        return {
            "mqtt_published": self._published,
            "mqtt_dropped": self._dropped,
            "mqtt_refused_too_long": self._too_long,
        }

    def run(self, stop: threading.Event) -> None:
        """Turn until told to stop, then say goodbye. paho connects, and connects again, by itself."""
        self._client.connect_async(str(self._config.host), self._config.port, keepalive=_KEEPALIVE_S)
        self._client.loop_start()
        while not stop.is_set():
            try:
                self.turn()
            except Exception:
                log.exception("an MQTT turn failed")
            stop.wait(_TURN_S)
        self._say_goodbye()

    def turn(self) -> None:
        """Answer one verdict, then tell what is due."""
        self._take_verdict()
        if not self._client.is_connected():
            return
        if self._greeting_due.is_set():
            self._greeting_due.clear()
            self._greet()
        for camera_id in self._view.camera_ids:
            self._tell_prediction(camera_id)
            self._tell_picture(camera_id)
        self._tell_state()

    # -- out -------------------------------------------------------------------------------------------------

    def _greet(self) -> None:
        """Tell everything that is retained: the broker may have lost it."""
        self._send(self._topics.availability, ONLINE.encode(), qos=1, retain=True, always=True)
        self._state_s = float("-inf")
        if self._config.discovery_prefix is None:
            return
        messages = discovery_messages(
            self._topics,
            self._view.camera_ids,
            discovery_prefix=self._config.discovery_prefix,
            agent_version=self._agent_version,
            with_images=self._config.image_interval_s is not None,
        )
        for topic, document in messages.items():
            self._send(topic, _pack(document), qos=1, retain=True, always=True)

    def _say_goodbye(self) -> None:
        """Tell that the agent stops, if the broker takes it quickly; else the broker finds out by itself."""
        if self._client.is_connected():
            info = self._client.publish(self._topics.availability, OFFLINE, qos=1, retain=True)
            with suppress(ValueError, RuntimeError):
                info.wait_for_publish(_GOODBYE_S)
        self._client.disconnect()
        self._client.loop_stop()

    def _tell_prediction(self, camera_id: str) -> None:
        newest = self._view.predictions.newest(camera_id)
        now_s = self._monotonic()
        is_early = now_s - self._told_s.get(camera_id, float("-inf")) < self._config.prediction_interval_s
        if newest is None or newest.prediction_id == self._told.get(camera_id) or is_early:
            return
        self._told_s[camera_id] = now_s
        document = prediction_document(newest)
        if self._send(self._topics.prediction(camera_id), _pack({"summary": summarise(document)} | document)):
            self._told[camera_id] = newest.prediction_id

    def _last_told(self, camera_id: str) -> str | None:
        return self._told.get(camera_id)

    def _tell_picture(self, camera_id: str) -> None:
        interval_s, now_s = self._config.image_interval_s, self._monotonic()
        newest = self._view.predictions.newest(camera_id)
        if interval_s is None or newest is None or now_s - self._pictured_s.get(camera_id, -interval_s) < interval_s:
            return
        self._pictured_s[camera_id] = now_s
        try:
            found = self._view.frames.find(newest.prediction_id)
        except AgentError as exc:
            log.debug("no picture for MQTT: %s", exc)
            return
        if found is not None:
            self._send(self._topics.image(camera_id), found.encoded)

    def _tell_state(self) -> None:
        now_s = self._monotonic()
        if now_s - self._state_s < 1.0:
            return
        state = describe_state(self._view)
        if state == self._state and now_s - self._state_s < self._config.state_interval_s:
            return
        is_told = self._send(self._topics.state, _pack(state), qos=1, retain=True)
        self._state, self._state_s = state if is_told else {}, now_s

    def _send(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False, always: bool = False) -> bool:
        """Hand a message to the client; or drop and count it when the wire does not keep up, and return False."""
        while self._unsent and self._unsent[0].is_published():
            self._unsent.popleft()
        if len(self._unsent) >= MAX_UNSENT and not always:
            self._dropped += 1
            return False
        info = self._client.publish(topic, payload, qos=qos, retain=retain)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._dropped += 1
            return False
        self._unsent.append(info)
        self._published += 1
        return True

    # -- in --------------------------------------------------------------------------------------------------

    def _take_verdict(self) -> None:
        """Make one verdict durable, then acknowledge it; one that the disk refuses is tried again."""
        if self._monotonic() < self._retry_at_s:
            return
        try:
            message = self._retry or self._incoming.get_nowait()
        except queue.Empty:
            return
        try:
            answer = self._receive(message)
        except FeedbackRefusedError as exc:
            # Not tried again here: whoever floods shall not hold up the others.
            answer = {"accepted": False, "error": str(exc), "retry_after_s": round(exc.retry_after_s, 1)}
        except Error as exc:
            if exc.retryable:
                self._retry, self._retry_at_s = message, self._monotonic() + _RETRY_S
                return
            answer = {"accepted": False, "error": str(exc)}
        self._retry = None
        self._client.ack(message.mid, message.qos)
        self._send(self._topics.reply, _pack(answer), qos=1)

    def _receive(self, message: _Incoming) -> dict[str, Any]:
        if message.is_too_long:
            self._too_long += 1
            raise AgentError(f"the message is longer than {self._max_message_bytes} bytes")
        return self._desk.receive(message.topic, message.payload)

    # -- paho's thread ---------------------------------------------------------------------------------------

    def _make_client(self) -> paho.Client:
        client = BoundedClient(
            CallbackAPIVersion.VERSION2,
            max_message_bytes=self._max_message_bytes,
            client_id=f"gleaner-{self._view.device_id}",
            clean_session=False,
            manual_ack=True,
        )
        client.max_queued_messages_set(_MAX_UNACKNOWLEDGED)
        client.reconnect_delay_set(1, _MAX_RECONNECT_S)
        client.will_set(self._topics.availability, OFFLINE, qos=1, retain=True)
        if self._config.username is not None:
            client.username_pw_set(self._config.username, _read_password(self._config.password_file))
        if self._config.tls:
            _set_tls(client, self._config.ca_file)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        return client

    def _on_connect(self, client: paho.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:  # noqa: ARG002 - paho passes them
        if reason.is_failure:
            log.warning("the MQTT broker refused the agent", extra={"reason": str(reason)})
            return
        log.info("connected to the MQTT broker")
        client.subscribe([(self._topics.feedback, 1), *((self._topics.dismiss(c), 1) for c in self._view.camera_ids)])
        if self._config.discovery_prefix is not None:
            # Home Assistant says so when it has started, and wants to be told again.
            client.subscribe(f"{self._config.discovery_prefix}/status")
        self._greeting_due.set()

    def _on_disconnect(self, client: paho.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:  # noqa: ARG002 - paho passes them
        if reason.is_failure:
            log.warning("the MQTT broker is gone; connecting again", extra={"reason": str(reason)})

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:  # noqa: ARG002 - as above
        if message.topic == f"{self._config.discovery_prefix}/status":
            self._greeting_due.set()
            client.ack(message.mid, message.qos)
            return
        if message.retain:
            # Said at some time, to nobody in particular: at every start it would be said anew, of another frame.
            log.warning("a retained MQTT message is no verdict", extra={"topic": message.topic})
            client.ack(message.mid, message.qos)
            return
        is_too_long = len(message.payload) > self._max_message_bytes
        payload = b"" if is_too_long else bytes(message.payload)
        incoming = _Incoming(message.topic, payload, message.mid, message.qos, is_too_long)
        try:
            self._incoming.put_nowait(incoming)
        except queue.Full:
            # Not acknowledged: the broker delivers it again when the connection is made anew.
            self._dropped += 1


def describe_state(view: AgentView) -> dict[str, Any]:
    """Return how the device is, as its state topic tells it."""
    status, health = view.status(), view.health()
    return {
        "status": ONLINE,
        "healthy": health.is_healthy,
        "reasons": list(health.reasons),
        "boot_id": view.boot_id,
        "release_id": status.get("release_id"),
        "agent_version": status.get("agent_version"),
        "pending": status["counters"]["pending"],
        "switches": view.switches.state().model_dump(mode="json"),
    }


def _pack(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode()


def _read_password(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").strip("\r\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"mqtt.password_file {path} cannot be read: {exc}") from exc


def _set_tls(client: paho.Client, ca_file: Path | None) -> None:
    try:
        client.tls_set_context(ssl.create_default_context(cafile=ca_file))
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(f"mqtt.ca_file {ca_file} cannot be used: {exc}") from exc
