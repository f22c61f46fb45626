"""Reading what lies in the spool, and what becomes of a file that cannot be read.

One that is gone or fails its checksum goes to quarantine: a bad file blocks nothing else. One that the disk does not
give may be as good as ever: it stays, rests, and is tried again.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from curate.errors import ContractError
from edge_agent.errors import CorruptFileError, SpoolUnavailableError
from edge_agent.spool.files import SpoolFolder
from edge_agent.spool.index import SpoolIndex
from edge_agent.spool.unread import Resting, Unread

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where it is noted that a file could not be read."""

    unread: Unread
    number: int


class SpoolReader:
    """Thread-safe by the spool's own lock."""

    def __init__(
        self, folder: SpoolFolder, index: SpoolIndex, lock: threading.RLock, monotonic: Callable[[], float]
    ) -> None:
        self._folder = folder
        self._index = index
        self._lock = lock
        self._monotonic = monotonic
        self._captures, self._feedback = Unread(), Unread()
        self.quarantined = folder.count_quarantined()
        """Files set aside."""

    def capture(self, sequence: int) -> Place:
        """Return where a capture's read errors are noted."""
        return Place(self._captures, sequence)

    def feedback(self, sequence: int) -> Place:
        """Return where a verdict's read errors are noted."""
        return Place(self._feedback, sequence)

    def resting(self) -> Resting:
        """Return what is not to be read yet; the spool holds its lock."""
        if not (self._captures or self._feedback):
            return Resting()
        self._captures.retain(self._index.holds)
        self._feedback.retain(self._index.holds_feedback)
        now_s = self._monotonic()
        return Resting(self._captures.resting(now_s), self._feedback.resting(now_s))

    @property
    def unread_captures(self) -> int:
        """Captures on the device that the disk did not give when they were asked for last."""
        return len(self._captures)

    def set_aside(self, path: Path, reason: str, *, stays: bool = False) -> None:
        """Send a file to quarantine, as `SpoolFolder.set_aside` does."""
        self._folder.set_aside(path, reason, stays=stays)
        self.quarantined += 1

    @contextlib.contextmanager
    def reading(
        self, path: Path, lose: Callable[[], None], place: Place | None = None, *, stays: bool = False
    ) -> Iterator[None]:
        """Read a file in the body, which ends early when it is bad: `lose` is then called.

        Raises:
            SpoolUnavailableError: the system or the disk refused; the file may be good.
        """
        try:
            yield
        except (CorruptFileError, ContractError, FileNotFoundError) as exc:
            with self._lock, disk_errors():
                self.set_aside(path, str(exc), stays=stays)
                lose()
        except OSError as exc:
            with self._lock:
                if place is None or place.unread.note(place.number, self._monotonic()):
                    log.warning("%s cannot be read now and stays: %s", path.name, exc)
            raise SpoolUnavailableError(f"{path.name} cannot be read now: {exc}") from exc
        else:
            if place is not None and place.unread:
                with self._lock:
                    place.unread.forget(place.number)


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Turn the disk's refusals into the agent's."""
    try:
        yield
    except OSError as exc:
        raise SpoolUnavailableError(f"the spool's disk refused: {exc}") from exc
