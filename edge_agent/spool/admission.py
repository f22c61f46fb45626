"""How captures come into the spool, and what gives way to them: one commit for both, and for several at once.

Each capture is a file of its own with its own fsync; the renames of a group share the folder's, as the transactions of
a database share a flush of its log (D. Gawlick, "Processing Hot Spots in High Performance Systems", COMPCON 1985).
Nobody is told that a capture is kept before that. A power cut in between may leave some of a group and not others:
each file names everything that left before it and counts everything that came, so whichever is the newest tells the
truth, and those missing below it count as evicted, `lost`.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from curate.contracts.capture import CaptureRecord
from curate.contracts.device_settings import RetentionSpec
from edge_agent.clock import Clock
from edge_agent.durable import DISK_FULL_CODES, seal, sealed_bytes
from edge_agent.ledger import Ledger, Totals
from edge_agent.spool.files import CaptureHeader, SpoolFolder
from edge_agent.spool.index import SpoolIndex
from edge_agent.spool.journal import SpoolJournal
from edge_agent.spool.limits import SpoolLimits
from edge_agent.spool.retention import Capacity, EvictionPlan, Held, Stake, plan_eviction, weigh
from edge_agent.spool.stamps import stamp

log = logging.getLogger(__name__)

GAVE_WAY = "gave_way"


@dataclass(frozen=True, slots=True)
class _Newcomer:
    """A capture that may come in: what is to be written and counted then."""

    held: Held
    prediction_id: str
    raw: bytes
    replaces: tuple[Held, ...]
    change: Totals


class _Group:
    """Captures that one commit makes durable, and the index as it will be after it."""

    def __init__(self, index: SpoolIndex) -> None:
        self.joined: list[tuple[Held, str]] = []
        """With their prediction ids."""
        self.paths: list[Path] = []
        """Where they are staged."""
        self.replaced: dict[int, Held] = {}
        self.change = Totals()
        self.held_bytes = dict(index.held_bytes)
        self._index = index

    def add(self, newcomer: _Newcomer, path: Path) -> None:
        """Let it join."""
        self.paths.append(path)
        self.joined.append((newcomer.held, newcomer.prediction_id))
        self.held_bytes[newcomer.held.stake] += newcomer.held.size_bytes
        for held in newcomer.replaces:
            self.replaced[held.sequence] = held
            self.held_bytes[held.stake] -= held.size_bytes
        self.change = self.change.plus(newcomer.change)

    def evictable(self) -> Mapping[Stake, Iterable[Held]]:
        """Return what may be given up, of each stake the lowest rank first; those that joined are among them."""
        lines = self._index.evictable()
        return {stake: self._line(stake, line) for stake, line in lines.items()} if self.joined else lines

    def _line(self, stake: Stake, line: Iterable[Held]) -> Iterator[Held]:
        staying = (held for held in line if held.sequence not in self.replaced)
        joined = sorted((held for held, _ in self.joined if held.stake is stake), key=lambda held: held.rank)
        yield from heapq.merge(staying, joined, key=lambda held: held.rank)

    def would_lose(self, newcomer: _Newcomer) -> bool:
        """Return whether one that joined would have to go for it."""
        joined = {held.sequence for held, _ in self.joined}
        return any(held.sequence in joined for held in newcomer.replaces)


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

    def admit(self, captures: Sequence[tuple[CaptureRecord, bytes]]) -> list[str | None]:
        """Keep captures, durably, each as if it came alone; return for each None, or why it may not come in."""
        reasons: list[str | None] = []
        while len(reasons) < len(captures):
            reasons += self._admit_group(captures[len(reasons) :])
        return reasons

    def _admit_group(self, captures: Sequence[tuple[CaptureRecord, bytes]]) -> list[str | None]:
        """Admit the first, and as many of the next as can share its commit.

        A group ends before a capture that is refused, by plan or by the disk, or that would replace one of the group:
        after the commit, when there is more room, it may fare better.
        """
        group = _Group(self._index)
        reasons: list[str | None] = []
        for record, jpeg in captures:
            try:
                newcomer = self._prepare(group, record, jpeg)
                if group.joined and (newcomer is None or group.would_lose(newcomer)):
                    break
                if newcomer is None:
                    reasons.append(self._refusal(len(jpeg)))
                else:
                    self._stage(group, newcomer)
                    reasons.append(None)
            except OSError as exc:
                if group.joined:
                    break
                reasons.append(_describe(exc))
        failure = self._commit(group)
        return [reason or failure for reason in reasons]

    def _stage(self, group: _Group, newcomer: _Newcomer) -> None:
        path = self._folder.capture_path(newcomer.held.sequence)
        self._journal.stage_new(path, newcomer.raw)
        group.add(newcomer, path)

    def _commit(self, group: _Group) -> str | None:
        if not group.joined:
            return None
        try:
            self._journal.place_new(
                group.paths,
                replaces=[self._folder.capture_path(sequence) for sequence in group.replaced],
            )
        except OSError as exc:
            return _describe(exc)
        self._index.remove_captures(group.replaced)
        self._index.add_captures(group.joined, since_s=self._monotonic())
        self._ledger.add(group.change)
        return None

    def _prepare(self, group: _Group, record: CaptureRecord, jpeg: bytes) -> _Newcomer | None:
        """Return what is to be written for the capture; None when it may not come in.

        Coming and giving way are one write: the file names those that leave, so its size depends on the plan.
        """
        record = stamp(record, self._clock.state())
        arms = [outcome.arm for outcome in record.arms if outcome.kept]
        stake, worth = weigh(arms, record.prediction.scores)
        arrival = change = Totals(selected=1, spooled=1, captured={arm.value: 1 for arm in arms})
        before = self._ledger.totals().plus(group.change)
        header = self._make_header(group, record, before.plus(change))
        named: tuple[Held, ...] = ()
        held = Held(before.spooled + 1, sealed_bytes(header, len(jpeg)), stake, worth)
        while True:
            plan = self._plan_eviction(group, held)
            if not plan.admit:
                return None
            if plan.evict != named:
                named = plan.evict
                change = arrival.plus(Totals.eviction(GAVE_WAY, len(named)))
                header = self._make_header(group, record, before.plus(change), named)
            planned_bytes, held = held.size_bytes, replace(held, size_bytes=sealed_bytes(header, len(jpeg)))
            if held.size_bytes <= planned_bytes + plan.spare_bytes:
                break
        raw = seal(header, jpeg, payload_sha256=record.image.sha256)  # hashed by whoever encoded it
        return _Newcomer(held, record.prediction.prediction_id, raw, named, change)

    def _make_header(self, group: _Group, record: CaptureRecord, totals: Totals, evict: Sequence[Held] = ()) -> bytes:
        leaving = [self._folder.capture_path(sequence) for sequence in group.replaced]
        leaving += [self._folder.capture_path(held.sequence) for held in evict]
        header = CaptureHeader(
            revision=self._journal.next_revision(),
            totals=totals,
            removing=self._journal.leaving(leaving),
            record=record,
        )
        return header.to_bytes()

    def _plan_eviction(self, group: _Group, newcomer: Held) -> EvictionPlan:
        max_bytes = self._limits.max_bytes
        if self._is_disk_short(newcomer.size_bytes):
            # Others filled the disk. A newcomer may take the place of its like, and nothing is given up for others.
            max_bytes = min(max_bytes, sum(group.held_bytes.values()))
        capacity = Capacity.of(max_bytes, self._retention())
        return plan_eviction(group.evictable(), group.held_bytes, newcomer, capacity)

    def _is_disk_short(self, incoming_bytes: int) -> bool:
        return self._folder.free_bytes() - incoming_bytes < self._limits.min_free_bytes

    def _refusal(self, incoming_bytes: int) -> str:
        return "disk_full" if self._is_disk_short(incoming_bytes) else "spool_full"


def _describe(exc: OSError) -> str:
    log.warning("a capture was dropped: %s", exc)
    return "disk_full" if exc.errno in DISK_FULL_CODES else "disk_error"
