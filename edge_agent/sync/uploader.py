"""Sends frozen batches: images first, their record last. One bad object rests alone and blocks nothing else."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from curate.contracts import paths
from curate.errors import BlobRefusedError
from edge_agent.backoff import BackoffPolicy, decide_wait_s
from edge_agent.errors import SpoolUnavailableError
from edge_agent.spool.files import Batch
from edge_agent.spool.spool import Spool
from edge_agent.sync.bandwidth import Passage
from edge_agent.sync.uplink import Uplink

log = logging.getLogger(__name__)

REFUSALS_BEFORE_GIVING_UP: Final = 3
MAX_RESEND_DOUBLINGS: Final = 5
READS_BEFORE_RELEASE: Final = 3
"""A batch of which something cannot be read so often in a row is dissolved, so that it holds up no other."""


class Outcome(Enum):
    """How sending a batch ended."""

    SENT = "sent"
    RESTS = "rests"
    """Something of it was refused and is tried again later, or was given up just now."""
    UNREAD = "unread"
    """Something of it cannot be read at present; the rest of it and the others go on."""
    GONE = "gone"
    """A picture that is not to be had any more: its file was damaged and is counted as evicted."""
    NO_BUDGET = "no budget"
    STOPPED = "stopped"


@dataclass
class _Refusal:
    """What is known of an object that the bucket refuses."""

    accepted_before: int
    """Puts accepted before the first refusal: what was accepted since proves that the bucket takes others."""
    count: int = 0


class Uploader:
    """Owned by the sync thread. Retries are harmless: blobs are content-addressed, records byte-identical.

    All of it is memory: after a restart batches not known to be uploaded are sent again.
    """

    def __init__(
        self,
        spool: Spool,
        uplink: Uplink,
        backoff: BackoffPolicy,
        *,
        resend_after_s: float,
        monotonic: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._spool = spool
        self._uplink = uplink
        self._backoff = backoff
        self._resend_after_s = resend_after_s
        self._monotonic = monotonic
        self._rng = rng
        self._sent_blobs: dict[str, set[str]] = {}
        self._sent_at_s: dict[str, float] = {}
        self._sends: dict[str, int] = {}
        self._rests_until_s: dict[str, float] = {}
        self._refusals: dict[str, dict[str, _Refusal]] = {}
        """By batch, then by key: what is evicted meanwhile is forgotten with its batch."""
        self._unread: dict[str, int] = {}
        """By batch: how often in a row something of it could not be read."""

    def due(self, passage: Passage) -> list[Batch]:
        """Return the batches that may go now: those the bucket took long ago and nobody acknowledged, then those it
        does not have, oldest first; before both what is small, because it names no pictures.

        Forgets what it knew of batches that left.
        """
        waiting = {batch.name: batch for batch in self._spool.unacknowledged()}
        outstanding = {batch.name for batch in self._spool.outstanding()}
        now_s = self._monotonic()
        self._sent_at_s = {name: self._sent_at_s.get(name, now_s) for name in waiting}
        self._sends = {name: sends for name, sends in self._sends.items() if name in waiting}
        self._sent_blobs = {name: sent for name, sent in self._sent_blobs.items() if name in waiting}
        self._refusals = {name: refusals for name, refusals in self._refusals.items() if name in waiting}
        self._unread = {name: failures for name, failures in self._unread.items() if name in waiting}
        self._rests_until_s = {name: s for name, s in self._rests_until_s.items() if name in waiting and s > now_s}
        old = [b for name, b in waiting.items() if name not in outstanding and self._is_overdue(name, now_s)]
        new = [b for name, b in waiting.items() if name in outstanding]
        due = [
            batch
            for batch in (*old, *new)
            if (passage.captures if batch.captures else passage.feedback) and batch.name not in self._rests_until_s
        ]
        return sorted(due, key=lambda batch: bool(batch.captures))

    def _is_overdue(self, name: str, now_s: float) -> bool:
        """Waits double: while a batch waits in the cloud, none of its boot is acknowledged, and all would be sent."""
        doublings = min(max(self._sends.get(name, 0) - 1, 0), MAX_RESEND_DOUBLINGS)
        return now_s - self._sent_at_s[name] >= self._resend_after_s * 2.0**doublings

    def send(self, batch: Batch, is_stopped: Callable[[], bool]) -> Outcome:
        """Send one batch, its record last.

        Raises:
            StorageError: the link failed, or the bucket refuses everything alike.
            SpoolUnavailableError: the disk refused to note it.
        """
        outcomes = set()
        for sequence in batch.captures:
            if is_stopped():
                return Outcome.STOPPED
            outcomes.add(outcome := self._send_blob(batch, sequence))
            if outcome in {Outcome.NO_BUDGET, Outcome.UNREAD}:
                return outcome
            # The cloud waits for each picture that a record names, and acknowledges nothing later of the boot.
            if outcome is Outcome.GONE and self._spool.release_batch(batch):
                return Outcome.RESTS
        return Outcome.RESTS if Outcome.RESTS in outcomes else self._send_record(batch)

    def _send_blob(self, batch: Batch, sequence: int) -> Outcome:
        try:
            capture = self._spool.load_capture(sequence)
        except SpoolUnavailableError:
            return self._rest_unread(batch)
        if capture is None:
            return Outcome.GONE
        record, jpeg = capture
        key = paths.capture_key(self._spool.device_id, record.image.sha256)
        sent = self._sent_blobs.setdefault(batch.name, set())
        # A blob sent before the link broke is not sent again; only after the record is this forgotten.
        if key in sent:
            return Outcome.SENT
        outcome = self._put(
            batch, key, jpeg, record.image.media_type, lambda why: self._spool.give_up_capture(sequence, why)
        )
        if outcome is Outcome.SENT:
            sent.add(key)
        return outcome

    def _send_record(self, batch: Batch) -> Outcome:
        try:
            record = self._spool.load_batch_record(batch)
        except SpoolUnavailableError:
            return self._rest_unread(batch)
        self._unread.pop(batch.name, None)
        if record is None:
            return Outcome.SENT
        key = paths.inbox_key(self._spool.device_id, batch.boot_id, batch.sequence)
        outcome = self._put(batch, key, record, "application/json", lambda why: self._spool.break_up(batch, why))
        if outcome is Outcome.SENT:
            self._sent_at_s[batch.name] = self._monotonic()
            self._sends[batch.name] = self._sends.get(batch.name, 0) + 1
            self._sent_blobs.pop(batch.name, None)
            self._spool.mark_uploaded(batch)
        return outcome

    def _rest_unread(self, batch: Batch) -> Outcome:
        """Try a batch of which something cannot be read again later; after some tries what it names goes with others,
        without what is still not to be had."""
        failures = self._unread[batch.name] = self._unread.get(batch.name, 0) + 1
        self._rests_until_s[batch.name] = self._monotonic() + self._rng.uniform(0.5, 1.0) * self._backoff.poison_s
        if failures >= READS_BEFORE_RELEASE:
            self._spool.release_batch(batch)
        return Outcome.UNREAD

    def _put(self, batch: Batch, key: str, data: bytes, content_type: str, give_up: Callable[[str], None]) -> Outcome:
        """Send one object. Refused for what it is, it rests; refused again and again while others pass, it is given
        up."""
        if not self._uplink.has_budget(len(data)):
            return Outcome.NO_BUDGET
        refusals = self._refusals.setdefault(batch.name, {})
        try:
            self._uplink.put(key, data, content_type=content_type)
        except BlobRefusedError as exc:
            refusal = refusals.setdefault(key, _Refusal(self._uplink.accepted))
            refusal.count += 1
            if refusal.count == 1:
                log.warning("the bucket refuses %s: %s", key, exc)
            if refusal.count >= REFUSALS_BEFORE_GIVING_UP and self._uplink.accepted > refusal.accepted_before:
                del refusals[key]
                give_up(f"refused {refusal.count} times: {exc}")
            delay_s = decide_wait_s(self._backoff, exc, failures=refusal.count, rng=self._rng)
            self._rests_until_s[batch.name] = self._monotonic() + delay_s
            return Outcome.RESTS
        refusals.pop(key, None)
        self._spool.add_bytes_uploaded(len(data))
        return Outcome.SENT
