"""Two switches that people and programs on the device may flip at any time; they outlast restarts."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from curate.contracts.document import Document
from curate.errors import AgentError, ContractError
from edge_agent.durable import persist_bytes

log = logging.getLogger(__name__)


class SwitchState(Document):
    """How the switches stand."""

    capture_allowed: bool = True
    """Off: frames are answered and nothing of them is kept."""
    metered: bool = False
    """On: the link costs money. Uploads follow `BandwidthSpec.metered`, and a release's files wait."""


class Switches:
    """Thread-safe. An unreadable file means that nothing may be kept: whoever said no must not be overheard."""

    def __init__(self, path: Path) -> None:
        """Read how the switches stood."""
        self._path = path
        self._lock = threading.Lock()
        """Held while the disk is waited for, so nobody who only asks takes it: frames ask."""
        self._state = _load(path)

    def state(self) -> SwitchState:
        """Return how the switches stand now; never waits."""
        return self._state

    def flip(self, *, capture_allowed: bool | None = None, metered: bool | None = None) -> SwitchState:
        """Set the switches that are given; durable when it returns.

        Raises:
            AgentError: the disk refused; a switch to off holds for this process all the same.
        """
        wanted = {"capture_allowed": capture_allowed, "metered": metered}
        with self._lock:
            state = self._state.model_copy(update={key: value for key, value in wanted.items() if value is not None})
            if not state.capture_allowed:
                self._state = state
            try:
                persist_bytes(self._path, state.to_bytes())
            except OSError as exc:
                raise AgentError(f"the switches were not saved: {exc}", retryable=True) from exc
            self._state = state
            return state


def _load(path: Path) -> SwitchState:
    try:
        return SwitchState.from_bytes(path.read_bytes())
    except FileNotFoundError:
        return SwitchState()
    except (OSError, ContractError) as exc:
        log.error("the switches cannot be read, so nothing is kept until they are set again: %s", exc)  # noqa: TRY400
        return SwitchState(capture_allowed=False)
