"""What the spool holds, in memory. No file is touched here; the spool keeps both in step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from edge_agent.retention import Held
from edge_agent.spool_files import Batch

LONG_AGO = float("-inf")
REMEMBERED_PREDICTIONS = 20_000


@dataclass(frozen=True)
class _Waiting:
    held: Held
    since_s: float


@dataclass(frozen=True)
class Departure:
    """Everything that leaves the device with an acknowledgement."""

    batches: tuple[Batch, ...]
    captures: frozenset[int]
    feedback: frozenset[int]
    newly_uploaded: int
    """Captures among them that were never counted as uploaded."""


class SpoolIndex:
    """Captures and feedback, waiting or frozen in a batch, in order of arrival. Not thread-safe."""

    def __init__(self) -> None:
        self.batches: dict[str, Batch] = {}
        self.uploaded_batches: frozenset[str] = frozenset()
        self.uploaded_captures: frozenset[int] = frozenset()
        self.used_bytes = 0
        self._waiting: dict[int, _Waiting] = {}
        self._frozen: dict[int, Held] = {}
        self._waiting_feedback: dict[int, float] = {}
        self._frozen_feedback: set[int] = set()
        self._predictions: dict[str, None] = {}

    @property
    def captures(self) -> int:
        """How many captures are held, frozen ones included."""
        return len(self._waiting) + len(self._frozen)

    @property
    def feedback(self) -> int:
        """How many pieces of feedback are held, frozen ones included."""
        return len(self._waiting_feedback) + len(self._frozen_feedback)

    def add_capture(self, held: Held, *, prediction_id: str, since_s: float) -> None:
        """Add a capture; `since_s` is the monotonic time of its arrival."""
        self._waiting[held.sequence] = _Waiting(held, since_s)
        self.used_bytes += held.size_bytes
        self._predictions[prediction_id] = None
        if len(self._predictions) > REMEMBERED_PREDICTIONS:
            del self._predictions[next(iter(self._predictions))]

    def add_feedback(self, sequence: int, *, since_s: float) -> None:
        """Add a piece of feedback."""
        self._waiting_feedback[sequence] = since_s

    def holds(self, sequence: int) -> bool:
        """Return whether the capture is held, frozen or not."""
        return sequence in self._waiting or sequence in self._frozen

    def remove_captures(self, sequences: Iterable[int]) -> int:
        """Forget captures, wherever they are; return how many were held."""
        removed = [self._pop_capture(sequence) for sequence in sequences]
        found = [held for held in removed if held is not None]
        self.used_bytes -= sum(held.size_bytes for held in found)
        return len(found)

    def _pop_capture(self, sequence: int) -> Held | None:
        waiting = self._waiting.pop(sequence, None)
        return waiting.held if waiting else self._frozen.pop(sequence, None)

    def remove_feedback(self, sequences: Iterable[int]) -> None:
        """Forget feedback, wherever it is."""
        for sequence in sequences:
            self._waiting_feedback.pop(sequence, None)
            self._frozen_feedback.discard(sequence)

    def is_remembered(self, prediction_id: str) -> bool:
        """Return whether a capture of that prediction was added lately, even if it has left since."""
        return prediction_id in self._predictions

    def evictable(self) -> Iterable[Held]:
        """Return the captures no batch names."""
        return (waiting.held for waiting in self._waiting.values())

    def is_due(self, *, now_s: float, max_captures: int, max_age_s: float) -> bool:
        """Return whether enough waits, or something has waited long enough, for a batch."""
        if len(self._waiting) >= max_captures:
            return True
        first = [waiting.since_s for waiting in self._waiting.values()][:1]
        first += list(self._waiting_feedback.values())[:1]
        return bool(first) and now_s - min(first) >= max_age_s

    def oldest(self, *, max_captures: int, max_feedback: int) -> tuple[Sequence[int], Sequence[int]]:
        """Return the captures and the feedback that have waited longest."""
        return list(self._waiting)[:max_captures], list(self._waiting_feedback)[:max_feedback]

    def freeze(self, batch: Batch) -> None:
        """Add the batch and take what it names out of waiting."""
        self.batches[batch.name] = batch
        for sequence in batch.captures:
            if sequence in self._waiting:
                self._frozen[sequence] = self._waiting.pop(sequence).held
        for sequence in batch.feedback:
            if self._waiting_feedback.pop(sequence, None) is not None:
                self._frozen_feedback.add(sequence)

    def thaw(self, batch: Batch) -> None:
        """Remove the batch; what it named waits again, first in line."""
        del self.batches[batch.name]
        self.uploaded_batches -= {batch.name}
        again = {n: _Waiting(self._frozen.pop(n), LONG_AGO) for n in batch.captures if n in self._frozen}
        self._waiting = again | self._waiting
        feedback = [n for n in batch.feedback if n in self._frozen_feedback]
        self._frozen_feedback.difference_update(feedback)
        self._waiting_feedback = dict.fromkeys(feedback, LONG_AGO) | self._waiting_feedback

    def not_yet_uploaded(self, batches: Iterable[Batch]) -> frozenset[int]:
        """Return the captures the batches name that were never counted as uploaded."""
        named = {sequence for batch in batches for sequence in batch.captures}
        return frozenset(named & self._frozen.keys()) - self.uploaded_captures

    def departure(self, through: Mapping[str, int]) -> Departure:
        """Return what an acknowledgement up to these sequences covers, by boot."""
        done = tuple(batch for batch in self.batches.values() if batch.sequence <= through.get(batch.boot_id, 0))
        return Departure(
            batches=done,
            captures=frozenset(n for batch in done for n in batch.captures) & self._frozen.keys(),
            feedback=frozenset(n for batch in done for n in batch.feedback) & self._frozen_feedback,
            newly_uploaded=len(self.not_yet_uploaded(done)),
        )

    def forget(self, departure: Departure) -> None:
        """Remove all of it."""
        for batch in departure.batches:
            del self.batches[batch.name]
        self.remove_captures(departure.captures)
        self.remove_feedback(departure.feedback)
