"""An agent that starts again on a disk that takes nothing any more still answers frames (P2)."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curate.contracts.telemetry import DeviceCounters
from curate.errors import AgentError
from edge_agent.config.agent import AgentConfig
from edge_agent.service import Service
from edge_agent.state_lock import exclusive_state
from tests.fakes.captures import broken_laws
from tests.fakes.disk_faults import dead_disk, faulty_disk
from tests.fakes.releases import Publisher, write_factory_model

SIZE = 8
PATIENCE_S = 60.0


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    """A device with a factory model, a camera that never ends, and a bucket that is not there."""
    (tmp_path / "root.json").write_bytes(Publisher(tmp_path / "cloud").root)
    (tmp_path / "pictures").mkdir()
    for number in range(5):
        picture = np.full((SIZE, SIZE, 3), 40 * number, np.uint8)
        Image.fromarray(picture).save(tmp_path / "pictures" / f"{number}.png")
    return AgentConfig.model_validate(
        {
            "device_id": "cam-1",
            "state_dir": tmp_path / "state",
            "camera": {"camera_id": "front", "path": tmp_path / "pictures", "follow": False, "fps": 20.0},
            "bucket": {"kind": "folder", "path": tmp_path / "none"},
            "trust": {"root_file": tmp_path / "root.json"},
            "models": {"factory_dir": write_factory_model(tmp_path / "factory")},
            "api": {"port": 0},
            "capture": {"policy": {"random_probability": 1.0}},
            "spool": {"reserve_bytes": 0},
        }
    )


@contextlib.contextmanager
def running(config: AgentConfig) -> Iterator[Service]:
    """An agent as `gleaner-agent run` runs it."""
    with exclusive_state(config.state_dir):
        service = Service(config)
        service.start()
        try:
            yield service
        finally:
            service.stop()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_frames_are_answered_from_a_disk_that_takes_nothing(config: AgentConfig, code: int) -> None:
    """After a restart on a disk that is full to the last byte, or was mounted read-only, frames are answered; captures
    are dropped with the disk as the reason, and what was kept before is still held."""
    with running(config) as service:
        wait_until(lambda: counters(service)["spooled"] > 2, "captures")
    with dead_disk(config.state_dir, code), running(config) as service:
        spooled = counters(service)["spooled"]
        before = counters(service)["frames_inferred"]
        wait_until(lambda: counters(service)["frames_inferred"] > before + 10, "answers")
        wait_until(lambda: sum(counters(service)["dropped"].values()) > 2, "drops")
        told = service.status()
        assert set(told["counters"]["dropped"]) <= {"disk_full", "disk_error", "backlog"}
        assert told["counters"]["spooled"] == told["counters"]["pending"] == spooled
    with running(config) as service:
        assert counters(service)["pending"] >= spooled


def test_a_lock_on_a_read_only_disk_is_a_lock(tmp_path: Path) -> None:
    """Where the pid file cannot be opened for writing it is locked all the same, and keeps a second agent out."""
    with exclusive_state(tmp_path):
        pass
    with (
        faulty_disk(tmp_path / "agent.pid", errno.EROFS, 0, 1),
        exclusive_state(tmp_path),
        pytest.raises(AgentError, match="another agent"),
        exclusive_state(tmp_path),
    ):
        pass


def counters(service: Service) -> dict[str, Any]:
    """The ledger, which closes whenever somebody looks."""
    told: dict[str, Any] = service.status()["counters"]
    assert broken_laws(DeviceCounters.model_validate(told)) == []
    return told


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"never happened: {what}"
        time.sleep(0.02)
