"""What the heartbeat says beyond the counters: versions, errors, and the newest steps of the updater."""

from __future__ import annotations

import logging
import threading
from datetime import datetime
from pathlib import Path

from pydantic import Field

from curate.contracts.document import Document
from curate.contracts.telemetry import DeviceCounters, ReportedState, UpdateEvent
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
        self._updates = _load_updates(path)
        self._release_id: str | None = None
        self._assignment_version: int | None = None
        self._policy_version: str | None = None
        self._errors: dict[str, int] = {}

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

    def record_update(self, event: UpdateEvent) -> None:
        """Keep the event among the newest 20; a disk that refuses is logged and never raises."""
        with self._lock:
            self._updates = [*self._updates, event][-MAX_UPDATES:]
            try:
                persist_bytes(self._path, _Updates(updates=self._updates).to_bytes())
            except OSError as exc:
                log.warning("update events were not saved: %s", exc)
                self._errors["OSError"] = self._errors.get("OSError", 0) + 1

    def state(
        self, *, device_id: str, boot_id: str, now: datetime, counters: DeviceCounters, quarantined: int
    ) -> ReportedState:
        """Return the heartbeat of this moment."""
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
            )


def _load_updates(path: Path) -> list[UpdateEvent]:
    try:
        return list(_Updates.from_bytes(path.read_bytes()).updates)
    except FileNotFoundError:
        return []
    except (OSError, ContractError) as exc:
        log.warning("update events cannot be read and start empty: %s", exc)
        return []
