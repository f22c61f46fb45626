"""What the updater remembers over restarts: the floor, the accepted assignment, how far the newest update came."""

from __future__ import annotations

import json
import logging
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from curate.contracts.assignment import Assignment
from curate.contracts.ids import Sha256
from curate.contracts.telemetry import FINE_OUTCOMES, STEP_OUTCOMES, UpdateEvent
from curate.errors import AgentError
from edge_agent.durable import make_folder, persist_bytes, seal, unseal
from edge_agent.errors import CorruptFileError
from edge_agent.models.trust import TrustFloor
from edge_agent.models.update_machine import Attempt
from edge_agent.report import DeviceReport

log = logging.getLogger(__name__)


class UpdaterState(BaseModel):
    """One file, written atomically and synced."""

    model_config = ConfigDict(frozen=True)

    floor: TrustFloor = TrustFloor()
    assignment: Assignment | None = None
    """What is followed; where its settings could not be read, those of the one before stand in it."""
    desired_sha256: Sha256 | None = None
    """Digest of the whole `desired.json` that was accepted: the same bytes need no second look."""
    attempt: Attempt = Attempt()
    settings_known: bool = True
    """False once a damaged state has lost what was assigned, until an assignment is accepted anew: it may have named
    regions that nobody may see."""
    last_event: UpdateEvent | None = None
    """Written with the phase it tells of, so that a process that dies before it is reported still reports it."""


def load_state(path: Path) -> UpdaterState:
    """Read the state; none is a new device. A damaged file starts anew, loudly: a device that waits for a person helps
    nobody, and the slots still bound what it runs. What may be kept it does not know then.

    Raises:
        AgentError: the disk refused to say; what was accepted is still there, and may be read later.
    """
    try:
        header, _ = unseal(path.read_bytes())
    except FileNotFoundError:
        return UpdaterState()
    except OSError as exc:
        raise AgentError(f"the updater's state cannot be read now: {exc}", retryable=True) from exc
    except CorruptFileError as exc:
        log.warning("the updater's state is damaged and starts anew: %s", exc)
        return UpdaterState(settings_known=False)
    try:
        return UpdaterState.model_validate_json(header)
    except ValidationError as exc:
        log.warning("parts of the updater's state cannot be read: %s", exc)
        return _salvage(header)


def _salvage(header: bytes) -> UpdaterState:
    """Keep the floor of a state that another version of the agent wrote."""
    try:
        return UpdaterState(floor=TrustFloor.model_validate(json.loads(header)["floor"]), settings_known=False)
    except (ValueError, KeyError, TypeError) as exc:
        log.warning("the updater's floor cannot be read and starts anew: %s", exc)
        return UpdaterState(settings_known=False)


def persist_state(path: Path, state: UpdaterState) -> None:
    """Write the state durably.

    Raises:
        AgentError: the disk refused.
    """
    try:
        make_folder(path.parent)
        persist_bytes(path, seal(state.model_dump_json().encode()))
    except OSError as exc:
        raise AgentError(f"the updater's state was not saved: {exc}", retryable=True) from exc


class UpdateJournal:
    """What the updater knows and tells: the durable state, and events into the heartbeat. One thread writes."""

    def __init__(self, path: Path, report: DeviceReport) -> None:
        self._path = path
        self._report = report
        self._problem: str | None = None
        self.is_known = False
        """Whether `state` is what the last process left; until then nothing can be saved over it."""
        self.state = UpdaterState()
        """The state; replaced as a whole, so that any thread may read it."""
        self.told: UpdateEvent | None = None
        """The newest event that is more than a step on the way; whoever asks for it resets it."""

    def recall(self, now: datetime) -> bool:
        """Read what the last process left, if that is not known yet; return whether it became known just now.

        A disk that refuses is told once, and may be asked again.
        """
        if self.is_known:
            return False
        try:
            self.state = load_state(self._path)
        except AgentError as exc:
            if self._problem != str(exc):
                self._problem = str(exc)
                self.record(now, "postponed", None, str(exc))
            return False
        self.is_known = True
        return True

    def save(self, state: UpdaterState) -> None:
        """Make the state durable, then the one to go by.

        Raises:
            AgentError: the disk refused; the old state holds.
        """
        if not self.is_known:
            raise AgentError("the updater's state is not known yet, so nothing takes its place", retryable=True)
        if state != self.state:
            persist_state(self._path, state)
            self.state = state

    def update(self, **changes: object) -> None:
        """Save with these fields changed.

        Raises:
            AgentError: the disk refused; the old state holds.
        """
        self.save(self.state.model_copy(update=changes))

    def record(self, now: datetime, outcome: str, release_id: str | None, detail: str) -> None:
        """Tell of something that is no change of phase."""
        self.tell(UpdateEvent(at=now, outcome=outcome, release_id=release_id, detail=detail))

    def tell(self, event: UpdateEvent | None) -> None:
        """Put an event into the heartbeat and the log."""
        if event is None:
            return
        self._report.record_update(event)
        if event.outcome not in STEP_OUTCOMES:
            self.told = event
        if event.outcome in FINE_OUTCOMES:
            log.info("release %s: %s", event.release_id, event.outcome)
        else:
            self._report.count_error(event.outcome)
            log.warning("update %s: %s", event.outcome, event.detail)
