"""A capture loop as the service wires it, on a camera that is told what to see and a disk that takes no time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from curate.contracts.assignment import CapturePolicySpec
from curate.contracts.capture import CaptureRecord
from edge_agent.cameras.base import CameraState, Frame, Skipped
from edge_agent.cameras.watched import WatchedCamera
from edge_agent.capture.frame_ring import FrameRing, PredictionLog
from edge_agent.capture.keeper import Keeper
from edge_agent.capture.loop import CaptureLoop, CaptureParts
from edge_agent.capture.novelty import NoveltyMemory
from edge_agent.capture.policy import CapturePolicy
from edge_agent.ledger import Ledger, Totals
from edge_agent.models.inference import LiveModel, LoadedModel
from edge_agent.report import DeviceReport

_BOOT: Final = "bench"
BUSY: Final = CapturePolicySpec(version="bench", novel_budget_fraction=0.02, temporal_budget_fraction=0.02)
"""Every arm has work."""
_MAX_QUEUED: Final = 100_000
"""What is kept waits for the keeper's thread, which is not measured and does not run."""


class ToldCamera:
    """Shows one frame when it was told to."""

    camera_id = "bench"
    state = CameraState.DELIVERING
    idle_s = 0.0

    def __init__(self) -> None:
        self.next: Frame | None = None

    def poll(self) -> Frame | Skipped | None:
        """Return the frame once."""
        frame, self.next = self.next, None
        return frame

    def close(self) -> None:
        """Hold nothing."""

    def join(self, timeout_s: float) -> None:
        """Nothing goes on."""


class NoDisk:
    """Takes every capture and keeps none; counts as the spool does."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def put(self, draft: CaptureRecord, jpeg: bytes) -> bool:  # noqa: ARG002 - the port's shape
        """Count it."""
        self._ledger.add(Totals(selected=1, spooled=1))
        return True

    def put_all(self, captures: Sequence[tuple[CaptureRecord, bytes]]) -> list[bool]:
        """Count them."""
        return [self.put(*capture) for capture in captures]


class MeasuredLoop:
    """One capture loop whose turns can be timed one by one."""

    def __init__(self, loop: CaptureLoop, camera: ToldCamera) -> None:
        self._loop = loop
        self._camera = camera

    def time_turn(self, frame: Frame) -> float:
        """Let the loop handle the frame; return the processor seconds it took."""
        self._camera.next = frame
        started_s = time.thread_time()
        self._loop.turn()
        return time.thread_time() - started_s


def make_loop(model: LoadedModel, folder: Path) -> MeasuredLoop:
    """Return a loop with every part real but camera and disk; every arm is on."""
    folder.mkdir(parents=True, exist_ok=True)
    ledger, live, camera = Ledger(), LiveModel(), ToldCamera()
    live.replace(model)
    report = DeviceReport(folder / "updates.json", agent_version="bench")
    keeper = Keeper(
        NoDisk(ledger),
        ledger,
        report,
        device_id="bench",
        boot_id=_BOOT,
        jpeg_quality=95,
        max_pixels=25_000_000,
        max_queued=_MAX_QUEUED,
    )
    parts = CaptureParts(
        live=live,
        keeper=keeper,
        ring=FrameRing(32 * 1024 * 1024),
        predictions=PredictionLog(4096),
        ledger=ledger,
        report=report,
        boot_id=_BOOT,
    )
    novelty = NoveltyMemory(folder / "novelty.json")
    loop = CaptureLoop(
        WatchedCamera(camera),
        parts,
        policy=CapturePolicy(BUSY, np.random.default_rng(0), novelty),
        rng=np.random.default_rng(0),
        poll_interval_s=0.02,
    )
    return MeasuredLoop(loop, camera)
