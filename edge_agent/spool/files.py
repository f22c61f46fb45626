"""The spool's folder: which file says what, and how each is written, read, removed or set aside."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import Field

from curate.contracts.capture import ArmOutcome, CaptureRecord
from curate.contracts.document import Document
from curate.contracts.feedback import Feedback
from curate.contracts.ids import SAFE_NAME
from edge_agent.durable import (
    TEMPORARY_SUFFIX,
    make_folder,
    persist_bytes,
    seal,
    sync_folder,
    unseal,
    write_durably,
)
from edge_agent.ledger import Totals

log = logging.getLogger(__name__)

CAPTURE_SUFFIX = ".capture"
FEEDBACK_SUFFIX = ".feedback"
BATCH_SUFFIX = ".batch"
REASON_SUFFIX = ".reason"
MAX_QUARANTINED = 500
MAX_QUARANTINE_BYTES = 32 * 1024 * 1024
"""What is set aside is for a person to look at; beyond these bounds the oldest goes."""


class Snapshot(Document):
    """The ledger at the moment a file was written. The highest revision on disk is the newest truth."""

    revision: int = Field(ge=1)
    totals: Totals
    removing: list[str] = Field(default_factory=list)
    """Files already counted as acknowledged or evicted. Recovery removes them without counting again."""


class CaptureHeader(Snapshot):
    """Header of a `.capture` file, with the totals after this capture; the payload is its JPEG."""

    record: CaptureRecord


class SketchedPrediction(Document):
    """What retention needs of a prediction."""

    prediction_id: str
    scores: dict[str, float] = Field(default_factory=dict)


class SketchedRecord(Document):
    """What the index needs of a record."""

    prediction: SketchedPrediction
    arms: list[ArmOutcome]


class CaptureSketch(Snapshot):
    """A capture's header without what only the cloud needs: recovery reads tens of thousands."""

    record: SketchedRecord


class FeedbackHeader(Snapshot):
    """Header of a `.feedback` file, with the totals after this feedback; no payload."""

    feedback: Feedback


class BatchHeader(Document):
    """Header of a `.batch` file; the payload is the commit record's exact bytes, the same at every retry."""

    revision: int = Field(ge=1)
    boot_id: str
    sequence: int = Field(ge=1)
    captures: list[int]
    feedback: list[int]


class SpoolState(Snapshot):
    """The `state` file: totals, and what cannot be told from the other files."""

    uploaded_batches: list[str] = Field(default_factory=list)
    uploaded_captures: list[int] = Field(default_factory=list)


class Receipt(Document):
    """What a person was answered about one verdict."""

    feedback_id: str
    frame_available: bool

    @classmethod
    def of(cls, feedback: Feedback) -> Self:
        """Return the receipt of a stored verdict."""
        return cls(feedback_id=feedback.feedback_id, frame_available=feedback.frame_available)


class Receipts(Document):
    """The `receipts` file: verdicts that have left the device, so that one sent again is known. Oldest first."""

    receipts: list[Receipt]


@dataclass(frozen=True)
class Batch:
    """A frozen batch: its bytes never change again. `name` is unique on this device."""

    revision: int
    boot_id: str
    sequence: int
    captures: tuple[int, ...]
    feedback: tuple[int, ...]
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"{self.boot_id}-{self.sequence:08d}")


