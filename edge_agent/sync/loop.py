"""Moves the spool to the bucket: blobs, then the commit record; then waits for the acknowledgement."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from curate.contracts import paths
from curate.contracts.assignment import Acknowledgement
from curate.contracts.device_settings import BandwidthSpec
from curate.contracts.telemetry import DeviceLimits
from curate.errors import BlobNotFoundError, ContractError, Error, StorageError
from curate.storage.ports import BlobStore
from edge_agent.backoff import BackoffPolicy, decide_wait_s, jittered_s
from edge_agent.clock import Clock
from edge_agent.errors import SpoolUnavailableError
from edge_agent.report import DeviceReport
from edge_agent.spool.spool import UNREADABLE, Spool
from edge_agent.sync.bandwidth import BUDGET, Passage, decide_passage, slow_down_s
from edge_agent.sync.uplink import Uplink
from edge_agent.sync.uploader import Outcome, Uploader

log = logging.getLogger(__name__)

MAX_ACK_BYTES = 1024 * 1024


@dataclass(frozen=True)
class SyncPolicy:
    """How often the loop does what."""

    interval_s: float = 2.0
    persist_s: float = 5.0
    heartbeat_s: float = 15.0
    resend_after_s: float = 900.0
    """A batch the bucket took but nobody acknowledged is sent again, each time after twice as long: a store may lose
    what it accepted."""
    batches_per_turn: int = 4
    """So that acknowledgements and heartbeats are not starved by a long backlog."""
    backoff: BackoffPolicy = field(default_factory=BackoffPolicy)


@dataclass(frozen=True)
class LinkState:
    """How the link stands, for people."""

    is_up: bool | None
    """None before the bucket was asked for the first time."""
    last_upload_age_s: float | None
    """Seconds since a batch arrived in the bucket; None when none has since the start."""


class SyncLoop:
    """One thread's work. Everything but the spool is memory; `Uploader` says what that costs after a restart."""

    def __init__(
        self,
        spool: Spool,
        store: BlobStore,
        report: DeviceReport,
        policy: SyncPolicy,
        *,
        bandwidth: Callable[[], BandwidthSpec] = BandwidthSpec,
        is_metered: Callable[[], bool] = lambda: False,
        keep_reserve: Callable[[], bool] = lambda: True,
        clock: Clock | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        """`bandwidth` and `is_metered` are asked each turn; `keep_reserve` makes the disk's reserve if it can and
        returns whether it is there. `monotonic` must be the spool's clock; `rng` spreads polls and retries."""
        self._spool = spool
        self._store = store
        self._report = report
        self._policy = policy
        self._bandwidth = bandwidth
        self._is_metered = is_metered
        self._keep_reserve = keep_reserve
        self._clock = clock or Clock()
        self._monotonic = monotonic
        self._rng = rng or random.Random()
        self._uplink = Uplink(store, bandwidth, monotonic)
        self._uploader = Uploader(
            spool,
            self._uplink,
            policy.backoff,
            resend_after_s=policy.resend_after_s,
            monotonic=monotonic,
            rng=self._rng,
        )
        self._stop = threading.Event()
        self._link_up: bool | None = None
        self._was_heard = False
        """Whether the bucket has answered since the start."""
        self._sent_s: float | None = None
        self._failures = 0
        self._retry_at_s = float("-inf")
        self._refused: dict[str, float] = {}
        self._disk_refused: set[str] = set()
        self._persist_at_s = float("-inf")
        self._heartbeat_at_s = float("-inf")
        self._passage = Passage()
        self._lacks_budget = False
        self._has_reserve = True
        self._ack_tag: str | None = None
        self._ack_for: frozenset[str] = frozenset()
        report.follow_limits(self.limits)

    def run(self, stop: threading.Event) -> None:
        """Turn until told to stop, then make the counters durable. What is unforeseen ends one turn, not the loop."""
        self._stop = stop
        while not stop.is_set():
            more = False
            try:
                more = self.turn(self._clock.now())
            except Exception as exc:
                log.exception("a sync turn failed")
                self._report.count_error(type(exc).__name__)
            stop.wait(0.0 if more else jittered_s(self._policy.interval_s, self._rng))
        self._locally("persist", self._spool.persist)

    def turn(self, now: datetime) -> bool:
        """Persist, freeze, and, unless the link rests after a failure, talk to the bucket once.

        Returns whether more waits to be sent right away.
        """
        self._passage = decide_passage(self._bandwidth(), metered=self._is_metered(), now=now)
        self._locally("persist", self._persist)
        rests = self._monotonic() < self._retry_at_s
        answers = not rests and self._talk(
            {"acknowledgement": self._poll_acknowledgement, "heartbeat": lambda: self._heartbeat(now)}
        )
        # Not before the bucket was heard: a camera in 1970 learns from it when its captures were taken, and what is
        # frozen is never stamped again.
        self._was_heard = self._was_heard or answers
        if self._was_heard:
            self._locally("freeze", lambda: self._freeze(now))
        if not answers or not self._talk({"upload": lambda: self._upload(now)}):
            return False
        self._link_answered()
        return "upload" not in self._refused and not self._lacks_budget and bool(self._uploader.due(self._passage))

    def limits(self) -> DeviceLimits:
        """Return what holds the device back at this moment; safe in any thread."""
        held_by = self._passage.held_by or (BUDGET if self._lacks_budget else None)
        held = {held_by: self._spool.unsent_captures} if held_by else {}
        held[UNREADABLE] = self._spool.unreadable_captures
        clock = self._clock.state()
        return DeviceLimits(
            held_back={reason: count for reason, count in held.items() if count},
            reserve_ready=self._has_reserve,
            clock_offset_s=clock.offset_s,
            clock_uncertainty_s=clock.uncertainty_s,
        )

    def link(self) -> LinkState:
        """Return how the link stands; safe in any thread."""
        sent_s = self._sent_s
        age_s = None if sent_s is None else self._monotonic() - sent_s
        return LinkState(self._link_up, age_s)

    # -- the disk --------------------------------------------------------------------------------------------

    def _locally(self, name: str, work: Callable[[], None]) -> None:
        """Do what needs no link. A disk that refuses is logged once and never keeps the rest of a turn from running."""
        try:
            work()
        except Error as exc:
            self._report.count_error(type(exc).__name__)
            if not self._disk_refused:
                log.error("%s", exc)  # noqa: TRY400 - the message says it all
            self._disk_refused.add(name)
        else:
            self._disk_refused.discard(name)

    def _persist(self) -> None:
        if self._monotonic() >= self._persist_at_s:
            self._persist_at_s = self._monotonic() + self._policy.persist_s
            self._has_reserve = self._keep_reserve()
            self._spool.persist()

    def _freeze(self, now: datetime) -> None:
        # What cannot be sent now stays out of batches: there it could neither give way nor be overtaken.
        captures = self._passage.captures and not self._lacks_budget
        while self._spool.freeze_batch(now, captures=captures) is not None:
            pass

    # -- the link --------------------------------------------------------------------------------------------

    def _talk(self, steps: Mapping[str, Callable[[], None]]) -> bool:
        """Attempt the steps in order; return whether the link bore them."""
        try:
            for name, step in steps.items():
                self._attempt(name, step)
        except StorageError as exc:
            self._link_failed(exc)
            return False
        return True

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
        delay_s = decide_wait_s(self._policy.backoff, exc, failures=1, rng=self._rng)
        self._refused[name] = self._monotonic() + delay_s

    def _link_failed(self, exc: StorageError) -> None:
        self._failures += 1
        self._report.count_error(type(exc).__name__)
        if self._link_up is not False:
            log.warning("the link to the bucket is down: %s", exc)
        self._link_up = False
        delay_s = decide_wait_s(self._policy.backoff, exc, failures=self._failures, rng=self._rng)
        self._retry_at_s = self._monotonic() + delay_s

    def _link_answered(self) -> None:
        if self._link_up is False:
            log.info("the link to the bucket is back after %d failed attempt(s)", self._failures)
        self._link_up = True
        self._failures = 0

    # -- steps -----------------------------------------------------------------------------------------------

    def _poll_acknowledgement(self) -> None:
        waiting = frozenset(batch.name for batch in self._spool.unacknowledged())
        if not waiting:
            return
        # What was read may say more than it did about batches that are new since.
        tag = self._ack_tag if waiting <= self._ack_for else None
        try:
            blob = self._store.get_if_changed(paths.ack_key(self._spool.device_id), tag, max_bytes=MAX_ACK_BYTES)
        except BlobNotFoundError:
            return
        if blob is None:
            return
        acknowledgement = Acknowledgement.from_bytes(blob.data)
        if acknowledgement.device_id != self._spool.device_id:
            raise ContractError(f"the acknowledgement is for {acknowledgement.device_id}")
        self._spool.acknowledge(acknowledgement.through)
        self._ack_tag, self._ack_for = blob.tag, waiting

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
        raw = state.to_bytes()
        self._uplink.put(paths.reported_key(self._spool.device_id), raw, content_type="application/json")
        interval_s = slow_down_s(self._bandwidth(), self._policy.heartbeat_s, len(raw))
        self._heartbeat_at_s = self._monotonic() + jittered_s(interval_s, self._rng)

    def _upload(self, now: datetime) -> None:
        self._lacks_budget = False
        for batch in self._uploader.due(self._passage)[: self._policy.batches_per_turn]:
            outcome = self._uploader.send(batch, self._stop.is_set)
            if outcome is Outcome.SENT:
                self._sent_s = self._monotonic()
            if outcome is Outcome.NO_BUDGET:
                self._lacks_budget = True
            if outcome is Outcome.UNREAD:
                self._report.count_error(SpoolUnavailableError.__name__)
            if outcome in {Outcome.NO_BUDGET, Outcome.STOPPED}:
                return
            self._attempt("heartbeat", lambda: self._heartbeat(now))
