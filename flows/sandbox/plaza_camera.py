"""The plaza's cameras: one process that sends each camera's pictures as Motion JPEG over HTTP, as IP cameras do.

`http://127.0.0.1:<port>/<camera>.mjpg` plays the field part of the clip over and over at its own rate, from a place of
its own for each camera. Like a real camera it does not wait: who reads too slowly misses frames. A control file says
which cameras are at dusk, and whether they send every frame or only every so-many-th.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from curate.errors import ConfigError, Error
from flows.sandbox.plaza_clip import FRAMES_PER_S, iterate_frames
from flows.sandbox.plaza_scene import FIELD_FRAMES, Condition, decode, encode, show
from flows.sandbox.ports import LOOPBACK
from flows.sandbox.simulator import SimulatorConfig, load_control_file, load_simulator_config, stop_event

_log = logging.getLogger(__name__)

_BOUNDARY: Final = "frame"
_CONTROL_PERIOD_S: Final = 0.5


class CameraConfig(SimulatorConfig):
    """What `main` reads. `cameras` holds for each the number of frames it is ahead of the first."""

    clip: Path
    cameras: dict[str, int] = Field(min_length=1)
    port: int
    control_file: Path
    seed: int = 0
    fps: float = Field(default=FRAMES_PER_S, gt=0.0)


class PlazaControl(BaseModel):
    """What the driver decides while the cameras run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dusk: tuple[str, ...] = ()
    frame_step: int = Field(default=1, ge=1)


def camera_address(port: int, camera_id: str) -> str:
    """Where a camera's stream is."""
    return f"http://{LOOPBACK}:{port}/{camera_id}.mjpg"


class Reel:
    """The pictures of the field as JPEG, in either light. Dusk is made when it is first asked for. Thread-safe."""

    def __init__(self, day: Sequence[bytes], first: int, seed: int) -> None:
        self._pictures: dict[tuple[int, Condition], bytes] = {(n, "day"): each for n, each in enumerate(day)}
        self._length = len(day)
        self._first = first
        self._seed = seed

    @classmethod
    def of_field(cls, clip: Path, seed: int) -> Reel:
        """Read the clip. Raises `DatasetError` when it cannot be decoded."""
        first, last = FIELD_FRAMES
        return cls([encode(frame) for frame in iterate_frames(clip, first, last)], first, seed)

    def picture(self, position: int, condition: Condition) -> bytes:
        """Return the JPEG at a position of the endless loop."""
        place = position % self._length
        known = self._pictures.get((place, condition))
        if known is None:
            shown = show(decode(self._pictures[place, "day"]), self._first + place, condition, self._seed)
            known = self._pictures[place, condition] = encode(shown)
        return known


class Broadcast:
    """What every camera shows at a moment."""

    def __init__(self, config: CameraConfig, reel: Reel) -> None:
        self._config = config
        self._reel = reel
        self._started_s = time.monotonic()
        self.control = PlazaControl()

    @property
    def cameras(self) -> Mapping[str, int]:
        """The cameras and how far each is ahead."""
        return self._config.cameras

    def position(self, now_s: float) -> int:
        """How many frames every camera has shown until this moment of the monotonic clock."""
        return int((now_s - self._started_s) * self._config.fps)

    def next_position(self, shown: int, now_s: float) -> int:
        """Which frame comes after the one just shown; what fell due meanwhile is missed."""
        return max(shown + self.control.frame_step, self.position(now_s))

    def due_s(self, position: int) -> float:
        """When that frame is shown."""
        return self._started_s + position / self._config.fps

    def picture(self, camera_id: str, position: int) -> bytes:
        """Return a camera's JPEG at that position."""
        condition: Condition = "dusk" if camera_id in self.control.dusk else "day"
        return self._reel.picture(position + self._config.cameras[camera_id], condition)


class CameraServer(ThreadingHTTPServer):
    """Serves the streams until `shutdown`. `stopping` ends the streams that are open."""

    daemon_threads = True

    def __init__(self, port: int, broadcast: Broadcast, stopping: threading.Event) -> None:
        super().__init__((LOOPBACK, port), _Stream)
        self.broadcast = broadcast
        self.stopping = stopping


class _Stream(BaseHTTPRequestHandler):
    """One reader of one camera."""

    server: CameraServer

    def do_GET(self) -> None:
        camera_id = self.path.removeprefix("/").removesuffix(".mjpg")
        if camera_id not in self.server.broadcast.cameras:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={_BOUNDARY}")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        try:
            self._play(camera_id)
        except OSError:
            _log.info("a reader of %s has left", camera_id)

    def _play(self, camera_id: str) -> None:
        broadcast, stopping = self.server.broadcast, self.server.stopping
        position = broadcast.position(time.monotonic())
        while not stopping.wait(max(0.0, broadcast.due_s(position) - time.monotonic())):
            picture = broadcast.picture(camera_id, position)
            head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
            self.wfile.write(head.encode() + picture + b"\r\n")
            position = broadcast.next_position(position, time.monotonic())

    def log_message(self, format: str, *args: object) -> None:
        _log.debug(format, *args)


def run_cameras(config: CameraConfig, reel: Reel, stopping: threading.Event) -> None:
    """Serve the cameras until `stopping`, following the control file."""
    broadcast = Broadcast(config, reel)
    with CameraServer(config.port, broadcast, stopping) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="cameras", daemon=True)
        thread.start()
        while not stopping.is_set():
            try:
                broadcast.control = load_control_file(config.control_file, PlazaControl)
            except ConfigError as exc:
                _log.error("keeping the last control: %s", exc)
            stopping.wait(_CONTROL_PERIOD_S)
        server.shutdown()


def main(argv: list[str]) -> int:
    """Run the cameras that the JSON file named in `argv` describes; 0 when stopped as asked, 2 for a wrong file."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    stopping = stop_event()
    try:
        config = load_simulator_config(argv, CameraConfig)
        run_cameras(config, Reel.of_field(config.clip, config.seed), stopping)
    except Error as exc:
        _log.error("%s%s", exc, f" ({exc.hint})" if exc.hint else "")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
