"""Moves the spool to the bucket: blobs, then the commit record; then waits for the acknowledgement."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from curate.contracts import paths
from curate.contracts.assignment import Acknowledgement
from curate.errors import BlobNotFoundError, ContractError, Error, StorageError
from curate.storage.ports import BlobStore
from edge_agent.backoff import BackoffPolicy, decide_delay_s
from edge_agent.report import DeviceReport
from edge_agent.spool.files import Batch
from edge_agent.spool.spool import Spool

log = logging.getLogger(__name__)

MAX_ACK_BYTES = 1024 * 1024


@dataclass(frozen=True)
class SyncPolicy:
    """How often the loop does what."""

    interval_s: float = 2.0
    persist_s: float = 5.0
    heartbeat_s: float = 15.0
    resend_after_s: float = 900.0
    """A batch the bucket took but nobody acknowledged is sent again: a store may lose what it accepted."""
    batches_per_turn: int = 4
    """So that acknowledgements and heartbeats are not starved by a long backlog."""
    backoff: BackoffPolicy = field(default_factory=BackoffPolicy)


class SyncLoop:
    """One thread's work. Retries are harmless: blobs are content-addressed, records byte-identical.

    Everything but the spool is memory: after a restart batches not known to be uploaded are sent again.
    """

    def __init__(
        self,
        spool: Spool,
        store: BlobStore,
        report: DeviceReport,
        policy: SyncPolicy,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        """`monotonic` must be the spool's clock; `rng` spreads retries."""
        self._spool = spool
        self._store = store
        self._report = report
        self._policy = policy
        self._monotonic = monotonic
        self._rng = rng or random.Random()
        self._stop = threading.Event()
        self._link_up = True
        self._failures = 0
        self._retry_at_s = float("-inf")
        self._refused: dict[str, float] = {}
        self._disk_refused = False
        self._persist_at_s = float("-inf")
        self._heartbeat_at_s = float("-inf")
        self._sent_blobs: set[str] = set()
        self._sent_at_s: dict[str, float] = {}

    def run(self, stop: threading.Event) -> None:
        """Turn until told to stop, then make the counters durable. What is unforeseen ends one turn, not the loop."""
        self._stop = stop
        while not stop.is_set():
            more = False
            try:
                more = self.turn(datetime.now(UTC))
            except Exception as exc:
                log.exception("a sync turn failed")
                self._report.count_error(type(exc).__name__)
            stop.wait(0.0 if more else self._policy.interval_s)
        self._keep_local(datetime.now(UTC), closing=True)

    def turn(self, now: datetime) -> bool:
        """Persist, freeze, and, unless the link rests after a failure, talk to the bucket once.

        Returns whether more waits to be sent right away.
        """
        self._keep_local(now)
        if self._monotonic() < self._retry_at_s:
            return False
        try:
            self._attempt("acknowledgement", self._poll_acknowledgement)
            self._attempt("heartbeat", lambda: self._heartbeat(now))
            self._attempt("upload", lambda: self._upload(now))
        except StorageError as exc:
            self._link_failed(exc)
            return False
        self._link_answered()
        return "upload" not in self._refused and bool(self._spool.outstanding())

    # -- the disk --------------------------------------------------------------------------------------------

    def _keep_local(self, now: datetime, *, closing: bool = False) -> None:
        """What needs no link. A disk that refuses is logged once and never keeps the rest of a turn from running."""
        try:
            if closing or self._monotonic() >= self._persist_at_s:
                self._persist_at_s = self._monotonic() + self._policy.persist_s
                self._spool.persist()
            while not closing and self._spool.freeze_batch(now) is not None:
                pass
        except Error as exc:
            self._report.count_error(type(exc).__name__)
            if not self._disk_refused:
                log.error("%s", exc)  # noqa: TRY400 - the message says it all
            self._disk_refused = True
        else:
            self._disk_refused = False

    # -- the link --------------------------------------------------------------------------------------------

    def _attempt(self, name: str, step: Callable[[], None]) -> None:
        """Run a step. What trying again cannot cure rests this step only, for long, and is logged once.

        Raises:
            StorageError: the link itself failed; the turn is over.
        """
        if self._monotonic() < self._refused.get(name, float("-inf")):
            return
        try:
            step()
        except StorageError as exc:
            if exc.retryable:
                raise
            self._refuse(name, exc)
        except Error as exc:
            self._refuse(name, exc)
        else:
            if self._refused.pop(name, None) is not None:
                log.info("%s works again", name)

    def _refuse(self, name: str, exc: Error) -> None:
        self._report.count_error(type(exc).__name__)
        if name not in self._refused:
            log.error("%s was refused: %s", name, exc, extra={"hint": exc.hint})
        delay_s = decide_delay_s(self._policy.backoff, failures=1, retryable=exc.retryable, rng=self._rng)
        self._refused[name] = self._monotonic() + delay_s

    def _link_failed(self, exc: StorageError) -> None:
        self._failures += 1
        self._report.count_error(type(exc).__name__)
        if self._link_up:
            log.warning("the link to the bucket is down: %s", exc)
        self._link_up = False
        delay_s = decide_delay_s(self._policy.backoff, failures=self._failures, retryable=True, rng=self._rng)
        self._retry_at_s = self._monotonic() + delay_s

    def _link_answered(self) -> None:
        if not self._link_up:
            log.info("the link to the bucket is back after %d failed attempt(s)", self._failures)
        self._link_up = True
        self._failures = 0

    # -- steps -----------------------------------------------------------------------------------------------

    def _poll_acknowledgement(self) -> None:
        if not self._spool.unacknowledged():
            return
        try:
            raw = self._store.get(paths.ack_key(self._spool.device_id), max_bytes=MAX_ACK_BYTES)
        except BlobNotFoundError:
            return
        acknowledgement = Acknowledgement.from_bytes(raw)
        if acknowledgement.device_id != self._spool.device_id:
            raise ContractError(f"the acknowledgement is for {acknowledgement.device_id}")
        self._spool.acknowledge(acknowledgement.through)

    def _heartbeat(self, now: datetime) -> None:
        if self._monotonic() < self._heartbeat_at_s:
            return
        state = self._report.state(
            device_id=self._spool.device_id,
            boot_id=self._spool.boot_id,
            now=now,
            counters=self._spool.snapshot(),
            quarantined=self._spool.quarantined,
        )
        key = paths.reported_key(self._spool.device_id)
        self._store.put(key, state.to_bytes(), content_type="application/json")
        self._heartbeat_at_s = self._monotonic() + self._policy.heartbeat_s

    def _upload(self, now: datetime) -> None:
        for batch in [*self._overdue(), *self._spool.outstanding()][: self._policy.batches_per_turn]:
            if self._stop.is_set() or not self._upload_batch(batch):
                return
            self._attempt("heartbeat", lambda: self._heartbeat(now))

    def _overdue(self) -> list[Batch]:
        """Batches the bucket took long ago and nobody acknowledged; forgets the times of those that left."""
        waiting = {batch.name: batch for batch in self._spool.unacknowledged()}
        now_s = self._monotonic()
        self._sent_at_s = {name: self._sent_at_s.get(name, now_s) for name in waiting}
        outstanding = {batch.name for batch in self._spool.outstanding()}
        limit_s = now_s - self._policy.resend_after_s
        return [
            batch for name, batch in waiting.items() if name not in outstanding and self._sent_at_s[name] <= limit_s
        ]

    def _upload_batch(self, batch: Batch) -> bool:
        """Send one batch, its record last; False when told to stop half-way."""
        for sequence in batch.captures:
            if self._stop.is_set():
                return False
            self._upload_blob(sequence)
        record = self._spool.load_batch_record(batch)
        if record is None:
            return True
        key = paths.inbox_key(self._spool.device_id, batch.boot_id, batch.sequence)
        self._store.put(key, record, content_type="application/json")
        self._spool.add_bytes_uploaded(len(record))
        self._sent_at_s[batch.name] = self._monotonic()
        self._sent_blobs.clear()
        self._spool.mark_uploaded(batch)
        return True

    def _upload_blob(self, sequence: int) -> None:
        capture = self._spool.load_capture(sequence)
        if capture is None:
            return
        record, jpeg = capture
        key = paths.capture_key(self._spool.device_id, record.image.sha256)
        # A blob sent before the link broke is not sent again; only after the record is this forgotten.
        if key not in self._sent_blobs:
            self._store.put(key, jpeg, content_type=record.image.media_type)
            self._spool.add_bytes_uploaded(len(jpeg))
            self._sent_blobs.add(key)
