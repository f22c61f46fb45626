"""What the updater remembers over restarts: the floor, the accepted assignment, the release on trial."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from curate.contracts.assignment import Assignment
from curate.contracts.ids import SafeName, Sha256
from curate.errors import AgentError
from edge_agent.durable import persist_bytes, seal, unseal
from edge_agent.errors import CorruptFileError
from edge_agent.models.trust import TrustFloor

log = logging.getLogger(__name__)


class Trial(BaseModel):
    """A release that is being loaded and checked right now; found at a start, the process died over it."""

    model_config = ConfigDict(frozen=True)

    release_id: SafeName
    desired_sha256: Sha256
    starts: int = Field(ge=1)


class UpdaterState(BaseModel):
    """One file, written atomically and synced."""

    model_config = ConfigDict(frozen=True)

    floor: TrustFloor = TrustFloor()
    assignment: Assignment | None = None
    desired_sha256: Sha256 | None = None
    """Digest of the whole `desired.json` that was accepted: the same bytes need no second look."""
    trial: Trial | None = None


def load_state(path: Path) -> UpdaterState:
    """Read the state; none is a new device. An unreadable file starts anew, loudly:
    a device that waits for a person helps nobody, and the slots still bound what it runs."""
    try:
        header, _ = unseal(path.read_bytes())
        return UpdaterState.model_validate_json(header)
    except FileNotFoundError:
        return UpdaterState()
    except (OSError, CorruptFileError, ValidationError) as exc:
        log.warning("the updater's state cannot be read and starts anew: %s", exc)
        return UpdaterState()


def persist_state(path: Path, state: UpdaterState) -> None:
    """Write the state durably.

    Raises:
        AgentError: the disk refused.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        persist_bytes(path, seal(state.model_dump_json().encode()))
    except OSError as exc:
        raise AgentError(f"the updater's state was not saved: {exc}", retryable=True) from exc
