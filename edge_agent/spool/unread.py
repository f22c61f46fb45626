"""What the disk does not give at present: a read error is not damage, so the file stays and is tried again. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

FIRST_REST_S: Final = 10.0
LONGEST_REST_S: Final = 3600.0
_MAX_DOUBLINGS: Final = 16


@dataclass(frozen=True, slots=True)
class _Rest:
    failures: int
    until_s: float


@dataclass(frozen=True, slots=True)
class Resting:
    """Captures and feedback that are left alone for now."""

    captures: frozenset[int] = frozenset()
    feedback: frozenset[int] = frozenset()


NOTHING: Final = Resting()


@dataclass(slots=True)
class Unread:
    """Files of one kind, by number, that could not be read, and when each is tried again. Not thread-safe."""

    _rests: dict[int, _Rest] = field(default_factory=dict)

    def note(self, number: int, now_s: float) -> bool:
        """Take note of a failure to read, at a monotonic time; say whether it is the file's first."""
        known = self._rests.get(number)
        failures = 1 if known is None else known.failures + 1
        rest_s = min(LONGEST_REST_S, FIRST_REST_S * 2.0 ** min(failures - 1, _MAX_DOUBLINGS))
        self._rests[number] = _Rest(failures, now_s + rest_s)
        return known is None

    def forget(self, number: int) -> None:
        """Take note that the file was read."""
        self._rests.pop(number, None)

    def retain(self, is_held: Callable[[int], bool]) -> None:
        """Forget what has left meanwhile."""
        self._rests = {number: rest for number, rest in self._rests.items() if is_held(number)}

    def resting(self, now_s: float) -> frozenset[int]:
        """Return those that are not to be tried yet."""
        return frozenset(number for number, rest in self._rests.items() if now_s < rest.until_s)

    def __len__(self) -> int:
        """Return how many could not be read the last time."""
        return len(self._rests)
