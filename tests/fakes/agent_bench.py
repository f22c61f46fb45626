"""The capture side of an agent on a scripted camera and a spool in memory, without threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from curate.contracts.assignment import CapturePolicySpec
from curate.contracts.capture import CaptureRecord
from curate.contracts.device_settings import SceneGateSpec
from curate.contracts.feedback import Feedback
from curate.errors import AgentError
from edge_agent.cameras.base import Frame, Skipped, encode_jpeg
from edge_agent.capture.feedback_intake import FeedbackIntake
from edge_agent.capture.frame_ring import FrameRing, PredictionLog
from edge_agent.capture.keeper import Keeper, Privacy
from edge_agent.capture.loop import CaptureLoop, CaptureParts
from edge_agent.capture.novelty import NoveltyMemory
from edge_agent.capture.policy import CapturePolicy
from edge_agent.ledger import Ledger, Totals
from edge_agent.models.inference import LiveModel, LoadedModel
from edge_agent.report import DeviceReport
from edge_agent.spool.files import Receipt

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
KEEP_ALL = CapturePolicySpec(version="all", random_probability=1.0, uncertain_budget_fraction=0.0)
KEEP_NONE = CapturePolicySpec(version="none", random_probability=1e-12, uncertain_budget_fraction=0.0)


class ScriptedCamera:
    """Plays what it is given."""

    idle_s = 0.0

    def __init__(self, camera_id: str = "front") -> None:
        self.camera_id = camera_id
        self.events: deque[Frame | Skipped | Exception] = deque()
        self.next_index = 0

    def poll(self) -> Frame | Skipped | None:
        if not self.events:
            return None
        event = self.events.popleft()
        if isinstance(event, Exception):
            raise event
        return event

    def close(self) -> None:
        """Hold nothing."""

    def join(self, timeout_s: float) -> None:
        """Nothing goes on."""

    def add_frames(self, count: int, value: int = 90) -> None:
        for _ in range(count):
            self.add_image(np.full((32, 32, 3), value, np.uint8))

    def add_image(self, image: NDArray[np.uint8]) -> None:
        encoded = encode_jpeg(image, quality=90)
        self.events.append(Frame(self.camera_id, self.next_index, image, NOW, float(self.next_index), encoded))
        self.next_index += 1


@dataclass
class MemorySpool:
    """A sink that counts like the spool and refuses when told to."""

    ledger: Ledger
    captures: list[tuple[CaptureRecord, bytes]] = field(default_factory=list)
    feedback: list[Feedback] = field(default_factory=list)
    refuse: bool = False
    refuse_captures: bool = False

    def put(self, draft: CaptureRecord, jpeg: bytes) -> bool:
        if self.refuse or self.refuse_captures:
            self.ledger.add(Totals(selected=1, dropped={"spool_full": 1}))
            return False
        self.ledger.add(Totals(selected=1, spooled=1))
        self.captures.append((draft, jpeg))
        return True

    def put_all(self, captures: Sequence[tuple[CaptureRecord, bytes]]) -> list[bool]:
        return [self.put(*capture) for capture in captures]

    def put_feedback(self, feedback: Feedback) -> None:
        if self.refuse:
            raise AgentError("the disk is full")
        self.feedback.append(feedback)

    def find_receipt(self, feedback_id: str) -> Receipt | None:
        found = [feedback for feedback in self.feedback if feedback.feedback_id == feedback_id]
        return Receipt.of(found[0]) if found else None

    def find_image(self, prediction_id: str) -> bytes | None:
        found = [jpeg for record, jpeg in self.captures if record.prediction.prediction_id == prediction_id]
        return found[0] if found else None

    def is_captured(self, prediction_id: str) -> bool:
        return any(record.prediction.prediction_id == prediction_id for record, _ in self.captures)


class Bench:
    """The capture side of an agent without threads."""

    def __init__(
        self,
        folder: Path,
        spec: CapturePolicySpec = KEEP_NONE,
        *,
        max_queued: int = 8,
        max_predictions: int = 2000,
        ring_bytes: int = 10_000_000,
        privacy: Privacy | None = None,
        gate: SceneGateSpec | None = None,
    ) -> None:
        self.gate_spec = gate or SceneGateSpec()
        self.novelty = NoveltyMemory(folder / "novelty.json")
        self.camera = ScriptedCamera()
        self.ledger = Ledger()
        self.report = DeviceReport(folder / "updates.json", agent_version="test")
        self.spool = MemorySpool(self.ledger)
        self.live = LiveModel()
        self.ring = FrameRing(ring_bytes)
        self.predictions = PredictionLog(max_predictions)
        self.now_s = 0.0
        self.keeper = Keeper(
            self.spool,
            self.ledger,
            self.report,
            device_id="cam-1",
            boot_id="boot",
            jpeg_quality=95,
            max_pixels=10_000,
            max_queued=max_queued,
            privacy=privacy,
        )
        self.parts = CaptureParts(
            live=self.live,
            keeper=self.keeper,
            ring=self.ring,
            predictions=self.predictions,
            ledger=self.ledger,
            report=self.report,
            boot_id="boot",
            gate_spec=lambda: self.gate_spec,
            monotonic=lambda: self.now_s,
            wall_clock=lambda: NOW,
        )
        self.loop = self.join(self.camera, spec)
        self.intake = FeedbackIntake(self.spool, self.keeper, self.ring, self.predictions, wall_clock=lambda: NOW)

    @classmethod
    def answering(cls, folder: Path, model: LoadedModel, *, frames: int = 0) -> Bench:
        """Return a bench with a model that has answered so many frames."""
        made = cls(folder)
        made.live.replace(model)
        made.camera.add_frames(frames)
        made.run()
        return made

    def join(self, camera: ScriptedCamera, spec: CapturePolicySpec) -> CaptureLoop:
        """Return the loop of one more camera of this device."""
        policy = CapturePolicy(spec, np.random.default_rng(0), self.novelty)
        return CaptureLoop(camera, self.parts, policy=policy, rng=np.random.default_rng(1), poll_interval_s=0.001)

    def run(self) -> None:
        while self.loop.turn():
            pass

    def store(self, count: int) -> None:
        """Store what is queued, at least so many."""
        before = self.keeper.queued
        while before - self.keeper.queued < count:
            assert self.keeper.turn()
