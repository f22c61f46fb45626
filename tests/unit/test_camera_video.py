"""Video as a camera: a real file written here, and a real HTTP server that goes away and comes back."""

from __future__ import annotations

import http.server
import logging
import re
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

from curate.errors import AgentError, ConfigError
from edge_agent.cameras.base import CameraState, Frame, Skipped, SkipReason, decode_image
from edge_agent.cameras.live import INDEX_GAP_AFTER_LOSS, LiveVideo, RateLimit
from edge_agent.cameras.registry import close_cameras, describe_camera, open_camera
from edge_agent.cameras.video import Shot, VideoStream, develop, open_address
from edge_agent.cameras.video_file import VideoFile
from edge_agent.config.cameras import FolderCameraConfig, UsbCameraConfig, VideoCameraConfig

WIDTH, HEIGHT, FPS, COUNT = 64, 48, 10.0, 12


def picture(number: int) -> np.ndarray:
    """Return a BGR frame whose red channel says its number, and whose blue one is dark."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:, :, 2] = 20 * number
    return image


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), FPS, (WIDTH, HEIGHT))
    assert writer.isOpened()
    for number in range(COUNT):
        writer.write(picture(number))
    writer.release()
    return path


def config(source: object, **changes: object) -> VideoCameraConfig:
    return VideoCameraConfig.model_validate(
        {"camera_id": "front", "kind": "video", "source": str(source), "timeout_s": 5.0, "max_reconnect_s": 0.05}
        | changes
    )


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now_s = 128.0

    def __call__(self) -> float:
        return self.now_s


def play(camera: VideoFile, clock: Clock, seconds: float, step_s: float = 1 / 32) -> list[Frame | Skipped]:
    """Poll a file while the clock goes on; return its events."""
    found: list[Frame | Skipped] = []
    for _ in range(round(seconds / step_s)):
        while (event := camera.poll()) is not None:
            found.append(event)
        clock.now_s += step_s
    return found


def numbers(events: list[Frame | Skipped]) -> list[int]:
    """Return what number each picture shows."""
    return [round(float(event.image[:, :, 0].mean()) / 20) for event in events if isinstance(event, Frame)]


def test_a_file_plays_at_its_own_rate_and_ends(clip: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each frame comes once, in order, when it is due, in RGB; after the last there is none, and that is said once."""
    clock = Clock()
    camera = VideoFile(config(clip), monotonic=clock)
    with caplog.at_level(logging.INFO):
        half = play(camera, clock, 0.6)
        assert numbers(half) == list(range(6))
        rest = play(camera, clock, 5.0)
    assert numbers(rest) == list(range(6, COUNT))
    assert [event.index for event in half + rest if isinstance(event, Frame)] == list(range(COUNT))
    assert camera.poll() is None
    assert [record.message for record in caplog.records] == ["the video has ended"]
    camera.close()


def test_a_frame_is_rgb_and_its_encoding_shows_the_same(clip: Path) -> None:
    """Red is the first channel, and the JPEG that the ring holds decodes to nearly the same pixels."""
    clock = Clock()
    frames = [event for event in play(VideoFile(config(clip), monotonic=clock), clock, 1.0) if isinstance(event, Frame)]
    frame = frames[-1]
    assert (frame.image.shape, frame.image.dtype) == ((HEIGHT, WIDTH, 3), np.uint8)
    assert frame.image[:, :, 0].mean() > 100
    assert frame.image[:, :, 2].mean() < 10
    again = decode_image(frame.encoded, max_pixels=WIDTH * HEIGHT).astype(int)
    assert np.abs(again - frame.image).max() < 12


def test_a_late_reader_skips_to_the_newest(clip: Path) -> None:
    """Frames due too long ago are counted as backpressure, and every frame of the file is read or counted."""
    clock = Clock()
    camera = VideoFile(config(clip, max_lag_frames=3), monotonic=clock)
    assert isinstance(camera.poll(), Frame)
    clock.now_s += 0.71
    assert camera.poll() == Skipped(SkipReason.BACKPRESSURE, 6)
    assert numbers(play(camera, clock, 3.0)) == list(range(7, COUNT))


@pytest.mark.parametrize("lag_frames", [1, 100])
def test_a_loop_goes_on_counting(clip: Path, lag_frames: int) -> None:
    """The first frame follows the last, indices go on, and nothing is lost at the seam."""
    clock = Clock()
    events = play(VideoFile(config(clip, loop=True, max_lag_frames=lag_frames), monotonic=clock), clock, 3.0)
    frames = [event for event in events if isinstance(event, Frame)]
    assert [frame.index for frame in frames] == list(range(30))
    assert numbers(events) == [index % COUNT for index in range(30)]


