"""One device's agent, wired together: every part is made here, started here and stopped here."""

from __future__ import annotations

import gc
import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import numpy as np

from curate.contracts.assignment import CapturePolicySpec
from curate.contracts.ids import BootId, DeviceId
from curate.contracts.telemetry import SceneGateState, UpdateEvent
from curate.errors import Error
from edge_agent.backoff import BackoffPolicy
from edge_agent.cameras.base import Camera
from edge_agent.cameras.registry import close_cameras, open_camera
from edge_agent.cameras.watched import WatchedCamera
from edge_agent.capture.explain import explain_prediction
from edge_agent.capture.feedback_intake import FeedbackIntake
from edge_agent.capture.feedback_limits import FeedbackLimits
from edge_agent.capture.frame_finder import FrameFinder
from edge_agent.capture.frame_ring import FrameRing, PredictionLog
from edge_agent.capture.keeper import Keeper
from edge_agent.capture.loop import CaptureLoop, CaptureParts, total_gate
from edge_agent.capture.novelty import NoveltyMemory
from edge_agent.capture.policy import CapturePolicy
from edge_agent.clock import Clock
from edge_agent.config.agent import AgentConfig
from edge_agent.config.cameras import CameraConfig
from edge_agent.durable import make_reserve
from edge_agent.interfaces.agent_view import AgentView, assess_health
from edge_agent.interfaces.captures import CaptureTracker
from edge_agent.interfaces.health import Health
from edge_agent.interfaces.inference_service import InferenceService
from edge_agent.interfaces.wiring import Interfaces
from edge_agent.latency import LatencyHistogram
from edge_agent.ledger import Ledger
from edge_agent.loops import keep_running
from edge_agent.memory import limit_arenas
from edge_agent.models.assembly import open_updater
from edge_agent.models.inference import LiveModel
from edge_agent.privacy import PrivacyGuard, load_redactor
from edge_agent.report import DeviceReport
from edge_agent.settings import LiveSettings
from edge_agent.spool.limits import SpoolLimits
from edge_agent.spool.spool import Spool
from edge_agent.state_lock import exclusive_state
from edge_agent.switches import Switches
from edge_agent.sync.bucket import open_store
from edge_agent.sync.loop import SyncLoop, SyncPolicy
from edge_agent.systemd import SystemdNotifier, Watchdog

log = logging.getLogger(__name__)

