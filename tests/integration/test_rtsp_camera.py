"""RTSP, proven against a real server: GStreamer's, killed without a word and started again."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_agent.cameras.base import Camera, CameraState, Frame
from edge_agent.cameras.live import INDEX_GAP_AFTER_LOSS
from edge_agent.cameras.registry import describe_camera, open_camera
from edge_agent.config.cameras import VideoCameraConfig
from tests.conftest import _missing, free_ports
from tests.fakes import rtsp_server

SYSTEM_PYTHON = Path("/usr/bin/python3")
HINT = (
    "apt-get install python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good "
    "gstreamer1.0-plugins-ugly"
)


class RtspServer:
    """A server on one port that can die and come back."""

    def __init__(self) -> None:
        (self._port,) = free_ports(1)
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """Where the pictures come from."""
        return f"rtsp://viewer:secret@127.0.0.1:{self._port}/main"

    def start(self) -> None:
        """Start it and wait until it listens."""
        command = [str(SYSTEM_PYTHON), rtsp_server.__file__, str(self._port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        if self._process.stdout.readline() == "ready\n":
            return
        code = self._process.wait(10)
        if code == rtsp_server.NOT_INSTALLED:
            _missing("GStreamer's RTSP server", HINT)
        pytest.fail(f"the RTSP server ended with {code}")

    def kill(self) -> None:
        """End it as a power cut does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None


@pytest.fixture
def server() -> Iterator[RtspServer]:
    if not SYSTEM_PYTHON.exists():
        _missing("GStreamer's RTSP server", HINT)
    made = RtspServer()
    made.start()
    yield made
    made.kill()


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"never happened: {what}")
        time.sleep(0.01)


def frames_from(camera: Camera, count: int) -> list[Frame]:
    """Poll until that many frames have come."""
    found: list[Frame] = []

    def came() -> bool:
        event = camera.poll()
        found.extend([event] if isinstance(event, Frame) else [])
        return len(found) >= count

    wait_for(came, f"{count} frames")
    return found


def test_an_rtsp_camera_is_followed_through_the_death_of_its_server(
    server: RtspServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """H.264 frames come in order; when the server is killed the camera says that it is lost, without the password; when
    the server is back, frames come again by themselves, behind a gap in their numbers."""
    config = VideoCameraConfig(camera_id="front", kind="video", source=server.url, timeout_s=5.0, max_reconnect_s=0.2)
    assert describe_camera(config).endswith("frames of 160x120 pixels")
    camera = open_camera(config)
    try:
        before = frames_from(camera, 5)
        assert camera.state is CameraState.DELIVERING
        server.kill()
        wait_for(lambda: camera.state is CameraState.LOST, "the loss is told")
        while camera.poll() is not None:
            pass
        server.start()
        after = frames_from(camera, 5)
        assert camera.state is CameraState.DELIVERING
    finally:
        camera.close()
    indices = [frame.index for frame in before + after]
    assert indices == sorted(set(indices))
    assert after[0].index - before[-1].index >= INDEX_GAP_AFTER_LOSS
    assert before[0].image.shape == (120, 160, 3)
    assert before[0].image.max() > 200
    assert "secret" not in caplog.text + "".join(capfd.readouterr())
    assert [record.message for record in caplog.records] == ["the video stream is lost"]
