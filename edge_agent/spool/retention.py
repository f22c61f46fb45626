"""What to give up when the spool is full. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from curate.contracts.capture import Arm

ORDINARY = 0
PRECIOUS = 1


@dataclass(frozen=True)
class Held:
    """A spooled capture as retention sees it."""

    sequence: int
    size_bytes: int
    value: int


@dataclass(frozen=True)
class EvictionPlan:
    """Whether the newcomer may come in, and whom it replaces, in that order."""

    admit: bool
    evict: tuple[int, ...] = ()


def capture_value(arms: Iterable[Arm]) -> int:
    """Return how much a capture is worth against others in a full spool.

    The random arm keeps every number honest and a dismissal is a person's minute; more uncertain
    frames will come.
    """
    return PRECIOUS if any(arm in {Arm.RANDOM, Arm.DISMISSED} for arm in arms) else ORDINARY


def plan_eviction(
    waiting: Iterable[Held], *, used_bytes: int, max_bytes: int, incoming_bytes: int, incoming_value: int
) -> EvictionPlan:
    """Decide how a newcomer of `incoming_bytes` fits under `max_bytes`.

    Evicts only captures worth no more than the newcomer, the least valuable first, then the oldest.
    `waiting` must leave out what a frozen batch names. Refuses, evicting nothing, when that would
    not make enough room.
    """
    excess = used_bytes + incoming_bytes - max_bytes
    if excess <= 0:
        return EvictionPlan(admit=True)
    evict: list[int] = []
    for held in sorted(waiting, key=lambda h: (h.value, h.sequence)):
        if held.value > incoming_value:
            break
        evict.append(held.sequence)
        excess -= held.size_bytes
        if excess <= 0:
            return EvictionPlan(admit=True, evict=tuple(evict))
    return EvictionPlan(admit=False)