STOP_TIMEOUT_S: Final = 2.0
"""A thread that waits for the network longer than this is left behind; killing the agent is safe at any time."""
CLOSE_TIMEOUT_S: Final = 1.0
"""The same for the cameras' own threads, all of them together."""


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
        limit_arenas()
        self._config = config
        self._boot_id = BootId(uuid.uuid4().hex[:12])
        self._clock = Clock()
        self._started_at = self._clock.now()
        self._started_s = time.monotonic()
        self._stop = threading.Event()
        self._systemd = SystemdNotifier()
        self._store = open_store(config.bucket, self._clock)
        self._ledger = Ledger()
        self._settings = LiveSettings(config.effective_settings(), is_complete=False)
        self._switches = Switches(config.state_dir / "switches.json")
        self._privacy = self._make_privacy()
        self._report = DeviceReport(config.state_dir / "updates.json", agent_version=agent_version())
        self._spool = self._open_spool()
        self._live = LiveModel()
        self._latencies = LatencyHistogram()
        self._ring = FrameRing(config.ring.max_bytes)
        self._predictions = PredictionLog(config.api.recent_predictions)
        self._keeper = self._make_keeper()
        self._novelty = NoveltyMemory(config.state_dir / "novelty.json", on_mismatch=self._tell_mismatch)
        self._parts = self._make_parts()
        self._report.set_assignment(None, config.capture.policy.version)
        self._cameras = tuple(WatchedCamera(open_camera(camera)) for camera in config.all_cameras)
        self._captures = tuple(map(self._make_capture_loop, config.all_cameras, self._cameras))
        self._report.follow_gate(self._describe_gate)
        self._updater = open_updater(
            config,
            self._store,
            live=self._live,
            report=self._report,
            policy_sink=self._replace_policy,
            settings_sink=self._settings.follow,
            sketch_sink=self._novelty.follow_fleet,
            is_metered=lambda: self._switches.state().metered,
            wall_clock=self._clock.now,
        )
        self._updater.restore(self._started_at)
        self._sync = self._make_sync_loop()
        self._interfaces = self._make_interfaces()
        self._threads = self._make_threads()

    def _make_threads(self) -> list[threading.Thread]:
        """Return a thread for each loop; none runs yet."""
        loops: dict[str, Callable[[threading.Event], None]] = {
            "keeper": self._keeper.run,
            "novelty": self._novelty.run,
            "sync": self._sync.run,
            "update": self._updater.run,
            "watchdog": Watchdog(self._systemd, find_stuck=self._find_stuck, describe=self._describe).run,
        }
        loops |= self._interfaces.loops
        for camera, capture in zip(self._cameras, self._captures, strict=True):
            loops[f"capture {camera.camera_id}"] = capture.run
        return [
            threading.Thread(
                target=partial(keep_running, name, run, self._stop, count_error=self._report.count_error),
                name=name,
                daemon=True,
            )
            for name, run in loops.items()
        ]

    @property
    def api_port(self) -> int:
        """The port the API listens on."""
        return self._interfaces.api_port

    @property
    def live(self) -> LiveModel:
        """Holds the model that answers now."""
        return self._live

    def start(self) -> None:
        """Let every loop and the API run."""
        # What was made so far stays as long as the process: no collection need look through it again.
        gc.collect()
        gc.freeze()
        for thread in self._threads:
            thread.start()
        self._interfaces.start()
        self._systemd.notify(READY="1", STATUS=self._describe())
        model = self._live.current()
        log.info(
            "agent started",
            extra={
                "device_id": self._config.device_id,
                "boot_id": self._boot_id,
                "port": self._interfaces.api_port,
                "release_id": model.release_id if model else None,
            },
        )

    def stop(self) -> None:
        """Stop within about `STOP_TIMEOUT_S` and make the last counters durable."""
        self._stop.set()
        self._keeper.wake()
        self._systemd.notify(STOPPING="1")
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        self._interfaces.stop(STOP_TIMEOUT_S)
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        close_cameras(self._cameras, timeout_s=CLOSE_TIMEOUT_S)
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
            now=self._clock.now(),
            counters=self._ledger.snapshot(),
            quarantined=self._spool.quarantined,
        ).model_dump(mode="json")
        link = self._sync.link()
        return state | {
            "link": {"up": link.is_up, "last_upload_age_s": link.last_upload_age_s},
            "cameras": [camera.describe() for camera in self._cameras],
            "started_at": self._started_at.isoformat(),
            "release": {"release_id": model.release_id, "number": model.number} if model else None,
            "policy": self._captures[0].policy_spec.model_dump(mode="json"),
            "spool": {
                "held_captures": self._spool.held_captures,
                "max_bytes": self._config.spool.max_bytes,
            },
            "queue": {"captures": self._keeper.queued, "max_captures": self._config.capture.max_queued},
            "scene_gate": self._total_gate().model_dump(),
            "privacy": {
                "may_keep": self._privacy.may_keep(),
                "waits_for_time": self._privacy.waits_for_time,
                "waits_for_assignment": self._privacy.waits_for_assignment,
            },
            "ring": {"frames": len(self._ring), "used_bytes": self._ring.used_bytes},
            "newest_cursor": self._predictions.newest_cursor,
            "grpc_port": self._interfaces.grpc_port,
        }

    def _find_stuck(self, limit_s: float) -> list[str]:
        """Name the cameras whose thread has not asked for a frame for so long."""
        return [camera.camera_id for camera in self._cameras if camera.unpolled_s > limit_s]

    def _describe(self) -> str:
        model = self._live.current()
        cameras = ", ".join(f"{camera.camera_id} {camera.state.value}" for camera in self._cameras)
        return f"{cameras}; {model.release_id if model else 'no model'}; {self._spool.held_captures} captures to send"

    def _replace_policy(self, spec: CapturePolicySpec) -> None:
        """Let every camera follow it.

        Raises:
            PolicyRefusedError: it cannot be followed, by none of them.
        """
        for capture in self._captures:
            capture.replace_policy(spec)

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
            clock=self._clock,
            retention=lambda: self._settings.current().retention,
        )

    def _make_sync_loop(self) -> SyncLoop:
        spool = self._config.spool
        keep_reserve = partial(
            make_reserve, self._config.state_dir, spool.reserve_bytes, min_free_bytes=spool.min_free_bytes
        )
        keep_reserve()
        return SyncLoop(
            self._spool,
            self._store,
            self._report,
            self._sync_policy(),
            bandwidth=lambda: self._settings.current().bandwidth,
            is_metered=lambda: self._switches.state().metered,
            keep_reserve=keep_reserve,
            clock=self._clock,
        )

    def _make_keeper(self) -> Keeper:
        return Keeper(
            self._spool,
            self._ledger,
            self._report,
            device_id=self._config.device_id,
            boot_id=self._boot_id,
            jpeg_quality=self._config.capture.jpeg_quality,
            max_pixels=self._max_pixels(),
            max_queued=self._config.capture.max_queued,
            privacy=self._privacy,
        )

    def _make_privacy(self) -> PrivacyGuard:
        path = self._config.privacy.redactor
        return PrivacyGuard(
            self._settings,
            self._switches,
            redactor=None if path is None else load_redactor(path),
            jpeg_quality=self._config.capture.jpeg_quality,
            max_pixels=self._max_pixels(),
            is_time_known=self._clock.is_known,
            wall_clock=self._clock.now,
        )

    def _max_pixels(self) -> int:
        return max(camera.max_image_pixels for camera in self._config.all_cameras)

    def _make_parts(self) -> CaptureParts:
        return CaptureParts(
            live=self._live,
            keeper=self._keeper,
            ring=self._ring,
            predictions=self._predictions,
            ledger=self._ledger,
            report=self._report,
            boot_id=self._boot_id,
            latencies=self._latencies,
            wall_clock=self._clock.now,
            gate_spec=lambda: self._settings.current().scene_gate,
        )

    def _make_capture_loop(self, config: CameraConfig, camera: Camera) -> CaptureLoop:
        # Seeded by the operating system: no two boots draw the same coins.
        return CaptureLoop(
            camera,
            self._parts,
            policy=CapturePolicy(self._config.capture.policy, np.random.default_rng(), self._novelty),
            rng=np.random.default_rng(),
            poll_interval_s=config.poll_interval_s,
        )

    def _make_intake(self) -> FeedbackIntake:
        return FeedbackIntake(
            self._spool,
            self._keeper,
            self._ring,
            self._predictions,
            limits=FeedbackLimits(self._config.feedback, time.monotonic),
            novelty=self._novelty,
            count=self._report.count_error,
            wall_clock=self._clock.now,
        )

    def _tell_mismatch(self, detail: str) -> None:
        now = self._clock.now()
        self._report.note_update(UpdateEvent(at=now, outcome="fleet_sketch_ignored", detail=detail))

    def _describe_gate(self) -> SceneGateState | None:
        if not self._settings.current().scene_gate.enabled:
            return None
        return self._total_gate()

    def _total_gate(self) -> SceneGateState:
        return total_gate(capture.gate_counts for capture in self._captures)

    def _sync_policy(self) -> SyncPolicy:
        sync = self._config.sync
        return SyncPolicy(
            interval_s=sync.interval_s,
            persist_s=sync.persist_interval_s,
            heartbeat_s=sync.heartbeat_interval_s,
            backoff=BackoffPolicy(cap_s=sync.max_backoff_s),
        )

    def _make_interfaces(self) -> Interfaces:
        api = self._config.api
        view = AgentView(
            device_id=self._config.device_id,
            boot_id=self._boot_id,
            camera_ids=tuple(camera.camera_id for camera in self._cameras),
            status=self.status,
            counters=self._ledger.snapshot,
            latencies=self._latencies.snapshot,
            predictions=self._predictions,
            intake=self._make_intake(),
            frames=FrameFinder(self._ring, self._keeper, self._spool, self._privacy.redact_encoded),
            explain=explain_prediction,
            captures=CaptureTracker(self._keeper, self._spool, self._predictions),
            switches=self._switches,
            health=self._assess_health,
        )
        service = InferenceService(self._live, agent_version=agent_version(), max_pixels=api.max_posted_pixels)
        return Interfaces(self._config, view, service)

    def _assess_health(self) -> Health:
        return assess_health(
            self.status(),
            self._predictions,
            running_s=time.monotonic() - self._started_s,
            max_silence_s=self._config.api.max_silence_s,
        )


def agent_version() -> str:
    """Return the installed version of this package."""
    try:
        return version("edge-gleaner")
    except PackageNotFoundError:
        return "unknown"
