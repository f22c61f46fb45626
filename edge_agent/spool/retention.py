"""What a capture is worth, what a full spool gives up for a newcomer, and what it sends first. Pure."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from curate.contracts.capture import Arm
from curate.contracts.device_settings import RetentionSpec

HALF_LIFE_CAPTURES: Final = 10_000
"""So many captures later one is worth half as much against newer ones. Counted in captures, because a device's clock
may be wrong and order must not depend on it."""
STEADY_WORTH: Final = 1.0
"""Of every capture that the random arm kept, whatever is in it: to prefer some would make its numbers lie."""
SECOND_REASON_WORTH: Final = 0.25
_LEAST_WORTH: Final = 0.01
_MANY: Final = 64


class Stake(Enum):
    """Who would miss the capture: what the floors are counted by. A capture has one stake."""

    RANDOM = "random"
    DISMISSED = "dismissed"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Held:
    """A spooled capture as retention sees it."""

    sequence: int
    size_bytes: int
    stake: Stake = Stake.OTHER
    worth: float = STEADY_WORTH
    """When it was new."""

    @property
    def rank(self) -> tuple[float, int]:
        """Its place when something must go: the lowest goes first.

        Worth halves with every `HALF_LIFE_CAPTURES`. Counting the age from a fixed start instead of from now gives the
        same order and never has to be computed anew (G. Cormode et al., "Forward Decay", ICDE 2009, section III).
        """
        return math.log2(max(self.worth, _LEAST_WORTH)) + self.sequence / HALF_LIFE_CAPTURES, self.sequence

    @property
    def turn(self) -> tuple[float, int]:
        """Its place in the order of sending: the most valuable first, then the oldest."""
        return -self.worth, self.sequence


def weigh(arms: Iterable[Arm], scores: Mapping[str, float]) -> tuple[Stake, float]:
    """Return what the kept capture is to be counted by, and its worth when new.

    `scores` are the prediction's: each up to 1 and higher when the model is less sure or has seen less like it. The
    highest counts. A person's dismissal is worth more than any score; each further reason adds a little.
    """
    kept = frozenset(arms)
    if Arm.RANDOM in kept:
        return Stake.RANDOM, STEADY_WORTH
    best = max((min(max(score, 0.0), 1.0) for score in scores.values()), default=0.5)
    further = SECOND_REASON_WORTH * max(0, len(kept) - 1)
    if Arm.DISMISSED in kept:
        return Stake.DISMISSED, 1.0 + best + further
    return Stake.OTHER, best + further


class Ordered:
    """Captures in the order of a key, each found in O(log n) steps."""

    def __init__(self, key: Callable[[Held], tuple[float, int]]) -> None:
        self._key = key
        self._items: list[Held] = []

    def update(self, captures: Sequence[Held]) -> None:
        """Put each in its place; many are sorted in at once."""
        if len(captures) > _MANY:
            self._items = sorted([*self._items, *captures], key=self._key)
        else:
            for held in captures:
                bisect.insort(self._items, held, key=self._key)

    def discard(self, held: Held) -> None:
        """Take it out, if it is there."""
        at = bisect.bisect_left(self._items, self._key(held), key=self._key)
        if at < len(self._items) and self._items[at] == held:
            del self._items[at]

    def __iter__(self) -> Iterator[Held]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


@dataclass(frozen=True)
class Capacity:
    """How much the spool may hold, and what of it is kept for whom."""

    max_bytes: int
    floors: Mapping[Stake, float]
    """Bytes."""

    @classmethod
    def of(cls, max_bytes: int, spec: RetentionSpec) -> Capacity:
        """Return the capacity with the floors of `spec`."""
        floors = {Stake.RANDOM: spec.random_floor * max_bytes, Stake.DISMISSED: spec.dismissed_floor * max_bytes}
        return cls(max_bytes, floors | {Stake.OTHER: 0.0})


@dataclass(frozen=True)
class EvictionPlan:
    """Whether the newcomer may come in, and whom it replaces, in that order."""

    admit: bool
    evict: tuple[Held, ...] = ()
    spare_bytes: int = field(default=0, compare=False)
    """By so much the newcomer may be larger than was thought, and nothing more need go."""


def plan_eviction(
    waiting: Mapping[Stake, Iterable[Held]],
    held_bytes: Mapping[Stake, int],
    incoming: Held,
    capacity: Capacity,
) -> EvictionPlan:
    """Decide how `incoming` fits.

    `waiting` gives, lowest rank first, what may be given up: not what a frozen batch names. `held_bytes` counts that
    too. What ranks lowest goes first, of those whose stake stays at its floor or above without it, and of the
    newcomer's own kind. It must outrank what it replaces. A newcomer whose stake is below its floor is owed the room:
    any other makes it, of whatever rank. Refuses, giving up nothing, when all that would not make enough.
    """
    excess = sum(held_bytes.values()) + incoming.size_bytes - capacity.max_bytes
    if excess <= 0:
        return EvictionPlan(admit=True, spare_bytes=-excess)
    left = dict(held_bytes)
    owed = left[incoming.stake] + incoming.size_bytes <= capacity.floors[incoming.stake]
    queues: dict[Stake, Iterator[Held]] = {stake: iter(queue) for stake, queue in waiting.items()}
    heads = {stake: next(queue, None) for stake, queue in queues.items()}
    evict: list[Held] = []
    while excess > 0:
        spare = [
            head
            for stake, head in heads.items()
            if head and stake is not incoming.stake and left[stake] - head.size_bytes >= capacity.floors[stake]
        ]
        own = heads.get(incoming.stake)
        if own and not (owed and spare):
            spare.append(own)
        lowest = min(spare, key=lambda held: held.rank, default=None)
        if lowest is None or not (owed or lowest.rank < incoming.rank):
            return EvictionPlan(admit=False)
        evict.append(lowest)
        excess -= lowest.size_bytes
        left[lowest.stake] -= lowest.size_bytes
        heads[lowest.stake] = next(queues[lowest.stake], None)
    return EvictionPlan(admit=True, evict=tuple(evict), spare_bytes=-excess)


def choose_to_send(by_turn: Iterable[Held], by_age: Sequence[int], *, count: int, oldest_share: float) -> list[int]:
    """Return up to `count` sequences for a batch, ascending: a share of the oldest so that nothing waits for ever, and
    beside them the most valuable."""
    oldest = by_age[: max(1, round(count * oldest_share))] if count else []
    chosen = set(oldest)
    for held in by_turn:
        if len(chosen) >= count:
            break
        chosen.add(held.sequence)
    return sorted(chosen)
