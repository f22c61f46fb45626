"""What answers after a start: the committed slot, the other one, the factory model; the first that proves itself.

What cannot be read now is not gone. Something else may answer meanwhile, but nothing takes its place on the disk, and
it is tried again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime

from curate.errors import AgentError, ContractError
from edge_agent.models.live_seat import LiveSeat
from edge_agent.models.slots import FACTORY, SLOT_NAMES, FactoryModel, SlotContent, Slots
from edge_agent.models.trust import raise_release_floor
from edge_agent.models.update_machine import Phase, SlotName
from edge_agent.models.updater_state import UpdateJournal

log = logging.getLogger(__name__)


class Restorer:
    """Not thread-safe: the update loop owns it."""

    def __init__(self, slots: Slots, seat: LiveSeat, journal: UpdateJournal, factory: FactoryModel) -> None:
        self._slots = slots
        self._seat = seat
        self._journal = journal
        self._factory = factory
        self._unread: list[str] = []

    @property
    def is_waiting(self) -> bool:
        """Whether something that should answer, or comes before what does, could not be read."""
        return bool(self._unread)

    def restore(self, now: datetime) -> str | None:
        """Let the best answer that this device holds, unless it does already. Never raises for a bad slot.

        Returns:
            Why the committed slot is no good any more; None while it may be.
        """
        unread: list[str] = []
        lost = None
        committed = self._find_committed(unread)
        for name in self._candidates(committed):
            try:
                content = self._seat_slot(name)
            except (AgentError, ContractError) as exc:
                if exc.retryable:
                    unread.append(str(exc))
                elif name == committed:
                    lost = str(exc)
                    self._journal.record(now, "restore_failed", None, lost)
                continue
            self._settle_on(name, content, committed, now, for_good=not unread)
            break
        else:
            self._restore_factory(committed, unread, now)
        for problem in unread:
            if problem not in self._unread:
                self._journal.record(now, "postponed", None, problem)
        self._unread = unread
        return lost

    def _find_committed(self, unread: list[str]) -> SlotName | None:
        try:
            return self._slots.committed()
        except AgentError as exc:
            unread.append(str(exc))
            return None

    def _candidates(self, committed: SlotName | None) -> Sequence[SlotName]:
        """Return the slots that may answer, best first. What an update left there that did not end well is none; while
        nobody knows what it was, only the committed one is."""
        if not self._journal.is_known:
            return [committed] if committed else []
        attempt = self._journal.state.attempt
        is_good = attempt.phase is Phase.COMMITTED
        first = committed or (attempt.slot if is_good else None)
        allowed = [name for name in SLOT_NAMES if is_good or name != attempt.slot]
        return sorted(allowed, key=lambda name: name != first)

    def _seat_slot(self, name: SlotName) -> SlotContent:
        kept = self._seat.kept
        if kept is not None and kept.name == name:
            return kept
        content = self._slots.load(name)
        self._seat.restore(content)
        return content

    def _settle_on(
        self, name: SlotName, content: SlotContent, committed: str | None, now: datetime, *, for_good: bool
    ) -> None:
        manifest = content.manifest
        floor = raise_release_floor(manifest.number, manifest.release_id, self._journal.state.floor)
        self._journal.state = self._journal.state.model_copy(update={"floor": floor})
        if name == committed or not for_good:
            return
        try:
            self._slots.commit(name)
        except AgentError as exc:
            log.warning("%s", exc)
        self._journal.record(now, "rolled_back", content.manifest.release_id, f"slot {committed} cannot be used")

    def _restore_factory(self, committed: SlotName | None, unread: list[str], now: datetime) -> None:
        if self._seat.kept is not None and self._seat.kept.name == FACTORY:
            return
        try:
            content = self._factory.load()
            if content is None:
                return
            self._seat.restore(content)
        except AgentError as exc:
            if exc.retryable:
                unread.append(str(exc))
            else:
                self._journal.record(now, "restore_failed", None, str(exc))
            return
        if committed is not None or self._journal.state.floor.release_number:
            detail = "neither slot can be used: the factory model answers"
            self._journal.record(now, "rolled_back", content.manifest.release_id, detail)
