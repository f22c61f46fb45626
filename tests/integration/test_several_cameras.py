"""One device with several cameras, as the service runs it: shared parts, separate threads, privacy before the disk."""

from __future__ import annotations

import json
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curate.contracts.capture import BatchRecord
from curate.contracts.paths import CAPTURES, INBOX
from curate.release.repository import init_repository
from curate.storage.local import LocalBlobStore
from edge_agent.cameras.base import decode_image
from edge_agent.config.agent import AgentConfig
from edge_agent.models.inference import load_model
from edge_agent.service import Service
from tests.fakes.tiny_model import tiny_manifest, tiny_model_bytes

SIZE = 32
BLACK_QUARTER = [[0.0, 0.0], [0.5, 0.0], [0.5, 0.5], [0.0, 0.5]]


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"never happened: {what}")
        time.sleep(0.02)


class House:
    """A running service with three cameras: two folders of white pictures, and an address where nobody answers."""

    def __init__(self, folder: Path) -> None:
        for name in ("front", "back"):
            (folder / name).mkdir()
            Image.fromarray(np.full((SIZE, SIZE, 3), 250, np.uint8)).save(folder / name / "0.png")
        self.bucket = LocalBlobStore(folder / "bucket")
        (folder / "root.json").write_bytes(init_repository(self.bucket, folder / "keys", datetime.now(UTC)))
        (folder / "tiny.onnx").write_bytes(tiny_model_bytes(SIZE))
        self.service = Service(self._config(folder))
        self.service.live.replace(load_model(folder / "tiny.onnx", tiny_manifest(SIZE)))
        self.service.start()

    def _config(self, folder: Path) -> AgentConfig:
        folders = [
            {"camera_id": name, "path": folder / name, "follow": False, "fps": 10.0} for name in ("front", "back")
        ]
        dead = {"camera_id": "dead", "kind": "video", "source": "rtsp://127.0.0.1:9/none", "timeout_s": 1.0}
        return AgentConfig.model_validate(
            {
                "device_id": "cam-1",
                "state_dir": folder / "state",
                "cameras": [*folders, dead],
                "bucket": {"kind": "folder", "path": folder / "bucket"},
                "trust": {"root_file": folder / "root.json"},
                "api": {"port": 0},
                "capture": {"policy": {"random_probability": 0.5, "uncertain_budget_fraction": 0.0}},
                "spool": {"batch_max_age_s": 0.2},
                "sync": {"interval_s": 0.1},
                "privacy": {"regions": [{"camera_id": "front", "points": BLACK_QUARTER}]},
            }
        )

    def get(self, path: str) -> Any:
        return json.loads(self.fetch(path))

    def fetch(self, path: str) -> bytes:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self.service.api_port}{path}", timeout=20) as response:
            data: bytes = response.read()
        return data

    def captures(self) -> dict[str, bytes]:
        """Return what the bucket holds of each camera: one picture of it."""
        found = {}
        for info in self.bucket.list(INBOX):
            for record in BatchRecord.from_bytes(self.bucket.get(info.key)).captures:
                found[record.camera_id] = self.bucket.get(f"{CAPTURES}cam-1/{record.image.sha256}.jpg")
        return found


@pytest.fixture
def notified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "30000000")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield listener


@pytest.fixture
def house(tmp_path: Path, notified: socket.socket) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.service.stop()


def fields_told(listener: socket.socket, wanted: set[str]) -> dict[str, str]:
    """Receive until every wanted field has come; return the newest of each."""
    found: dict[str, str] = {}
    while not wanted <= set(found):
        found |= dict(line.split("=", 1) for line in listener.recv(4096).decode().splitlines())
    return found


def test_cameras_share_a_device_and_not_their_fate(house: House, notified: socket.socket) -> None:
    """Two cameras answer while a third cannot be reached; their predictions are numbered together, the status lists all
    three, systemd is told, captures of both reach the bucket, and the front's region is black there and on screen."""
    wait_until(lambda: set(house.captures()) == {"front", "back"}, "captures of both cameras")
    page = house.get("/v1/predictions?limit=2000")["predictions"]
    assert {prediction["camera_id"] for prediction in page} == {"front", "back"}
    assert [prediction["cursor"] for prediction in page] == list(range(1, len(page) + 1))
    assert len({prediction["prediction_id"] for prediction in page}) == len(page)
    wait_until(lambda: house.get("/v1/status")["cameras"][2]["state"] == "lost", "the dead camera is told")
    states = [camera["state"] for camera in house.get("/v1/status")["cameras"]]
    assert states == ["delivering", "delivering", "lost"]
    told = fields_told(notified, {"READY", "WATCHDOG", "STATUS"})
    assert (told["READY"], told["WATCHDOG"], "back" in told["STATUS"]) == ("1", "1", True)
    pictures = {name: decode_image(jpeg, max_pixels=SIZE**2) for name, jpeg in house.captures().items()}
    half = SIZE // 2
    assert pictures["front"][: half - 2, : half - 2].max() < 30
    assert pictures["front"][half + 4 :, half + 4 :].min() > 200
    assert pictures["back"].min() > 200
    newest = decode_image(house.fetch("/v1/cameras/front/live.jpg"), max_pixels=SIZE**2)
    assert newest[: half - 2, : half - 2].max() < 30


def test_a_switch_that_is_off_keeps_nothing(house: House) -> None:
    """After `switch capture off` frames are still answered, and what the arms choose is dropped for privacy."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{house.service.api_port}/v1/switches",
        data=b'{"capture_allowed": false}',
        headers={"Content-Type": "application/json"},
        method="PUT",
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=20) as response:
        assert json.load(response)["capture_allowed"] is False

    def counters() -> dict[str, Any]:
        return dict(house.get("/v1/status")["counters"])

    wait_until(lambda: counters()["dropped"].get("privacy", 0) > 0, "the first drop")
    before = counters()
    wait_until(lambda: counters()["dropped"]["privacy"] >= before["dropped"]["privacy"] + 3, "more drops")
    after = counters()
    assert after["spooled"] == before["spooled"]
    assert after["frames_inferred"] > before["frames_inferred"]
