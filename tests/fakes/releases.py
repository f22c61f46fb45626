"""Releases of the tiny model, a publisher with a bucket, and a device that updates from it."""

from __future__ import annotations

import contextlib
import io
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curate.contracts.assignment import Assignment, CapturePolicySpec
from curate.contracts.device_settings import DeviceSettings
from curate.contracts.ids import BootId, DeviceId
from curate.contracts.release import ModelSpec, ReleaseManifest
from curate.contracts.telemetry import STEP_OUTCOMES, DeviceCounters, ReportedState, UpdateEvent
from curate.errors import SelfCheckError
from curate.release.assignments import assign
from curate.release.manifest import ReleaseDraft, build_manifest
from curate.release.publish import publish_release
from curate.release.repository import init_repository
from curate.storage.local import LocalBlobStore
from curate.storage.ports import BlobStore
from edge_agent.models.inference import LiveModel
from edge_agent.models.installer import UpdateLimits
from edge_agent.models.repository import SignedRepository
from edge_agent.models.slots import FactoryModel, Slots
from edge_agent.models.smoke import RunSettings, examine
from edge_agent.models.smoke_process import Smoke
from edge_agent.models.trial_watch import TrialRules
from edge_agent.models.updater import Updater
from edge_agent.report import DeviceReport
from tests.fakes.recording_store import RecordingStore
from tests.fakes.tiny_model import CLASSES, EMBEDDING_DIM, tiny_model_bytes

if TYPE_CHECKING:
    from tests.fakes.treacherous_models import Treason

SIZE = 8
SPEC = ModelSpec(kind="classification", class_names=CLASSES, height=SIZE, width=SIZE, embedding_dim=EMBEDDING_DIM)
DEVICE = "cam-1"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
NO_TRIAL = UpdateLimits(trial=TrialRules(window_s=0.0, window_frames=0))
"""A release that passed its check is kept at once."""


