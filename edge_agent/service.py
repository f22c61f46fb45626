"""One device's agent, wired together: every part is made here, started here and stopped here."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import numpy as np

from curate.contracts.ids import BootId, DeviceId
from curate.errors import ConfigError, Error
from curate.storage.ports import BlobStore
from edge_agent.backoff import BackoffPolicy
from edge_agent.cameras.registry import open_camera
from edge_agent.capture.feedback_intake import FeedbackIntake
from edge_agent.capture.frame_finder import FrameFinder
from edge_agent.capture.frame_ring import FrameRing, PredictionLog
from edge_agent.capture.keeper import Keeper
from edge_agent.capture.loop import CaptureLoop
from edge_agent.capture.policy import CapturePolicy
from edge_agent.config.agent import AgentConfig
from edge_agent.interfaces.api import create_app
from edge_agent.interfaces.api_server import ApiServer
from edge_agent.ledger import Ledger
from edge_agent.models.inference import LiveModel
from edge_agent.models.repository import SignedRepository
from edge_agent.models.slots import Slots
from edge_agent.models.updater import Updater
from edge_agent.report import DeviceReport
from edge_agent.settings import LiveSettings
from edge_agent.spool.spool import Spool, SpoolLimits
from edge_agent.state_lock import exclusive_state
from edge_agent.switches import Switches
from edge_agent.sync.bucket import open_store
from edge_agent.sync.loop import SyncLoop, SyncPolicy

log = logging.getLogger(__name__)

STOP_TIMEOUT_S: Final = 2.0
"""A thread that waits for the network longer than this is left behind; killing the agent is safe at any time."""


def run_service(config: AgentConfig, stop: threading.Event) -> None:
    """Run one agent until `stop` is set.

    Raises:
        Error: it cannot start, and why; once started it does not fail.
    """
    with exclusive_state(config.state_dir):
        service = Service(config)
        service.start()
        try:
            stop.wait()
        finally:
            service.stop()


class Service:
    """The parts of one agent. The state folder must be held by this process."""

    def __init__(self, config: AgentConfig) -> None:
        """Recover what the last run left, restore its model, and bind the API; nothing moves yet.

        Raises:
            Error: a part cannot start.
        """
        self._config = config
        self._boot_id = BootId(uuid.uuid4().hex[:12])
        self._started_at = datetime.now(UTC)
        self._stop = threading.Event()
        self._store = open_store(config.bucket)
        self._ledger = Ledger()
        self._settings = LiveSettings(config.effective_settings())
        self._switches = Switches(config.state_dir / "switches.json")
        self._report = DeviceReport(config.state_dir / "updates.json", agent_version=agent_version())
        self._spool = self._open_spool()
        self._live = LiveModel()
        self._ring = FrameRing(config.ring.max_bytes)
        self._predictions = PredictionLog(config.api.recent_predictions)
        self._keeper = self._make_keeper()
        self._camera = open_camera(config.camera)
        self._capture = self._make_capture_loop()
        self._updater = self._make_updater(self._store)
        self._updater.restore(self._started_at)
        self._sync = SyncLoop(self._spool, self._store, self._report, self._sync_policy())
        self._api = self._make_api()
        loops: dict[str, Callable[[threading.Event], None]] = {
            "capture": self._capture.run,
            "keeper": self._keeper.run,
            "sync": self._sync.run,
            "update": self._updater.run,
        }
        self._threads = [
            threading.Thread(target=run, args=(self._stop,), name=name, daemon=True) for name, run in loops.items()
        ]

    @property
    def api_port(self) -> int:
        """The port the API listens on."""
        return self._api.port

    def start(self) -> None:
        """Let every loop and the API run."""
        for thread in self._threads:
            thread.start()
        self._api.start()
        model = self._live.current()
        log.info(
            "agent started",
            extra={
                "device_id": self._config.device_id,
                "boot_id": self._boot_id,
                "port": self._api.port,
                "release_id": model.release_id if model else None,
            },
        )

    def stop(self) -> None:
        """Stop within about `STOP_TIMEOUT_S` and make the last counters durable."""
        self._stop.set()
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        self._api.stop(STOP_TIMEOUT_S)
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        self._camera.close()
        with suppress(Error):
            self._spool.persist()
        left = [thread.name for thread in self._threads if thread.is_alive()]
        log.info("agent stopped", extra={"left_behind": left})

    def status(self) -> Mapping[str, Any]:
        """Return what `GET /v1/status` answers, as JSON values."""
        model = self._live.current()
        state = self._report.state(
            device_id=DeviceId(self._config.device_id),
            boot_id=self._boot_id,
            now=datetime.now(UTC),
            counters=self._ledger.snapshot(),
            quarantined=self._spool.quarantined,
        ).model_dump(mode="json")
        return state | {
            "camera_id": self._config.camera.camera_id,
            "started_at": self._started_at.isoformat(),
            "release": {"release_id": model.release_id, "number": model.number} if model else None,
            "policy": self._capture.policy_spec.model_dump(mode="json"),
            "spool": {
                "held_captures": self._spool.held_captures,
                "max_bytes": self._config.spool.max_bytes,
            },
            "ring": {"frames": len(self._ring), "used_bytes": self._ring.used_bytes},
            "newest_cursor": self._predictions.newest_cursor,
        }

    def _open_spool(self) -> Spool:
        spool = self._config.spool
        limits = SpoolLimits(
            max_bytes=spool.max_bytes,
            min_free_bytes=spool.min_free_bytes,
            max_feedback=spool.max_feedback,
            batch_max_captures=spool.batch_max_captures,
            batch_max_age_s=spool.batch_max_age_s,
        )
        return Spool.open(
            self._config.state_dir / "spool",
            limits,
            self._ledger,
            device_id=self._config.device_id,
            boot_id=self._boot_id,
        )

    def _make_keeper(self) -> Keeper:
        return Keeper(
            self._spool,
            self._ledger,
            self._report,
            device_id=self._config.device_id,
            boot_id=self._boot_id,
            jpeg_quality=self._config.capture.jpeg_quality,
            max_pixels=self._config.camera.max_image_pixels,
            max_queued=self._config.capture.max_queued,
        )

    def _make_capture_loop(self) -> CaptureLoop:
        spec = self._config.capture.policy
        # Seeded by the operating system: no two boots draw the same coins.
        policy = CapturePolicy(spec, np.random.default_rng())
        self._report.set_assignment(None, spec.version)
        return CaptureLoop(
            camera=self._camera,
            live=self._live,
            policy=policy,
            keeper=self._keeper,
            ring=self._ring,
            predictions=self._predictions,
            ledger=self._ledger,
            report=self._report,
            boot_id=self._boot_id,
            poll_interval_s=self._config.camera.poll_interval_s,
        )

    def _make_updater(self, store: BlobStore) -> Updater:
        tuf_folder = self._config.state_dir / "tuf"
        slots_folder = self._config.state_dir / "slots"
        root_file = self._config.trust.root_file
        try:
            trusted_root = root_file.read_bytes()
            tuf_folder.mkdir(parents=True, exist_ok=True)
            slots_folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise ConfigError(
                f"cannot use {exc.filename}: {exc.strerror}",
                hint="trust.root_file is the file that starting the release repository returned.",
            ) from exc
        return Updater(
            device_id=self._config.device_id,
            store=store,
            repository=SignedRepository(store, tuf_folder, trusted_root),
            slots=Slots(slots_folder),
            state_file=self._config.state_dir / "updater.json",
            live=self._live,
            policy_sink=self._capture.replace_policy,
            settings_sink=self._settings.follow,
            report=self._report,
            threads=self._config.inference.threads,
            variant=self._config.inference.variant,
            interval_s=self._config.update.interval_s,
            max_backoff_s=self._config.sync.max_backoff_s,
        )

    def _sync_policy(self) -> SyncPolicy:
        sync = self._config.sync
        return SyncPolicy(
            interval_s=sync.interval_s,
            persist_s=sync.persist_interval_s,
            heartbeat_s=sync.heartbeat_interval_s,
            backoff=BackoffPolicy(cap_s=sync.max_backoff_s),
        )

    def _make_api(self) -> ApiServer:
        api = self._config.api
        app = create_app(
            boot_id=self._boot_id,
            status=self.status,
            predictions=self._predictions,
            intake=FeedbackIntake(self._spool, self._keeper, self._ring, self._predictions),
            frames=FrameFinder(self._ring, self._keeper, self._spool),
            host=api.host,
            max_body_bytes=api.max_body_bytes,
        )
        return ApiServer(app, host=api.host, port=api.port, address_file=self._config.state_dir / "api.json")


def agent_version() -> str:
    """Return the installed version of this package."""
    try:
        return version("edge-gleaner")
    except PackageNotFoundError:
        return "unknown"
