"""systemd is told that the agent is ready and alive, by a real socket; and that it is stuck, by silence."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.cameras.base import CameraState, Frame, Skipped
from edge_agent.cameras.watched import WatchedCamera
from edge_agent.systemd import SystemdNotifier, Watchdog


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(20)
        yield listener


def environment(manager: socket.socket, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": str(manager.getsockname()), **more}


def fields(message: bytes) -> dict[str, str]:
    return dict(line.split("=", 1) for line in message.decode().splitlines())


def test_a_message_arrives_whole(manager: socket.socket) -> None:
    """Several fields travel in one datagram."""
    SystemdNotifier(environment(manager)).notify(READY="1", STATUS="front delivering; r-1")
    assert fields(manager.recv(4096)) == {"READY": "1", "STATUS": "front delivering; r-1"}


def test_an_abstract_address_is_understood() -> None:
    """A leading @ names an abstract socket, as in containers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0gleaner-test-notify")
        SystemdNotifier({"NOTIFY_SOCKET": "@gleaner-test-notify"}).notify(READY="1")
        assert listener.recv(100) == b"READY=1"


def test_without_systemd_nothing_happens(tmp_path: Path) -> None:
    """No variable, or a socket that is gone: nothing is sent and nothing is raised."""
    SystemdNotifier({}).notify(READY="1")
    SystemdNotifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).notify(READY="1")
    assert not SystemdNotifier({}).is_wanted


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_read_as_systemd_means_it(variables: dict[str, str], expected: float | None) -> None:
    """Microseconds, and only for the process that is meant."""
    assert SystemdNotifier(variables, process_id=7).watchdog_s == expected


def test_only_an_agent_that_gets_on_is_reported_alive(manager: socket.socket) -> None:
    """While a camera's thread is stuck no WATCHDOG=1 is sent, and the status says which; then it is sent again."""
    stuck: list[str] = []
    notifier = SystemdNotifier(environment(manager, WATCHDOG_USEC="6000000"))
    watchdog = Watchdog(notifier, find_stuck=lambda limit_s: stuck if limit_s == 6.0 else [], describe=lambda: "fine")
    assert watchdog.interval_s == 2.0
    assert watchdog.turn()
    assert fields(manager.recv(4096)) == {"STATUS": "fine", "WATCHDOG": "1"}
    stuck.append("front")
    assert not watchdog.turn()
    assert fields(manager.recv(4096)) == {"STATUS": "stuck: front"}
    stuck.clear()
    assert watchdog.turn()
    assert fields(manager.recv(4096))["WATCHDOG"] == "1"


def test_a_failing_turn_does_not_end_the_watchdog(manager: socket.socket) -> None:
    """When the agent cannot say how it is, the next turn tries again."""
    calls: list[int] = []

    def describe() -> str:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("once")
        return "fine"

    notifier = SystemdNotifier(environment(manager, WATCHDOG_USEC="30000"))
    stop = threading.Event()
    watchdog = Watchdog(notifier, find_stuck=lambda _: [], describe=describe)
    thread = threading.Thread(target=watchdog.run, args=(stop,))
    thread.start()
    assert fields(manager.recv(4096))["WATCHDOG"] == "1"
    stop.set()
    thread.join(20)
    assert not thread.is_alive()


class StillCamera:
    """Has nothing new."""

    camera_id = "front"
    state = CameraState.STARTING
    idle_s = 0.0

    def poll(self) -> Frame | Skipped | None:
        return None

    def close(self) -> None:
        """Hold nothing."""

    def join(self, timeout_s: float) -> None:
        """Nothing goes on."""


def test_a_camera_that_nobody_polls_is_noticed() -> None:
    """The time since the last poll grows until somebody polls again, frames or not."""
    now = [100.0]
    camera = WatchedCamera(StillCamera(), monotonic=lambda: now[0])
    now[0] += 30.0
    assert camera.unpolled_s == 30.0
    assert camera.poll() is None
    assert camera.unpolled_s == 0.0
    assert camera.describe() == {
        "camera_id": "front",
        "state": "starting",
        "frames": 0,
        "fps": None,
        "last_frame_age_s": None,
    }