def test_another_rate_may_be_set(clip: Path) -> None:
    """With `fps` the file plays faster or slower than it was recorded."""
    clock = Clock()
    assert len(play(VideoFile(config(clip, fps=5.0), monotonic=clock), clock, 1.0)) == 5
    assert len(play(VideoFile(config(clip, fps=20.0), monotonic=clock), clock, 0.5)) == 10


def test_a_device_too_slow_for_the_file_still_sees_it(clip: Path) -> None:
    """When decoding cannot keep pace, however many frames are due, some are given between those passed over."""
    clock = Clock()
    camera = VideoFile(config(clip, loop=True, fps=240.0, max_lag_frames=1), monotonic=clock)
    events = []
    for _ in range(21):
        events.append(camera.poll())
        clock.now_s += 1.0  # one poll's decoding takes longer than what it passes over plays
    frames = [event for event in events if isinstance(event, Frame)]
    skipped = sum(event.count for event in events if isinstance(event, Skipped))
    assert len(frames) >= 10
    assert frames[-1].index + 1 == len(frames) + skipped


def test_a_frame_that_no_jpeg_can_hold_is_counted() -> None:
    """A picture wider than JPEG knows is undecodable: no frame goes on without its encoding."""
    shot = Shot(0, np.zeros((2, 70_000, 3), np.uint8), datetime(2026, 1, 1, tzinfo=UTC), 0.0)
    assert develop(config("http://127.0.0.1/"), shot) == Skipped(SkipReason.UNDECODABLE, 1)


def test_frames_above_the_limit_are_refused(clip: Path) -> None:
    """More pixels than allowed count as undecodable."""
    camera = VideoFile(config(clip, max_image_pixels=100))
    assert camera.poll() == Skipped(SkipReason.UNDECODABLE, 1)


def test_what_cannot_be_played_is_said_at_the_start(tmp_path: Path) -> None:
    """A missing file and one that is no video are ConfigErrors with a hint, also for `check`."""
    noise = tmp_path / "noise.avi"
    noise.write_bytes(b"no video at all" * 100)
    for source, words in ((tmp_path / "absent.avi", "is not a file"), (noise, "no video")):
        with pytest.raises(ConfigError, match=words) as caught:
            open_camera(config(source))
        assert caught.value.hint
    with pytest.raises(ConfigError, match="is not a file"):
        describe_camera(config(tmp_path / "absent.avi"))
    with pytest.raises(AgentError, match="gives no frame"):
        describe_camera(config(noise))


def test_a_cut_off_file_ends_early(clip: Path, tmp_path: Path) -> None:
    """A file that breaks off gives the frames it has and then ends; in a loop it starts again."""
    cut = tmp_path / "cut.avi"
    raw = clip.read_bytes()
    end = [match.start() for match in re.finditer(b"00dc", raw)][7]
    cut.write_bytes(raw[:end])
    clock = Clock()
    once = play(VideoFile(config(cut), monotonic=clock), clock, 4.0)
    assert 5 <= len(once) <= 7
    assert len(play(VideoFile(config(cut, loop=True), monotonic=clock), clock, 3.0)) == 30


def test_without_opencv_the_extra_is_named(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without OpenCV is told which extra to install, and a folder camera needs none."""
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigError, match="OpenCV") as caught:
        open_camera(config(clip))
    assert "video" in str(caught.value.hint)
    assert open_camera(FolderCameraConfig(camera_id="front", path=clip.parent)).poll() is None


def test_check_says_what_is_there(clip: Path) -> None:
    """`check` opens the source and tells the size of its frames."""
    assert "64x48" in describe_camera(config(clip))


@pytest.mark.parametrize(("fps", "admitted"), [(None, 100), (10.0, 33), (60.0, 100), (1.0, 4)])
def test_a_stream_is_thinned_out_to_its_rate(fps: float | None, admitted: int) -> None:
    """Of 100 frames at 30 a second, as many pass as the rate allows over that time."""
    limit = RateLimit(fps)
    assert abs(sum(limit.admits(50.0 + n / 30) for n in range(100)) - admitted) <= 1


# -- live ---------------------------------------------------------------------------------------------------------


class MjpegServer:
    """Sends pictures as a network camera does (multipart/x-mixed-replace), each when it is told to."""

    def __init__(self, port: int = 0) -> None:
        server = self
        self.next_number = 0
        self._ready = threading.Condition()
        self._sendable = 0
        self._is_open = True

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                """Say nothing."""

            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                try:
                    while server.wait_for_one():
                        data = cv2.imencode(".jpg", picture(server.next_number % 12))[1].tobytes()
                        server.next_number += 1
                        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                        self.wfile.write(head.encode() + data + b"\r\n")
                except OSError:
                    return

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where the pictures come from."""
        return f"http://user:secret@127.0.0.1:{self.port}/video.mjpg"

    def wait_for_one(self) -> bool:
        """Wait until one more picture may be sent; False when the server closes."""
        with self._ready:
            self._ready.wait_for(lambda: self._sendable > 0 or not self._is_open)
            self._sendable -= 1
            return self._is_open

    def send(self, count: int) -> None:
        """Let that many more pictures go."""
        with self._ready:
            self._sendable += count
            self._ready.notify_all()

    def close(self) -> None:
        """Go away as a camera that loses power."""
        with self._ready:
            self._is_open = False
            self._ready.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"never happened: {what}")
        time.sleep(0.005)


