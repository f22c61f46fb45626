"""The durable queue of captures and feedback. The disk is the queue; memory only holds an index of it.

One rename commits a capture. Each file carries the ledger's totals at its writing, so what was counted
before the last durable write survives a kill; what was counted after it is lost together, and the laws
of `DeviceCounters` hold at every instant.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Self

from curate.contracts.capture import BatchRecord, CaptureRecord
from curate.contracts.device_settings import RetentionSpec
from curate.contracts.feedback import Feedback
from curate.contracts.ids import BootId, DeviceId
from curate.contracts.telemetry import DeviceCounters
from edge_agent.clock import Clock
from edge_agent.durable import seal
from edge_agent.errors import SpoolUnavailableError
from edge_agent.ledger import Ledger, Totals
from edge_agent.spool.admission import Admission
from edge_agent.spool.files import Batch, FeedbackHeader, Receipt, SpoolFolder
from edge_agent.spool.index import CapturePlace
from edge_agent.spool.journal import SpoolJournal
from edge_agent.spool.limits import SpoolLimits
from edge_agent.spool.reader import SpoolReader, disk_errors
from edge_agent.spool.recovery import Recovered, recover
from edge_agent.spool.stamps import restamp

log = logging.getLogger(__name__)

UNREADABLE = "unreadable"
REFUSED = "refused"


class Spool:
    """Thread-safe; one process a folder. One lock guards the index and serialises durable writes.

    It is never held during network traffic; a put holds it for one fsynced write.
    """

    def __init__(
        self,
        folder: SpoolFolder,
        limits: SpoolLimits,
        ledger: Ledger,
        *,
        device_id: DeviceId | str,
        boot_id: BootId | str,
        clock: Clock,
        monotonic: Callable[[], float],
        retention: Callable[[], RetentionSpec],
        recovered: Recovered,
    ) -> None:
        """Use `Spool.open`."""
        self.device_id = DeviceId(device_id)
        self.boot_id = BootId(boot_id)
        self._folder = folder
        self._limits = limits
        self._ledger = ledger
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.RLock()
        self._index = recovered.make_index()
        self._journal = SpoolJournal(
            folder, self._index, ledger, revision=recovered.revision, removing=recovered.removing
        )
        self._admission = Admission(
            folder, self._index, self._journal, ledger, limits, clock=clock, monotonic=monotonic, retention=retention
        )
        self._batch_sequence = 0
        self._most_captures = limits.batch_max_captures
        self._most_feedback = limits.batch_max_feedback
        self._apart = False
        """Captures and feedback go in batches of their own: the bucket refused one of each together."""
        self._reader = SpoolReader(folder, self._index, self._lock, monotonic)

    @classmethod
    def open(
        cls,
        root: Path,
        limits: SpoolLimits,
        ledger: Ledger,
        *,
        device_id: DeviceId | str,
        boot_id: BootId | str,
        clock: Clock | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        retention: Callable[[], RetentionSpec] = RetentionSpec,
    ) -> Self:
        """Recover what a crash left, then open. Adds the recovered totals to the (new) ledger.

        `boot_id` names this run of the process and must be new each time. `retention` is asked at each decision.

        Raises:
            SpoolUnavailableError: the folder cannot be used.
        """
        folder = SpoolFolder(root)
        with disk_errors():
            recovered = recover(folder)
        ledger.add(recovered.totals)
        spool = cls(
            folder,
            limits,
            ledger,
            device_id=device_id,
            boot_id=boot_id,
            clock=clock or Clock(),
            monotonic=monotonic,
            retention=retention,
            recovered=recovered,
        )
        try:
            spool.persist()
        except SpoolUnavailableError as exc:  # what was recovered would be recovered again
            log.warning("the recovered counters are not durable yet: %s", exc)
        return spool

    # -- capture thread ------------------------------------------------------------------------------------

    def put(self, draft: CaptureRecord, jpeg: bytes) -> bool:
        """Keep a capture: True when it is durable, False when it was dropped (counted, with the reason)."""
        return self.put_all([(draft, jpeg)])[0]

    def put_all(self, captures: Sequence[tuple[CaptureRecord, bytes]]) -> list[bool]:
        """Keep captures that wait together, each as `put` would, with fewer fsyncs: they share the folder's.

        Nobody is promised anything before it returns.
        """
        with self._lock:
            reasons = self._admission.admit(captures)
            for reason in filter(None, reasons):
                self._ledger.add(Totals(selected=1, dropped={reason: 1}))
        return [reason is None for reason in reasons]

    def is_captured(self, prediction_id: str) -> bool:
        """Return whether a frame of that prediction was kept lately. Takes no lock."""
        return self._index.is_remembered(prediction_id)

    # -- API thread ----------------------------------------------------------------------------------------

    def find_image(self, prediction_id: str) -> bytes | None:
        """Return the JPEG of that prediction's capture while it is on the device, else None.

        Raises:
            SpoolUnavailableError: the system or the disk refused; the file may be good.
        """
        with self._lock:  # so that it is not acknowledged away while it is read
            sequence = self._index.find_capture(prediction_id)
            loaded = None if sequence is None else self.load_capture(sequence)
        return loaded[1] if loaded else None

    def capture_place(self, prediction_id: str) -> CapturePlace | None:
        """Return where that prediction's capture is, or None when none was kept lately."""
        with self._lock:
            return self._index.capture_place(prediction_id)

    def put_feedback(self, feedback: Feedback) -> None:
        """Keep a person's verdict; durable when it returns.

        Raises:
            SpoolUnavailableError: it was not kept; the person may try again.
        """
        with self._lock, disk_errors():
            if self._index.feedback >= self._limits.max_feedback:
                raise SpoolUnavailableError("too much feedback waits on this device", hint="check the uplink")
            change = Totals(feedback_spooled=1)
            totals = self._ledger.totals().plus(change)
            header = FeedbackHeader(
                revision=self._journal.next_revision(),
                totals=totals,
                removing=self._journal.leaving(),
                feedback=feedback,
            )
            path = self._folder.feedback_path(totals.feedback_spooled)
            self._journal.stage_new(path, seal(header.to_bytes()))
            self._journal.place_new([path])
            self._index.add_feedback(totals.feedback_spooled, Receipt.of(feedback), since_s=self._monotonic())
            self._ledger.add(change)

    def find_receipt(self, feedback_id: str) -> Receipt | None:
        """Return the receipt of feedback that is on the device or, among the newest, has left it.

        It survives restarts, so that a verdict whose answer was lost in one is not kept twice.
        """
        with self._lock:
            return self._index.find_receipt(feedback_id)

    # -- sync thread ---------------------------------------------------------------------------------------

    def persist(self) -> None:
        """Make the totals of this moment durable, if they changed.

        Raises:
            SpoolUnavailableError: the disk refused.
        """
        with self._lock, disk_errors():
            self._journal.persist_changes()

    def freeze_batch(self, now: datetime, *, captures: bool = True) -> Batch | None:
        """Freeze waiting captures and feedback into a batch, durably; None when nothing is due.

        The most valuable captures go first, with a share for the oldest; without `captures` only feedback goes.
        A file that is gone or fails its checksum goes to quarantine and the batch goes on without it; one that the disk
        does not give stays, and is tried again after a rest.
        A gap that an unreadable batch has left is filled first: the cloud acknowledges no further than a gap.

        Raises:
            SpoolUnavailableError: the disk refused; nothing is frozen.
        """
        limits = self._limits
        with self._lock, disk_errors():
            if self._index.gaps:
                return self._freeze(now, next(iter(self._index.gaps.values())), {}, {})
            resting = self._reader.resting()
            is_apart = self._apart and self._index.has_feedback(resting)
            most = self._most_captures if captures and not is_apart else 0
            due = self._index.is_due(
                now_s=self._monotonic(), max_captures=most, max_age_s=limits.batch_max_age_s, resting=resting
            )
            if not due or len(self._index.batches) >= limits.max_batches:
                return None
            sequences = self._index.next_to_send(
                max_captures=most,
                max_feedback=self._most_feedback,
                oldest_share=limits.batch_oldest_share,
                resting=resting,
            )
            records, feedback = self._load_records(sequences[0]), self._load_feedback(sequences[1])
            if not records and not feedback:
                return None
            place = Batch(0, self.boot_id, self._batch_sequence + 1, tuple(records), tuple(feedback))
            batch = self._freeze(now, place, records, feedback)
            self._batch_sequence = batch.sequence
            return batch

    def _freeze(
        self,
        now: datetime,
        place: Batch,
        captures: Mapping[int, CaptureRecord],
        feedback: Mapping[int, Feedback],
    ) -> Batch:
        record = BatchRecord(
            device_id=self.device_id,
            boot_id=place.boot_id,
            sequence=place.sequence,
            created_at=now,
            captures=list(captures.values()),
            feedback=list(feedback.values()),
            counters=self._ledger.snapshot(),
        )
        batch = replace(place, revision=self._journal.next_revision())
        self._folder.persist_batch(batch, record.to_bytes())
        self._index.freeze(batch)
        return batch

    def _load_records(self, sequences: Sequence[int]) -> dict[int, CaptureRecord]:
        loaded = {}
        for sequence in sequences:
            with contextlib.suppress(SpoolUnavailableError):  # it rests now
                loaded[sequence] = self.load_capture(sequence)
        state = self._clock.state()
        return {n: restamp(found[0], state, boot_id=self.boot_id) for n, found in loaded.items() if found is not None}

    def _load_feedback(self, sequences: Sequence[int]) -> dict[int, Feedback]:
        loaded = {}
        for sequence in sequences:
            path, place = self._folder.feedback_path(sequence), self._reader.feedback(sequence)
            lose = partial(self._lose_feedback, sequence)
            with contextlib.suppress(SpoolUnavailableError), self._reader.reading(path, lose, place):
                loaded[sequence] = self._folder.load_feedback(sequence)
        return loaded

    def load_capture(self, sequence: int) -> tuple[CaptureRecord, bytes] | None:
        """Return (record, jpeg), or None when the file is bad: it is then in quarantine and counted as evicted.

        Raises:
            SpoolUnavailableError: the system or the disk refused; the file may be good.
        """
        if self._index.holds(sequence):
            path, lose = self._folder.capture_path(sequence), partial(self._lose_capture, sequence)
            with self._reader.reading(path, lose, self._reader.capture(sequence)):
                return self._folder.load_capture(sequence)
        return None

    def _lose_capture(self, sequence: int, reason: str = UNREADABLE) -> None:
        self._ledger.add(Totals.eviction(reason, self._index.remove_captures([sequence])))
        self._journal.commit(Totals())

    def _lose_feedback(self, sequence: int, reason: str = UNREADABLE) -> None:
        self._ledger.add(Totals.giving_up(reason, self._index.remove_feedback([sequence])))
        self._journal.commit(Totals())

    def give_up_capture(self, sequence: int, reason: str) -> None:
        """Set a capture aside that the bucket will not have, whatever we do; counted as evicted, `refused`.

        Raises:
            SpoolUnavailableError: the disk refused.
        """
        with self._lock, disk_errors():
            if self._index.holds(sequence):
                self._reader.set_aside(self._folder.capture_path(sequence), reason)
                self._lose_capture(sequence, REFUSED)

    def break_up(self, batch: Batch, reason: str) -> None:
        """Let what a batch named wait again, for smaller ones, because the bucket refuses its record.

        An empty one fills the gap. What cannot be smaller, a capture or a verdict alone, is given up; and then batches
        may be as large as ever, since it was not their size.

        Raises:
            SpoolUnavailableError: the disk refused.
        """
        with self._lock, disk_errors():
            if batch.name not in self._index.batches:
                return
            self._reader.set_aside(self._folder.batch_path(batch), reason, stays=True)
            self._index.thaw(batch)
            if len(batch.captures) + len(batch.feedback) == 1:
                self._give_up_content(batch, reason)
                return
            # Of one capture and one verdict nobody knows which it is.
            self._apart = self._apart or len(batch.captures) == len(batch.feedback) == 1
            self._most_captures = _halved(self._most_captures, len(batch.captures))
            self._most_feedback = _halved(self._most_feedback, len(batch.feedback))

    def _give_up_content(self, batch: Batch, reason: str) -> None:
        for sequence in batch.captures:
            self.give_up_capture(sequence, reason)
        for sequence in batch.feedback:
            self._reader.set_aside(self._folder.feedback_path(sequence), reason)
            self._lose_feedback(sequence, REFUSED)
        self._apart = False
        self._most_captures, self._most_feedback = self._limits.batch_max_captures, self._limits.batch_max_feedback

    def release_batch(self, batch: Batch) -> bool:
        """Let what a batch named wait again, for others, because something of it cannot be had; return whether it does.

        An empty one will take its place, so that it holds up nobody. One that the bucket has keeps it.
        """
        with self._lock:
            if batch.name not in self._index.batches or batch.name in self._index.uploaded_batches:
                return False
            log.warning("batch %s cannot be read: what it named goes with others", batch.name)
            self._index.thaw(batch)
            return True

    def outstanding(self) -> list[Batch]:
        """Return the batches whose upload is not known to be complete, oldest first."""
        with self._lock:
            return [batch for batch in self._index.batches.values() if batch.name not in self._index.uploaded_batches]

    def unacknowledged(self) -> list[Batch]:
        """Return every frozen batch, oldest first."""
        with self._lock:
            return list(self._index.batches.values())

    def load_batch_record(self, batch: Batch) -> bytes | None:
        """Return the commit record's exact bytes, or None when its file is bad.

        It is then in quarantine, what it named waits again, for another batch, and an empty one will take its place.

        Raises:
            SpoolUnavailableError: the system or the disk refused; the file may be good.
        """
        if batch.name in self._index.batches:
            with self._reader.reading(self._folder.batch_path(batch), partial(self._index.thaw, batch), stays=True):
                return self._folder.load_batch_record(batch)
        return None

    def mark_uploaded(self, batch: Batch) -> None:
        """Record that the bucket has the batch's commit record; each capture counts once in its life.

        Raises:
            SpoolUnavailableError: the disk refused; mark again after the next (harmless) upload.
        """
        with self._lock, disk_errors():
            index = self._index
            if batch.name in index.batches and batch.name not in index.uploaded_batches:
                fresh = index.not_yet_uploaded([batch])
                self._journal.commit(
                    Totals(uploaded=len(fresh)),
                    uploaded_batches=index.uploaded_batches | {batch.name},
                    uploaded_captures=index.uploaded_captures | fresh,
                )

    def add_bytes_uploaded(self, size_bytes: int) -> None:
        """Count bytes sent to the bucket, retries included."""
        self._ledger.add(Totals(bytes_uploaded=size_bytes))

    def acknowledge(self, through: Mapping[str, int]) -> int:
        """Delete what the cloud has durably taken: for each boot, batches up to that sequence.

        Counting and the intent to remove are one durable write, so a crash counts nothing twice.
        A batch whose upload was not known to have arrived has arrived. Returns how many batches went.

        Raises:
            SpoolUnavailableError: the disk refused; nothing was counted.
        """
        with self._lock, disk_errors():
            leaving = self._index.departure(through)
            if not leaving.batches:
                return 0
            removing = [
                *(self._folder.capture_path(sequence) for sequence in sorted(leaving.captures)),
                *(self._folder.batch_path(batch) for batch in leaving.batches),
                *(self._folder.feedback_path(sequence) for sequence in sorted(leaving.feedback)),
            ]
            receipts = self._index.receipts_after(leaving)
            if leaving.feedback:
                # Before the files go: at every moment one of the two knows the id.
                self._journal.insist(partial(self._folder.persist_receipts, receipts), removing)
            self._journal.commit(
                Totals(
                    acknowledged=len(leaving.captures),
                    uploaded=leaving.newly_uploaded,
                    feedback_acknowledged=len(leaving.feedback),
                ),
                removing=removing,
                uploaded_batches=self._index.uploaded_batches - {batch.name for batch in leaving.batches},
                uploaded_captures=self._index.uploaded_captures - leaving.captures,
            )
            self._index.forget(leaving)
            self._index.replace_left_receipts(receipts)
            self._journal.finish_removals()
            return len(leaving.batches)

    # -- anyone --------------------------------------------------------------------------------------------

    def snapshot(self) -> DeviceCounters:
        """Return the counters of this moment; their `pending` agrees with the files held."""
        with self._lock:
            return self._ledger.snapshot()

    @property
    def unsent_captures(self) -> int:
        """Captures on the device that the bucket is not known to have."""
        return self._index.captures - len(self._index.uploaded_captures)

    @property
    def unreadable_captures(self) -> int:
        """Captures on the device that the disk did not give when they were asked for last."""
        return self._reader.unread_captures

    @property
    def held_captures(self) -> int:
        """Captures on the device; always equal to the counter `pending`."""
        return self._index.captures

    @property
    def quarantined(self) -> int:
        """Files set aside and not removed before this start, or set aside since."""
        return self._reader.quarantined


def _halved(most: int, refused: int) -> int:
    return max(1, min(most, refused // 2)) if refused else most
