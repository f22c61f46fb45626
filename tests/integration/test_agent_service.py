"""The real agent: one operating-system process, a folder of frames, a folder bucket, signed releases, HTTP."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import onnxruntime as ort
import pytest
import yaml
from PIL import Image

from curate.contracts.assignment import Acknowledgement, CapturePolicySpec
from curate.contracts.capture import Arm, BatchRecord, CaptureRecord
from curate.contracts.feedback import Feedback
from curate.contracts.paths import INBOX, ack_key, capture_key, parse_inbox_key, reported_key
from curate.contracts.prediction import DetectionPrediction
from curate.contracts.telemetry import DeviceCounters, ReportedState
from curate.release.assignments import assign
from curate.release.manifest import ReleaseDraft
from curate.release.publish import publish_release
from curate.release.repository import init_repository
from curate.storage.local import LocalBlobStore
from tests.fakes.tiny_detector import SPEC as DETECTOR
from tests.fakes.tiny_detector import quarters, tiny_detector_bytes
from tests.fakes.tiny_model import tiny_manifest, tiny_model_bytes

DEVICE = "cam-1"
SIZE = 16
POLICY = CapturePolicySpec(version="busy", random_probability=0.2, uncertain_budget_fraction=0.1)


class FrameWriter:
    """What a camera driver does: numbered pictures, renamed into place, the oldest removed."""

    def __init__(self, folder: Path, fps: float = 60.0) -> None:
        folder.mkdir()
        self._folder = folder
        self._fps = fps
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> FrameWriter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        rng = np.random.default_rng(0)
        index = 0
        while not self._stop.wait(1 / self._fps):
            image = np.clip(rng.normal(rng.integers(0, 255), 20, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
            temporary = self._folder / ".writing"
            Image.fromarray(image).save(temporary, "PNG")
            temporary.rename(self._folder / f"{index:08d}.png")
            (self._folder / f"{index - 400:08d}.png").unlink(missing_ok=True)
            index += 1


class World:
    """A bucket with a release repository, and one agent that may be started and killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bucket = LocalBlobStore(folder / "bucket")
        self.keys = folder / "keys"
        self.state = folder / "state"
        (folder / "root.json").write_bytes(init_repository(self.bucket, self.keys, datetime.now(UTC)))
        self.config = folder / "agent.yaml"
        self.config.write_text(
            yaml.safe_dump(
                {
                    "device_id": DEVICE,
                    "state_dir": "state",
                    "camera": {"camera_id": "front", "path": "frames", "poll_interval_s": 0.005},
                    "bucket": {"kind": "folder", "path": "bucket"},
                    "trust": {"root_file": "root.json"},
                    "api": {"port": 0},
                    "spool": {"batch_max_age_s": 0.3},
                    "sync": {"interval_s": 0.1, "heartbeat_interval_s": 0.2, "persist_interval_s": 0.3},
                    "update": {"interval_s": 0.2, "trial_s": 0.5, "trial_frames": 10},
                }
            )
        )
        self.process: subprocess.Popen[bytes] | None = None

    def release(self, release_id: str, *, bias: float) -> None:
        """Publish a model and assign it."""
        raw = tiny_model_bytes(SIZE, bias=bias)
        now = datetime.now(UTC)
        draft = ReleaseDraft(release_id=release_id, model=tiny_manifest(SIZE).model)
        publish_release(self.bucket, self.keys, draft, {"int8": raw, "golden": golden(raw)}, now)
        assign(self.bucket, self.keys, DEVICE, release_id, POLICY, now=now)

    def start(self) -> None:
        """Start the agent as a process of its own."""
        (self.state / "api.json").unlink(missing_ok=True)
        with (self.folder / "agent.log").open("ab") as log:
            command = [sys.executable, "-m", "edge_agent.cli", "run", "--config", str(self.config)]
            self.process = subprocess.Popen(command, stderr=log, stdout=log)
        wait_until((self.state / "api.json").exists, "the agent listens", 60)

    def end(self, number: signal.Signals) -> int:
        """Signal the agent; return its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(30)
        self.process = None
        return code

    def get(self, path: str, **params: Any) -> Any:
        """Ask the agent's API."""
        return self.fetch(path, **params).json()

    def fetch(self, path: str, **params: Any) -> httpx.Response:
        """Fetch what is no JSON from the agent's API."""
        url = yaml.safe_load((self.state / "api.json").read_text())["url"]
        with httpx.Client(trust_env=False, timeout=10) as client:
            return client.get(f"{url}{path}", params=params)

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        """Post to the agent's API."""
        url = yaml.safe_load((self.state / "api.json").read_text())["url"]
        with httpx.Client(trust_env=False, timeout=10) as client:
            return client.post(f"{url}{path}", json=body)

    def counters(self) -> DeviceCounters:
        """The agent's counters of this moment."""
        return DeviceCounters.model_validate(self.get("/v1/status")["counters"])

    def batches(self) -> dict[str, BatchRecord]:
        """What lies in the inbox."""
        return {item.key: BatchRecord.from_bytes(self.bucket.get(item.key)) for item in self.bucket.list(INBOX)}

    def acknowledge(self) -> None:
        """Say, as the cloud does, that everything in the inbox is taken."""
        through: dict[str, int] = {}
        for key in self.batches():
            parsed = parse_inbox_key(key)
            assert parsed is not None
            through[parsed[1]] = max(through.get(parsed[1], 0), parsed[2])
        document = Acknowledgement(device_id=DEVICE, through=through, updated_at=datetime.now(UTC))
        self.bucket.put(ack_key(DEVICE), document.to_bytes())