def next_event(camera: LiveVideo) -> Frame | Skipped:
    """Wait for the camera's next event."""
    found: list[Frame | Skipped] = []

    def came() -> bool:
        event = camera.poll()
        found.extend([event] if event else [])
        return bool(found)

    wait_for(came, "a frame")
    return found[0]


def frames_from(camera: LiveVideo, server: MjpegServer, count: int) -> list[Frame]:
    """Let the server send until that many frames have come; decoders hold some back."""
    found: list[Frame] = []

    def came() -> bool:
        server.send(1)
        event = camera.poll()
        found.extend([event] if isinstance(event, Frame) else [])
        return len(found) >= count

    wait_for(came, f"{count} frames")
    return found


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback is never asked for through a proxy."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_a_live_stream_is_followed_through_a_loss(caplog: pytest.LogCaptureFixture) -> None:
    """Frames come in order; when the server dies the camera waits, and when it is back it goes on; each is said
    once, without the password, and the index leaves a gap."""
    server = MjpegServer()
    port = server.port
    camera = open_camera(config(server.url))
    assert isinstance(camera, LiveVideo)
    try:
        with caplog.at_level(logging.INFO):
            before = frames_from(camera, server, 3)
            server.close()
            wait_for(lambda: camera.state is CameraState.LOST, "the loss is told")
            while camera.poll() is not None:
                pass
            server = MjpegServer(port)
            after = frames_from(camera, server, 3)
    finally:
        camera.close()
        server.close()
    indices = [frame.index for frame in before + after]
    assert indices == sorted(set(indices))
    assert after[0].index - before[-1].index >= INDEX_GAP_AFTER_LOSS
    assert before[0].image.shape == (HEIGHT, WIDTH, 3)
    told = [record for record in caplog.records if "stream" in record.message]
    assert [record.message for record in told] == ["the video stream is lost", "the video stream is back"]
    assert {record.__dict__["source"] for record in told} == {f"http://127.0.0.1:{port}"}


class HalfDeafStream(VideoStream):
    """A stream of which every other frame cannot be decoded."""

    def __init__(self, *, count: int) -> None:
        self.left = count

    def grab(self) -> bool:
        self.left -= 1
        return self.left >= 0

    def retrieve(self) -> np.ndarray | None:
        return None if self.left % 2 else picture(1)

    def close(self) -> None:
        """Hold nothing."""


def test_what_a_stream_cannot_decode_is_counted() -> None:
    """Every frame that a live stream had is given, or counted with its reason."""
    streams = [HalfDeafStream(count=20)]
    camera = LiveVideo(
        config("http://127.0.0.1/", max_queued_frames=100),
        lambda: streams.pop() if streams else HalfDeafStream(count=0),
    )
    seen = {"frames": 0, SkipReason.UNDECODABLE.value: 0}

    def are_all_seen() -> bool:
        event = camera.poll()
        if event is not None:
            seen["frames" if isinstance(event, Frame) else event.reason.value] += getattr(event, "count", 1)
        return sum(seen.values()) == 20

    try:
        wait_for(are_all_seen, "every frame is accounted for")
    finally:
        camera.close()
    assert seen == {"frames": 10, "undecodable": 10}


def test_a_camera_that_is_not_there_yet_is_waited_for() -> None:
    """A live address that does not answer is no error at the start: frames come once it does."""
    server = MjpegServer()
    port, url = server.port, server.url
    server.close()
    camera = open_camera(config(url))
    assert isinstance(camera, LiveVideo)
    assert camera.poll() is None
    server = MjpegServer(port)
    try:
        assert frames_from(camera, server, 1)[0].camera_id == "front"
    finally:
        camera.close()
        server.close()