def answer(images: NDArray[np.uint8], bias: float = 0.0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Compute what the tiny model answers, in numpy: probabilities [N, 3] and embedding [N, 3]."""
    mean = images.reshape(len(images), -1).astype(np.float64).mean(axis=1, keepdims=True) / 255.0
    embedding = mean @ np.array([[-4.0, 0.0, 4.0]]) + np.array([[2.0 + bias, 0.5, -2.0 - bias]])
    powers = np.exp(embedding - embedding.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32), embedding.astype(np.float32)


def golden_bytes(bias: float = 0.0, **replaced: NDArray[Any]) -> bytes:
    """Return a golden file of three frames; `replaced` puts other arrays in."""
    levels = np.array([10, 128, 245], np.uint8)
    images = np.broadcast_to(levels[:, None, None, None], (3, SIZE, SIZE, 3)).copy()
    probabilities, embedding = answer(images, bias)
    arrays = {"images": images, "probabilities": probabilities, "embedding": embedding, "tolerance": np.array(0.01)}
    file = io.BytesIO()
    np.savez(file, **{**arrays, **replaced})  # type: ignore[arg-type]
    return file.getvalue()


def release_files(bias: float = 0.0, golden: bytes | None = None) -> dict[str, bytes]:
    """Return the files of a release whose answers depend on `bias`."""
    model = tiny_model_bytes(SIZE, bias=bias)
    return {"int8": model, "float": model, "golden": golden or golden_bytes(bias)}


def draft(release_id: str) -> ReleaseDraft:
    """Return what a release says of itself."""
    return ReleaseDraft(release_id=release_id, model=SPEC, dataset_version="d-1", metrics={"accuracy": 0.75})


@dataclass
class Publisher:
    """The cloud side: a bucket, keys, and the trusted root for devices."""

    folder: Path
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    bucket: BlobStore | None = None

    def __post_init__(self) -> None:
        self.keys = self.folder / "keys"
        self.store = self.bucket or LocalBlobStore(self.folder / "bucket")
        self.root = init_repository(self.store, self.keys, self.now)

    def publish(
        self, release_id: str, bias: float = 0.0, golden: bytes | None = None, *, treason: Treason | None = None
    ) -> ReleaseManifest:
        """Publish a release of the tiny model, or of one that turns bad on bright frames."""
        files = release_files(bias, golden)
        if treason is not None:
            from tests.fakes.treacherous_models import treacherous_model  # needs `onnx`, which a device has not

            files["int8"] = treacherous_model(SIZE, treason, bias=bias).SerializeToString()
        return publish_release(self.store, self.keys, draft(release_id), files, self.now)

    def assign(
        self,
        release_id: str | None,
        *,
        policy: str = "default",
        downgrade: bool = False,
        settings: DeviceSettings | None = None,
    ) -> Assignment:
        """Assign a release to the device."""
        spec = CapturePolicySpec(version=policy)
        return assign(
            self.store,
            self.keys,
            DEVICE,
            release_id,
            spec,
            now=self.now,
            settings=settings,
            allow_downgrade=downgrade,
        )


class Device:
    """The camera side: everything an updater needs under one folder. `restart` is a new process on the same disk.

    The check of a release runs in this process unless `smoke` says otherwise: starting one costs most of a second.
    """

    def __init__(
        self,
        folder: Path,
        publisher: Publisher,
        limits: UpdateLimits = NO_TRIAL,
        *,
        smoke: Smoke = examine,
        running: RunSettings | None = None,
        factory: Path | None = None,
    ) -> None:
        self.folder = folder
        self.store = RecordingStore(publisher.store)
        self._root = publisher.root
        self._limits = limits
        self.smoke = smoke
        self._running = running
        self._factory = FactoryModel(factory, manifest_sha256=None, variant="int8")
        self.monotonic_s = 1000.0
        self.now = self.clock = datetime.now(UTC)
        self.is_metered = False
        self.restart()

    def restart(self) -> None:
        """Start again from the disk and restore."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.live = LiveModel()
        self.policies: list[CapturePolicySpec] = []
        self.settings: list[DeviceSettings] = []
        self.report = DeviceReport(self.folder / "updates.json", agent_version="0")
        self.slots = Slots(self.folder / "slots")
        self.updater = Updater(
            device_id=DEVICE,
            store=self.store,
            repository=SignedRepository(self.store, self.folder / "tuf", self._root, now=lambda: self.clock),
            slots=self.slots,
            state_file=self.folder / "updater.json",
            live=self.live,
            policy_sink=self.policies.append,
            settings_sink=self.settings.append,
            report=self.report,
            factory=self._factory,
            is_metered=lambda: self.is_metered,
            running=self._running,
            smoke=self.smoke,
            monotonic=lambda: self.monotonic_s,
            limits=self._limits,
            interval_s=0.01,
            max_backoff_s=0.05,
            rng=random.Random(0),
        )
        self.updater.restore(self.now)

    def turn(self, *, after: timedelta = timedelta(days=1)) -> UpdateEvent | None:
        """Let time pass, by default more than any wait, and look at the assignment once."""
        self.now += after
        return self.updater.turn(self.now)

    @property
    def outcomes(self) -> list[str]:
        """What the heartbeat tells of updates, oldest first."""
        return [event.outcome for event in self.heartbeat().updates if event.outcome not in STEP_OUTCOMES]

    @property
    def steps(self) -> list[str]:
        """The same with every phase on the way."""
        return [event.outcome for event in self.heartbeat().updates]

    @property
    def errors(self) -> dict[str, int]:
        """How often which error was counted since the restart."""
        return self.heartbeat().errors

    def heartbeat(self) -> ReportedState:
        """Return what the device tells the cloud."""
        return self.report.state(
            device_id=DeviceId(DEVICE),
            boot_id=BootId("boot"),
            now=self.now,
            counters=DeviceCounters(),
            quarantined=0,
        )

    @property
    def release_id(self) -> str | None:
        """The release that answers frames now; proved by asking it."""
        model = self.live.current()
        if model is None:
            return None
        frame = np.full((SIZE, SIZE, 3), 200, np.uint8)
        assert np.isfinite(model.infer(frame).outputs["probabilities"]).all()
        return model.release_id

    def answer_frames(self, count: int, *, value: int | None = None, seconds_each: float = 0.1) -> None:
        """Let frames be answered, as the capture loop does: of one grey level, or of levels that clearly differ. One
        without an answer is a frame less. Time passes."""
        for index in range(count):
            model = self.live.current()
            level = (index * 37) % 250 if value is None else value
            if model is not None:
                with contextlib.suppress(SelfCheckError):
                    model.infer(np.full((SIZE, SIZE, 3), level, np.uint8))
            self.monotonic_s += seconds_each


def write_factory_model(folder: Path, release_id: str = "r-factory", bias: float = 0.0) -> Path:
    """Write the model a device is made with; its number is 1."""
    folder.mkdir(parents=True)
    files = release_files(bias)
    manifest = build_manifest(draft(release_id), files, number=1, created_at=datetime(2026, 1, 1, tzinfo=UTC))
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    (folder / "model.onnx").write_bytes(files["int8"])
    (folder / "golden.npz").write_bytes(files["golden"])
    return folder
