"""How a capture comes into the spool, and what gives way to it: one durable write for both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from curate.contracts.capture import CaptureRecord
from curate.contracts.device_settings import RetentionSpec
from edge_agent.clock import Clock
from edge_agent.durable import seal
from edge_agent.ledger import Ledger, Totals
from edge_agent.spool.files import CaptureHeader, SpoolFolder
from edge_agent.spool.index import SpoolIndex
from edge_agent.spool.journal import SpoolJournal
from edge_agent.spool.limits import SpoolLimits
from edge_agent.spool.retention import Capacity, EvictionPlan, Held, plan_eviction, weigh
from edge_agent.spool.stamps import stamp

GAVE_WAY = "gave_way"


class Admission:
    """Not thread-safe: the spool calls it under its lock."""

    def __init__(
        self,
        folder: SpoolFolder,
        index: SpoolIndex,
        journal: SpoolJournal,
        ledger: Ledger,
        limits: SpoolLimits,
        *,
        clock: Clock,
        monotonic: Callable[[], float],
        retention: Callable[[], RetentionSpec],
    ) -> None:
        """`retention` is asked at each decision."""
        self._folder = folder
        self._index = index
        self._journal = journal
        self._ledger = ledger
        self._limits = limits
        self._clock = clock
        self._monotonic = monotonic
        self._retention = retention

    def admit(self, record: CaptureRecord, jpeg: bytes) -> str | None:
        """Keep a capture, durably; return the reason when it may not come in.

        Raises:
            OSError: the disk refused; nothing has changed.
        """
        record = stamp(record, self._clock.state())
        arms = [outcome.arm for outcome in record.arms if outcome.kept]
        stake, worth = weigh(arms, record.prediction.scores)
        newcomer = Held(self._ledger.totals().spooled + 1, 0, stake, worth)
        change = Totals(selected=1, spooled=1, captured={arm.value: 1 for arm in arms})
        raw, replaced, change = self._make_room(newcomer, record, jpeg, change)
        if raw is None:
            return "disk_full" if self._is_disk_short(len(jpeg)) else "spool_full"
        path = self._folder.capture_path(newcomer.sequence)
        self._journal.persist_new(path, raw, replaces=[self._folder.capture_path(held.sequence) for held in replaced])
        self._index.remove_captures(held.sequence for held in replaced)
        self._index.add_capture(
            replace(newcomer, size_bytes=len(raw)),
            prediction_id=record.prediction.prediction_id,
            since_s=self._monotonic(),
        )
        self._ledger.add(change)
        return None

    def _make_room(
        self, newcomer: Held, record: CaptureRecord, jpeg: bytes, change: Totals
    ) -> tuple[bytes | None, Sequence[Held], Totals]:
        """Return the newcomer's file, whom it replaces and what to count; no file when it may not come in.

        Coming and giving way are one write: the file names those that leave, so its size depends on the plan.
        """
        raw, evicting = self._seal_capture(record, jpeg, change), change
        while True:
            size_bytes = len(raw)
            plan = self._plan_eviction(replace(newcomer, size_bytes=size_bytes))
            if not plan.admit:
                return None, (), change
            if plan.evict:
                evicting = change.plus(Totals.eviction(GAVE_WAY, len(plan.evict)))
                raw = self._seal_capture(record, jpeg, evicting, plan.evict)
            if len(raw) <= size_bytes:
                return raw, plan.evict, evicting

    def _plan_eviction(self, newcomer: Held) -> EvictionPlan:
        held_bytes = self._index.held_bytes
        max_bytes = self._limits.max_bytes
        if self._is_disk_short(newcomer.size_bytes):
            # Others filled the disk. A newcomer may take the place of its like, and nothing is given up for others.
            max_bytes = min(max_bytes, sum(held_bytes.values()))
        capacity = Capacity.of(max_bytes, self._retention())
        return plan_eviction(self._index.evictable(), held_bytes, newcomer, capacity)

    def _is_disk_short(self, incoming_bytes: int) -> bool:
        return self._folder.free_bytes() - incoming_bytes < self._limits.min_free_bytes

    def _seal_capture(self, record: CaptureRecord, jpeg: bytes, change: Totals, evict: Sequence[Held] = ()) -> bytes:
        header = CaptureHeader(
            revision=self._journal.next_revision(),
            totals=self._ledger.totals().plus(change),
            removing=self._journal.leaving([self._folder.capture_path(held.sequence) for held in evict]),
            record=record,
        )
        return seal(header.to_bytes(), jpeg)