def golden(model: bytes) -> bytes:
    """Golden inputs and answers of a model, as the publisher makes them."""
    images = np.random.default_rng(1).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    probabilities, embedding = session.run(["probabilities", "embedding"], {"images": images})
    buffer = io.BytesIO()
    np.savez(
        buffer, images=images, probabilities=probabilities, embedding=embedding, tolerance=np.array(0.02, np.float32)
    )
    return buffer.getvalue()


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 90.0) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"never happened: {what}")
        time.sleep(0.05)


def verify_laws(counters: DeviceCounters) -> None:
    """The ledger closes."""
    c = counters
    assert c.frames_seen == c.frames_inferred + sum(c.frames_skipped.values())
    assert c.selected == c.spooled + sum(c.dropped.values())
    assert c.spooled == c.acknowledged + c.pending + c.evicted
    assert c.feedback_spooled == c.feedback_acknowledged + c.feedback_pending


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    with FrameWriter(tmp_path / "frames"):
        yield made
    if made.process is not None:
        made.process.kill()
        made.process.wait()


def poll_all(world: World, enough: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """Follow the predictions until there are enough of them; none may be missed."""
    found: list[dict[str, Any]] = []
    deadline = time.monotonic() + 90
    while not enough(found):
        assert time.monotonic() < deadline, f"only {len(found)} predictions"
        page = world.get("/v1/predictions", after=found[-1]["cursor"] if found else 0, limit=500)
        assert page["missed"] == 0
        found += page["predictions"]
        time.sleep(0.05)
    assert [prediction["cursor"] for prediction in found] == list(range(1, len(found) + 1))
    return found


def test_the_agent_turns(world: World) -> None:
    """Frames become predictions, a dismissal becomes a capture, batches reach the bucket, an acknowledgement empties
    the spool, a new release swaps in without losing a frame, and SIGTERM ends it all cleanly."""
    world.start()
    wait_until(lambda: world.counters().frames_skipped.get("no_model", 0) > 0, "frames before the first model")
    world.release("r-1", bias=0.0)
    found = poll_all(world, lambda seen: sum(not p["captured"] for p in seen) > 40 and len(seen) > 60)
    dismiss_one(world, next(p for p in reversed(found) if not p["captured"])["prediction_id"])
    swap_release(world)
    stop_capturing(world, "r-2")
    wait_until(lambda: emptied(world), "the spool empties")
    code = world.end(signal.SIGTERM)
    assert code == 0
    state = ReportedState.from_bytes(world.bucket.get(reported_key(DEVICE)))
    assert state.release_id == "r-2"
    verify_laws(state.counters)


def dismiss_one(world: World, prediction_id: str) -> None:
    """Look at a frame that no arm kept and dismiss it: picture, record and verdict reach the bucket."""
    shown = world.fetch(f"/v1/predictions/{prediction_id}/image")
    assert (shown.status_code, shown.headers["content-type"]) == (200, "image/png")
    body = {"verdict": "dismissed", "reason": "wrong_class"}
    answer = world.post(f"/v1/predictions/{prediction_id}/feedback", body)
    assert (answer.status_code, answer.json()["frame_available"]) == (202, True)
    wait_until(lambda: bool(captures_of(world, prediction_id)), "the dismissed frame in the bucket")
    ((batch, capture),) = captures_of(world, prediction_id)
    assert capture.arm_probability(Arm.DISMISSED) == 1.0
    jpeg = world.bucket.get(capture_key(DEVICE, capture.image.sha256))
    assert hashlib.sha256(jpeg).hexdigest() == capture.image.sha256
    assert world.fetch(f"/v1/predictions/{prediction_id}/image").content == jpeg
    feedback_id = answer.json()["feedback_id"]
    wait_until(
        lambda: any(f.feedback_id == feedback_id for b in world.batches().values() for f in b.feedback),
        "the feedback in the bucket",
    )
    verify_laws(batch.counters)


def captures_of(world: World, prediction_id: str) -> list[tuple[BatchRecord, CaptureRecord]]:
    """Find the captures of a prediction in the bucket, each with its batch."""
    return [
        (batch, capture)
        for batch in world.batches().values()
        for capture in batch.captures
        if capture.prediction.prediction_id == prediction_id
    ]


def swap_release(world: World) -> None:
    """Release the next model: it swaps in between two frames and loses none."""
    world.release("r-2", bias=0.3)
    wait_until(lambda: any(u["outcome"] == "swapped" for u in world.get("/v1/status")["updates"]), "the swap")
    event = next(u for u in world.get("/v1/status")["updates"] if u["outcome"] == "swapped")
    assert (event["release_id"], event["frames_lost"]) == ("r-2", 0)
    assert event["swap_gap_ms"] < 1000
    assert set(world.counters().frames_skipped) <= {"no_model"}


def stop_capturing(world: World, release_id: str) -> None:
    """Assign a policy that keeps nothing, and wait until it is followed."""
    quiet = CapturePolicySpec(version="quiet", random_probability=1e-9, uncertain_budget_fraction=0.0)
    assign(world.bucket, world.keys, DEVICE, release_id, quiet, now=datetime.now(UTC))
    wait_until(lambda: world.get("/v1/status")["policy"]["version"] == "quiet", "the quiet policy")


def emptied(world: World) -> bool:
    """Acknowledge what the bucket holds; say whether nothing is left on the device."""
    world.acknowledge()
    counters = world.counters()
    verify_laws(counters)
    return counters.pending == counters.feedback_pending == 0


def test_killed_at_any_moment_it_keeps_the_laws(world: World) -> None:
    """kill -9 at random moments: the model is back without the network, counters never shrink, the ledger closes, and
    every capture that was counted arrives once, whole."""
    world.release("r-1", bias=0.0)
    rng = random.Random(5)
    last = DeviceCounters()
    seen: dict[str, BatchRecord] = {}
    for _ in range(4):
        world.start()
        wait_until(lambda: world.get("/v1/status")["release"] is not None, "a model")
        deadline = time.monotonic() + rng.uniform(0.5, 1.5)
        while time.monotonic() < deadline:
            page = world.get("/v1/predictions", limit=5)["predictions"]
            if page:
                world.post(f"/v1/predictions/{page[-1]['prediction_id']}/feedback", {"verdict": "dismissed"})
            if rng.random() < 0.3:
                world.acknowledge()
        now = world.counters()
        verify_laws(now)
        assert now.spooled >= last.spooled
        assert now.frames_seen >= last.frames_seen
        last = now
        seen |= world.batches()
        code = world.end(signal.SIGKILL)
        assert code == -signal.SIGKILL
    world.start()
    assert world.get("/v1/status")["release"]["release_id"] == "r-1"
    stop_capturing(world, "r-1")
    wait_until(lambda: emptied(world), "the spool empties")
    final = world.counters()
    captures = [capture for batch in world.batches().values() for capture in batch.captures]
    assert len({capture.capture_id for capture in captures}) == len(captures) == final.acknowledged
    for capture in captures:
        jpeg = world.bucket.get(capture_key(DEVICE, capture.image.sha256))
        assert hashlib.sha256(jpeg).hexdigest() == capture.image.sha256
    assert final.spooled >= last.spooled
    world.end(signal.SIGTERM)


def test_a_detector_watches_a_video(world: World) -> None:
    """With a detector on a video file the same agent turns: boxes come over HTTP, one is dismissed, a missed object is
    drawn, and captures with boxes and both verdicts reach the bucket."""
    watch_video(world)
    release_detector(world)
    world.start()
    found = poll_all(world, lambda seen: sum(not p["captured"] and len(p["boxes"]) == 2 for p in seen) > 5)
    quiet = next(p for p in reversed(found) if not p["captured"] and len(p["boxes"]) == 2)
    assert [(box["box_id"], box["label"], box["shown"]) for box in quiet["boxes"]] == [
        ("b1", "lamp", True),
        ("b2", "lamp", False),
    ]
    missed = {"x_min": 40.0, "y_min": 40.0, "x_max": 60.0, "y_max": 60.0}
    url = f"/v1/predictions/{quiet['prediction_id']}/feedback"
    assert world.post(url, {"verdict": "dismissed", "box_id": "b1"}).json()["frame_available"]
    assert world.post(url, {"verdict": "corrected", "label": "lamp", "box": missed}).json()["frame_available"]
    assert world.post(url, {"verdict": "dismissed", "box_id": "b9"}).status_code == 422
    wait_until(lambda: bool(captures_of(world, quiet["prediction_id"])), "the dismissed frame in the bucket")
    ((_, capture),) = captures_of(world, quiet["prediction_id"])
    assert isinstance(capture.prediction, DetectionPrediction)
    assert [box.box_id for box in capture.prediction.boxes] == ["b1", "b2"]
    assert (capture.image.width, capture.image.height) == (64, 64)

    def verdicts() -> list[Feedback]:
        return [feedback for batch in world.batches().values() for feedback in batch.feedback]

    wait_until(lambda: len(verdicts()) == 2, "both verdicts in the bucket")
    assert {(feedback.box_id, feedback.box is not None) for feedback in verdicts()} == {("b1", False), (None, True)}
    verify_laws(world.counters())
    assert world.end(signal.SIGTERM) == 0


def watch_video(world: World) -> None:
    """Write a short clip of lamps, and let the agent play it over and over."""
    path = world.folder / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30.0, (64, 64))
    for _ in range(20):
        writer.write(quarters(0.8, 0.2, 0.0, 0.0, size=64))
    writer.release()
    document = yaml.safe_load(world.config.read_text())
    document["camera"] = {"camera_id": "front", "kind": "video", "source": "clip.avi", "loop": True}
    world.config.write_text(yaml.safe_dump(document))


