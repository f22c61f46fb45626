"""A real mosquitto on a free port, and a client that writes down what it hears."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin")


def free_port() -> int:
    """A port nobody has just now."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Broker:
    """mosquitto with a configuration of its own; may be stopped and started again on the same port."""

    def __init__(self, folder: Path, *, user: str | None = None, password: str = "") -> None:
        self.port = free_port()
        self._config = folder / "mosquitto.conf"
        self._process: subprocess.Popen[bytes] | None = None
        lines = [f"listener {self.port} 127.0.0.1", "persistence false", "user root"]
        if user is None:
            lines.append("allow_anonymous true")
        else:
            passwords = folder / "passwords"
            subprocess.run(
                ["mosquitto_passwd", "-b", "-c", str(passwords), user, password], check=True, capture_output=True
            )
            lines += ["allow_anonymous false", f"password_file {passwords}"]
        self._config.write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        """Run it until it listens."""
        assert MOSQUITTO is not None
        self._process = subprocess.Popen(
            [MOSQUITTO, "-c", str(self._config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(self._listens, "mosquitto listens")

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def _listens(self) -> bool:
        with closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


class Listener:
    """A client of the broker that remembers the newest message of each topic, and how many there were."""

    def __init__(self, port: int, *, user: str | None = None, password: str | None = None) -> None:
        self.newest: dict[str, bytes] = {}
        self.counts: dict[str, int] = {}
        self.retained: set[str] = set()
        self._client = paho.Client(CallbackAPIVersion.VERSION2)
        if user is not None:
            self._client.username_pw_set(user, password)
        self._ready = threading.Event()
        self._client.on_connect = lambda client, *_: client.subscribe("#", 1)
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = self._note
        self._client.reconnect_delay_set(1, 1)
        self._client.connect_async("127.0.0.1", port)
        self._client.loop_start()
        assert self._ready.wait(20)

    def send(self, topic: str, payload: object, *, retain: bool = False) -> None:
        """Publish, as JSON unless it is bytes."""
        raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self._client.publish(topic, raw, qos=1, retain=retain).wait_for_publish(10)

    def document(self, topic: str) -> Any:
        """The newest message of a topic."""
        return json.loads(self.newest[topic])

    def close(self) -> None:
        """Leave."""
        self._client.disconnect()
        self._client.loop_stop()

    def _note(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        self.newest[message.topic] = bytes(message.payload)
        self.counts[message.topic] = self.counts.get(message.topic, 0) + 1
        if message.retain:
            self.retained.add(message.topic)


@contextmanager
def listening(port: int, **login: Any) -> Iterator[Listener]:
    """A listener that leaves at the end."""
    listener = Listener(port, **login)
    try:
        yield listener
    finally:
        listener.close()


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    """Wait for something to become true."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise AssertionError(f"never happened: {what}")
        time.sleep(0.02)
