"""A pool in pieces and a bucket, for tests of sharded selection: everything that crosses between workers is pickled."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np

from curate.selection.base import CandidatePool
from curate.selection.shard_work import Open, Workplace

T = TypeVar("T")
R = TypeVar("R")


@dataclass
class Blobs:
    """An exchange in memory."""

    held: dict[str, bytes] = field(default_factory=dict)
    written: int = 0

    def put(self, key: str, data: bytes) -> None:
        """Write a blob."""
        self.written += 1
        self.held[key] = data

    def get(self, key: str) -> bytes:
        """Read a blob."""
        return self.held[key]

    def delete(self, key: str) -> None:
        """Remove a blob."""
        self.held.pop(key, None)


@dataclass(frozen=True)
class Pieces:
    """A pool whose row i lies in part i modulo `count`."""

    pool: CandidatePool
    count: int

    def parts(self) -> list[int]:
        """Their numbers."""
        return list(range(self.count))

    def read(self, part: int) -> CandidatePool:
        """One of them."""
        return self.pool.take(np.arange(part, len(self.pool), self.count))

    def pick(self, ids: Sequence[str]) -> CandidatePool:
        """Single rows, in reverse order."""
        row_of = {name: row for row, name in enumerate(self.pool.ids)}
        return self.pool.take([row_of[name] for name in reversed(ids)])


_OPEN: dict[int, Workplace] = {}


def open_pieces(pool: CandidatePool, count: int, blobs: Blobs | None = None) -> Open:
    """What workers open; in this process, so that all reach the same blobs."""
    number = len(_OPEN)
    _OPEN[number] = Workplace(Pieces(pool, count), blobs or Blobs())
    return partial(_look_up, number)


def _look_up(number: int) -> Workplace:
    return _OPEN[number]


def run_pickled(work: Callable[[T], R], tasks: Sequence[T]) -> Iterable[R]:
    """Do each task as a worker elsewhere would: nothing is shared but what can travel."""

    def there(value: Any) -> Any:
        return pickle.loads(pickle.dumps(value))

    return [there(there(work)(there(task))) for task in tasks]