@dataclass(frozen=True)
class SpoolFolder:
    """Paths and file operations below one root. Not thread-safe; the spool serialises."""

    root: Path

    def create(self) -> None:
        """Make the folders and remove what a crash left half-written.

        Raises:
            OSError: a folder is not there and cannot be made.
        """
        for folder in self._folders():
            try:
                make_folder(folder)
            except OSError as exc:
                if not folder.is_dir():
                    raise
                # Frames are answered on a disk that takes nothing any more, and what lies there may still be sent.
                log.warning("%s cannot be synced now: %s", folder, exc)
            for leftover in folder.glob(f"*{TEMPORARY_SUFFIX}"):
                log.info("removing a half-written file: %s", leftover.name)
                with contextlib.suppress(OSError):  # it only takes room, and is written over in time
                    leftover.unlink()
        with contextlib.suppress(OSError):
            sync_folder(self.root)

    def _folders(self) -> tuple[Path, ...]:
        return (self.root, self.captures, self.feedback, self.outbox, self.quarantine)

    @cached_property
    def captures(self) -> Path:
        """Folder of `.capture` files."""
        return self.root / "captures"

    @property
    def feedback(self) -> Path:
        """Folder of `.feedback` files."""
        return self.root / "feedback"

    @property
    def outbox(self) -> Path:
        """Folder of `.batch` files."""
        return self.root / "outbox"

    @property
    def quarantine(self) -> Path:
        """Folder of what will never upload, each with a `.reason` beside it."""
        return self.root / "quarantine"

    @property
    def state(self) -> Path:
        """The state file."""
        return self.root / "state"

    @property
    def receipts(self) -> Path:
        """The file of receipts."""
        return self.root / "receipts"

    def capture_path(self, sequence: int) -> Path:
        """File of the capture with that device-lifetime number."""
        return self.captures / f"{sequence:012d}{CAPTURE_SUFFIX}"

    def feedback_path(self, sequence: int) -> Path:
        """File of the feedback with that device-lifetime number."""
        return self.feedback / f"{sequence:012d}{FEEDBACK_SUFFIX}"

    def batch_path(self, batch: Batch) -> Path:
        """File of a frozen batch."""
        return self.outbox / f"{batch.name}{BATCH_SUFFIX}"

    def parse_batch_path(self, path: Path) -> Batch | None:
        """Return the place in its boot's sequence that a batch file's name says; None for another name."""
        boot_id, _, sequence = path.stem.rpartition("-")
        if not (re.fullmatch(SAFE_NAME, boot_id) and sequence.isascii() and sequence.isdigit() and int(sequence)):
            return None
        place = Batch(0, boot_id, int(sequence), (), ())
        return place if self.batch_path(place).name == path.name else None

    def numbered(self, folder: Path, suffix: str) -> Iterator[tuple[int, Path]]:
        """Yield (number, path) of the folder's files in order of number; other names are left alone."""
        found = [(path.stem, path) for path in folder.glob(f"*{suffix}")]
        yield from sorted((int(stem), path) for stem, path in found if stem.isascii() and stem.isdigit())

    def load_capture(self, sequence: int) -> tuple[CaptureRecord, bytes]:
        """Return (record, jpeg) after proving the checksums.

        Raises:
            CorruptFileError: the file does not say what was written.
            OSError: the file is gone or cannot be read.
        """
        header, jpeg = unseal(self.capture_path(sequence).read_bytes())
        return CaptureHeader.from_bytes(header).record, jpeg

    def load_feedback(self, sequence: int) -> Feedback:
        """Return the feedback after proving the checksum; raises as `load_capture`."""
        header, _ = unseal(self.feedback_path(sequence).read_bytes())
        return FeedbackHeader.from_bytes(header).feedback

    def load_batch_record(self, batch: Batch) -> bytes:
        """Return the commit record's exact bytes; raises as `load_capture`."""
        _, record = unseal(self.batch_path(batch).read_bytes())
        return record

    def load_state(self) -> SpoolState | None:
        """Return the state, or None before the first; raises as `load_capture`."""
        try:
            header, _ = unseal(self.state.read_bytes())
        except FileNotFoundError:
            return None
        return SpoolState.from_bytes(header)

    def load_receipts(self) -> list[Receipt]:
        """Return the receipts, none before the first; raises as `load_capture`."""
        try:
            header, _ = unseal(self.receipts.read_bytes())
        except FileNotFoundError:
            return []
        return Receipts.from_bytes(header).receipts

    def persist_receipts(self, receipts: Sequence[Receipt]) -> None:
        """Write the receipts.

        Raises:
            OSError: the disk refused.
        """
        persist_bytes(self.receipts, seal(Receipts(receipts=list(receipts)).to_bytes()))

    def persist_state(self, state: SpoolState) -> None:
        """Write the state.

        Raises:
            OSError: the disk refused.
        """
        persist_bytes(self.state, seal(state.to_bytes()))

    def persist_batch(self, batch: Batch, record: bytes) -> None:
        """Write a frozen batch.

        Raises:
            OSError: the disk refused.
        """
        header = BatchHeader(
            revision=batch.revision,
            boot_id=batch.boot_id,
            sequence=batch.sequence,
            captures=list(batch.captures),
            feedback=list(batch.feedback),
        )
        persist_bytes(self.batch_path(batch), seal(header.to_bytes(), record))

    def free_bytes(self) -> int:
        """Return the room left on the disk for this user."""
        return shutil.disk_usage(self.root).free

    def set_aside(self, path: Path, reason: str, *, stays: bool = False) -> None:
        """Move a file into quarantine with its reason. A file that is gone leaves only the reason; never raises.

        With `stays` the file also keeps its place, where the caller will replace it: a crash in between must not
        make it look as if it had never been there.
        """
        name = path.name
        while (self.quarantine / f"{name}{REASON_SUFFIX}").exists():
            name = f"again-{name}"
        log.error("quarantined %s: %s", path.name, reason)
        try:
            (os.link if stays else os.replace)(path, self.quarantine / name)
        except FileNotFoundError:
            pass
        except OSError as exc:
            log.warning("%s could not be moved to quarantine: %s", path.name, exc)
        try:
            write_durably(self.quarantine / f"{name}{REASON_SUFFIX}", f"{reason}\n".encode())
            self._bound_quarantine()
        except OSError as exc:
            log.warning("the reason for %s was not saved: %s", path.name, exc)

    def _bound_quarantine(self) -> None:
        """Remove what was set aside longest ago, as the files' times tell, until the rest fits."""
        reasons = [(path.stat().st_mtime_ns, path) for path in self.quarantine.glob(f"*{REASON_SUFFIX}")]
        left_bytes = MAX_QUARANTINE_BYTES
        for place, (_, reason) in enumerate(sorted(reasons, reverse=True)):
            file = reason.with_name(reason.name.removesuffix(REASON_SUFFIX))
            left_bytes -= file.stat().st_size if file.exists() else 0
            if place >= MAX_QUARANTINED or left_bytes < 0:
                file.unlink(missing_ok=True)
                reason.unlink(missing_ok=True)

    def count_quarantined(self) -> int:
        """Return how many files were set aside and still are."""
        return sum(1 for _ in self.quarantine.glob(f"*{REASON_SUFFIX}"))
