"""What the heartbeat says beyond the counters: versions, errors, and the newest steps of the updater."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from pydantic import Field

from curate.contracts.document import Document
from curate.contracts.telemetry import (
    STEP_OUTCOMES,
    DeviceCounters,
    DeviceLimits,
    ModelState,
    ReportedState,
    SceneGateState,
    UpdateEvent,
)
from curate.errors import ContractError
from edge_agent.durable import persist_bytes

log = logging.getLogger(__name__)

MAX_UPDATES = 20


class _Updates(Document):
    updates: list[UpdateEvent] = Field(default_factory=list)


class DeviceReport:
    """Thread-safe. The update events live in one file, so a refusal is still told after a restart."""

    def __init__(self, path: Path, *, agent_version: str) -> None:
        """Read the events kept at `path`; an unreadable file is logged and starts empty."""
        self._path = path
        self._agent_version = agent_version
        self._lock = threading.Lock()
        self._file_lock = threading.Lock()
        """Held while the disk is waited for; `_lock` never is."""
        self._unsaved = False
        self._updates = _load_updates(path)
        self._save_failed = False
        self._release_id: str | None = None
        self._assignment_version: int | None = None
        self._policy_version: str | None = None
        self._errors: dict[str, int] = {}
        self._describe_model: Callable[[], ModelState] | None = None
        self._describe_limits: Callable[[], DeviceLimits] | None = None
        self._describe_gate: Callable[[], SceneGateState | None] = lambda: None

    def set_release(self, release_id: str | None) -> None:
        """Say which release answers frames now."""
        with self._lock:
            self._release_id = release_id

    def set_assignment(self, version: int | None, policy_version: str | None) -> None:
        """Say which assignment and capture policy are followed now."""
        with self._lock:
            self._assignment_version = version
            self._policy_version = policy_version

    def count_error(self, name: str) -> None:
        """Count one error since this process started."""
        with self._lock:
            self._errors[name] = self._errors.get(name, 0) + 1

    def follow_model(self, describe: Callable[[], ModelState]) -> None:
        """Ask here, from any thread, how the newest update and the model are doing."""
        self._describe_model = describe

    def follow_limits(self, describe: Callable[[], DeviceLimits]) -> None:
        """Ask here, from any thread, what holds the device back."""
        self._describe_limits = describe

    def follow_gate(self, describe: Callable[[], SceneGateState | None]) -> None:
        """Ask here, from any thread, what the scene gates did; None when they are off."""
        self._describe_gate = describe

    def record_update(self, event: UpdateEvent) -> None:
        """Keep the event among the newest 20, once; a disk that refuses is logged and never raises."""
        self.note_update(event)
        self.persist_noted()

    def note_update(self, event: UpdateEvent) -> None:
        """The same without waiting for the disk: for the threads that answer frames. `persist_noted` saves it."""
        with self._lock:
            if event not in self._updates:
                self._updates = _newest([*self._updates, event])
                self._unsaved = True

    def persist_noted(self) -> None:
        """Save the events that are not saved yet, from a thread that may wait for the disk."""
        with self._file_lock:
            with self._lock:
                unsaved, self._unsaved = self._unsaved, False
                document = _Updates(updates=self._updates) if unsaved else None
            if document is None:
                return
            try:
                persist_bytes(self._path, document.to_bytes())
            except OSError as exc:
                with self._lock:
                    self._unsaved = True
                if not self._save_failed:
                    log.warning("update events were not saved: %s", exc)
                    self.count_error("OSError")
                self._save_failed = True
                return
            self._save_failed = False

    def state(
        self, *, device_id: str, boot_id: str, now: datetime, counters: DeviceCounters, quarantined: int
    ) -> ReportedState:
        """Return the heartbeat of this moment."""
        # Before the lock: whoever is asked may take locks of its own, and may come back here.
        model_state = self._describe_model() if self._describe_model else None
        limits = self._describe_limits() if self._describe_limits else None
        scene_gate = self._describe_gate()
        with self._lock:
            return ReportedState(
                device_id=device_id,
                boot_id=boot_id,
                reported_at=now,
                agent_version=self._agent_version,
                release_id=self._release_id,
                assignment_version=self._assignment_version,
                policy_version=self._policy_version,
                counters=counters,
                quarantined=quarantined,
                updates=list(self._updates),
                errors=dict(self._errors),
                model_state=model_state,
                limits=limits,
                scene_gate=scene_gate,
            )


def _newest(updates: list[UpdateEvent]) -> list[UpdateEvent]:
    """Let the steps of updates that are over go before how they ended."""
    surplus = len(updates) - MAX_UPDATES
    if surplus <= 0:
        return updates
    steps = [at for at, event in enumerate(updates[:-1]) if event.outcome in STEP_OUTCOMES]
    others = [at for at in range(len(updates)) if at not in steps]
    gone = set([*steps, *others][:surplus])
    return [event for at, event in enumerate(updates) if at not in gone]


def _load_updates(path: Path) -> list[UpdateEvent]:
    try:
        return list(_Updates.from_bytes(path.read_bytes()).updates)
    except FileNotFoundError:
        return []
    except (OSError, ContractError) as exc:
        log.warning("update events cannot be read and start empty: %s", exc)
        return []