def release_detector(world: World) -> None:
    """Publish the tiny detector with golden answers, and assign it."""
    raw = tiny_detector_bytes()
    images = np.stack([quarters(0.9, 0.4, 0.1, 0.6), quarters(0.0, 0.3, 0.8, 0.2)])
    session = ort.InferenceSession(raw, providers=["CPUExecutionProvider"])
    names = ["boxes", "probabilities", "box_embeddings", "embedding"]
    buffer = io.BytesIO()
    outputs = dict(zip(names, session.run(names, {"images": images}), strict=True))
    np.savez(buffer, images=images, tolerance=np.array(0.02, np.float32), **outputs)
    now = datetime.now(UTC)
    draft = ReleaseDraft(release_id="d-1", model=DETECTOR)
    publish_release(world.bucket, world.keys, draft, {"int8": raw, "golden": buffer.getvalue()}, now)
    assign(world.bucket, world.keys, DEVICE, "d-1", POLICY, now=now)


def test_a_taken_port_is_said_in_words(world: World) -> None:
    """The agent that cannot listen ends with exit code 2, a message and a hint, not a trace."""
    import socket

    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        document = yaml.safe_load(world.config.read_text())
        document["api"]["port"] = taken.getsockname()[1]
        world.config.write_text(yaml.safe_dump(document))
        command = [sys.executable, "-m", "edge_agent.cli", "run", "--config", str(world.config)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=os.environ)
    assert done.returncode == 2
    assert "cannot listen" in done.stderr
    assert "Traceback" not in done.stderr