def test_only_the_newest_wait_and_the_rest_is_counted() -> None:
    """When nobody polls, old frames give way; what was passed over and what is read add up to what came."""
    server = MjpegServer()
    wanted = config(server.url, max_queued_frames=2)
    camera = LiveVideo(wanted, partial(open_address, wanted))
    try:
        assert camera.poll() is None
        server.send(30)

        def came() -> bool:
            return camera._next_index >= 20

        wait_for(came, "twenty frames")
    finally:
        camera.close()
        server.close()
    camera.join(10.0)
    events = []
    while (event := camera.poll()) is not None:
        events.append(event)
    skipped = sum(event.count for event in events if isinstance(event, Skipped))
    indices = [event.index for event in events if isinstance(event, Frame)]
    assert len(indices) == 2
    assert indices == [skipped, skipped + 1]
    assert skipped >= 18


class DeafStream(VideoStream):
    """A stream whose next frame does not come until somebody has lost patience."""

    def __init__(self) -> None:
        self.is_asked, self.gives_up = threading.Event(), threading.Event()

    def grab(self) -> bool:
        self.is_asked.set()
        return not self.gives_up.wait(30.0)

    def close(self) -> None:
        """Hold nothing."""


def test_closing_does_not_wait_and_joining_waits_no_longer_than_it_may() -> None:
    """A camera whose thread waits for the network is told to end at once; its thread ends when the network lets it."""
    stream = DeafStream()
    camera = LiveVideo(config("http://127.0.0.1/"), lambda: stream)
    camera.poll()
    assert stream.is_asked.wait(30.0)
    camera.close()
    camera.join(0.0)
    assert camera._thread.is_alive()
    stream.gives_up.set()
    camera.join(30.0)
    assert not camera._thread.is_alive()


class SlowCamera:
    """Takes ten seconds to end, or as long as somebody waits for it."""

    camera_id = "front"
    state = CameraState.LOST
    idle_s = 0.0

    def __init__(self, told: list[str], clock: Clock) -> None:
        self._told = told
        self._clock = clock

    def poll(self) -> None:
        return None

    def close(self) -> None:
        self._told.append("close")

    def join(self, timeout_s: float) -> None:
        self._told.append(f"join {timeout_s:g}")
        self._clock.now_s += min(timeout_s, 10.0)


def test_cameras_are_closed_together() -> None:
    """Every camera is told before the first is waited for, and all of them together get the time, not each."""
    told: list[str] = []
    clock = Clock()
    close_cameras([SlowCamera(told, clock) for _ in range(3)], timeout_s=12.0, monotonic=clock)
    assert told == ["close"] * 3 + ["join 12", "join 2", "join 0"]


# -- USB ----------------------------------------------------------------------------------------------------------


def test_a_usb_camera_that_is_not_there_is_said_and_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    """`check` names the missing device with a hint; the agent itself starts, says that it is lost, and waits."""
    usb = UsbCameraConfig(camera_id="usb", kind="usb", device="/dev/video-not-there", max_reconnect_s=0.01)
    with pytest.raises(ConfigError, match="does not exist") as caught:
        describe_camera(usb)
    assert "by-id" in str(caught.value.hint)
    with caplog.at_level(logging.WARNING):
        camera = open_camera(usb)
        try:
            assert camera.state is CameraState.STARTING
            assert camera.poll() is None
            wait_for(lambda: camera.state is CameraState.LOST, "the loss is told")
        finally:
            camera.close()
    assert [record.__dict__["source"] for record in caplog.records] == ["/dev/video-not-there"]


def test_a_file_s_state_is_told(clip: Path) -> None:
    """A file delivers until it has ended, and then says so."""
    clock = Clock()
    camera = VideoFile(config(clip), monotonic=clock)
    assert camera.state is CameraState.DELIVERING
    play(camera, clock, 5.0)
    assert camera.state is CameraState.ENDED


def test_nobody_polls_for_nothing(clip: Path) -> None:
    """Between two frames a file says how long none can come: polling again after that finds the next one."""
    clock = Clock()
    camera = VideoFile(config(clip), monotonic=clock)
    assert camera.idle_s == 0.0
    assert isinstance(camera.poll(), Frame)
    assert 0.0 < camera.idle_s <= 1 / FPS
    clock.now_s += camera.idle_s + 1e-9
    assert (camera.idle_s, isinstance(camera.poll(), Frame)) == (0.0, True)
    play(camera, clock, 5.0)
    assert camera.idle_s == 1.0
    limit = RateLimit(10.0)
    assert limit.due_in_s(50.0) == 0.0
    assert [limit.admits(50.0) for _ in range(3)] == [True, True, False]
    assert limit.due_in_s(50.04) == pytest.approx(0.06)
