"""What the spool holds, in memory. No file is touched here; the spool keeps both in step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import islice

from edge_agent.spool.files import Batch, Receipt
from edge_agent.spool.retention import Held, Ordered, Stake, choose_to_send
from edge_agent.spool.unread import NOTHING, Resting

LONG_AGO = float("-inf")
REMEMBERED_PREDICTIONS = 20_000
REMEMBERED_RECEIPTS = 4096
"""Of verdicts that have left; all that are still held are remembered anyway."""


class CapturePlace(Enum):
    """Where a capture is on its way to the cloud."""

    WAITING = "waiting"
    IN_BATCH = "in_batch"
    UPLOADED = "uploaded"
    ACKNOWLEDGED = "acknowledged"
    EVICTED = "evicted"


@dataclass(frozen=True, slots=True)
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
        self.gaps: dict[str, Batch] = {}
        """Places in a boot's sequence whose batch was lost; the cloud waits there until an empty one fills each."""
        self.uploaded_batches: frozenset[str] = frozenset()
        self.uploaded_captures: frozenset[int] = frozenset()
        self.held_bytes: dict[Stake, int] = dict.fromkeys(Stake, 0)
        """Frozen captures included."""
        self._by_rank = {stake: Ordered(lambda held: held.rank) for stake in Stake}
        self._by_turn = Ordered(lambda held: held.turn)
        self._waiting: dict[int, _Waiting] = {}
        self._frozen: dict[int, Held] = {}
        self._waiting_feedback: dict[int, float] = {}
        self._frozen_feedback: set[int] = set()
        self._held_receipts: dict[int, Receipt] = {}
        self._receipts: dict[str, Receipt] = {}
        self.left_receipts: tuple[Receipt, ...] = ()
        self._predictions: dict[str, int] = {}
        self._acknowledged: dict[int, None] = {}

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
        self.add_captures([(held, prediction_id)], since_s=since_s)

    def add_captures(self, captures: Sequence[tuple[Held, str]], *, since_s: float) -> None:
        """Add captures with their prediction ids, in order of arrival."""
        for held, prediction_id in captures:
            self._waiting[held.sequence] = _Waiting(held, since_s)
            self.held_bytes[held.stake] += held.size_bytes
            self._predictions[prediction_id] = held.sequence
            if len(self._predictions) > REMEMBERED_PREDICTIONS:
                del self._predictions[next(iter(self._predictions))]
        self._line_up([held for held, _ in captures])

    def add_feedback(self, sequence: int, receipt: Receipt, *, since_s: float) -> None:
        """Add a piece of feedback."""
        self._waiting_feedback[sequence] = since_s
        self._held_receipts[sequence] = receipt
        self._receipts[receipt.feedback_id] = receipt

    def holds(self, sequence: int) -> bool:
        """Return whether the capture is held, frozen or not."""
        return sequence in self._waiting or sequence in self._frozen

    def holds_feedback(self, sequence: int) -> bool:
        """Return whether the feedback is held, frozen or not."""
        return sequence in self._waiting_feedback or sequence in self._frozen_feedback

    def remove_captures(self, sequences: Iterable[int]) -> int:
        """Forget captures, wherever they are; return how many were held."""
        removed = [self._pop_capture(sequence) for sequence in sequences]
        found = [held for held in removed if held is not None]
        for held in found:
            self.held_bytes[held.stake] -= held.size_bytes
        return len(found)

    def _pop_capture(self, sequence: int) -> Held | None:
        return self._pop_waiting(sequence) or self._frozen.pop(sequence, None)

    def _pop_waiting(self, sequence: int) -> Held | None:
        waiting = self._waiting.pop(sequence, None)
        if waiting is None:
            return None
        self._by_rank[waiting.held.stake].discard(waiting.held)
        self._by_turn.discard(waiting.held)
        return waiting.held

    def _line_up(self, captures: Sequence[Held]) -> None:
        for stake, line in self._by_rank.items():
            line.update([held for held in captures if held.stake is stake])
        self._by_turn.update(captures)

    def remove_feedback(self, sequences: Iterable[int]) -> int:
        """Forget feedback, wherever it is, as if it had never come; return how many were held."""
        found = [sequence for sequence in sequences if self.holds_feedback(sequence)]
        for sequence in found:
            self._waiting_feedback.pop(sequence, None)
            self._frozen_feedback.discard(sequence)
            if (receipt := self._held_receipts.pop(sequence, None)) is not None:
                self._receipts.pop(receipt.feedback_id, None)
        return len(found)

    def find_receipt(self, feedback_id: str) -> Receipt | None:
        """Return the receipt of feedback that is held or left lately."""
        return self._receipts.get(feedback_id)

    def receipts_after(self, departure: Departure) -> tuple[Receipt, ...]:
        """Return the receipts to remember once these have left too, oldest first."""
        leaving = (self._held_receipts[sequence] for sequence in sorted(departure.feedback))
        unique = {receipt.feedback_id: receipt for receipt in (*self.left_receipts, *leaving)}
        return tuple(unique.values())[-REMEMBERED_RECEIPTS:]

    def replace_left_receipts(self, receipts: Iterable[Receipt]) -> None:
        """Remember these of the feedback that has left, and no others."""
        held = {receipt.feedback_id: receipt for receipt in self._held_receipts.values()}
        self.left_receipts = tuple(receipts)
        self._receipts = {receipt.feedback_id: receipt for receipt in self.left_receipts} | held

    def is_remembered(self, prediction_id: str) -> bool:
        """Return whether a capture of that prediction was added lately, even if it has left since."""
        return prediction_id in self._predictions

    def find_capture(self, prediction_id: str) -> int | None:
        """Return the held capture of that prediction."""
        sequence = self._predictions.get(prediction_id)
        return sequence if sequence is not None and self.holds(sequence) else None

    def capture_place(self, prediction_id: str) -> CapturePlace | None:
        """Return where that prediction's capture is, or None when none was added lately."""
        sequence = self._predictions.get(prediction_id)
        if sequence is None:
            return None
        if sequence in self._waiting:
            return CapturePlace.WAITING
        if sequence in self._frozen:
            return CapturePlace.UPLOADED if sequence in self.uploaded_captures else CapturePlace.IN_BATCH
        return CapturePlace.ACKNOWLEDGED if sequence in self._acknowledged else CapturePlace.EVICTED

    def evictable(self) -> Mapping[Stake, Iterable[Held]]:
        """Return the captures no batch names, of each stake the lowest rank first."""
        return self._by_rank

    def has_feedback(self, resting: Resting = NOTHING) -> bool:
        """Return whether feedback waits that does not rest."""
        return any(n not in resting.feedback for n in self._waiting_feedback)

    def is_due(self, *, now_s: float, max_captures: int, max_age_s: float, resting: Resting = NOTHING) -> bool:
        """Return whether enough waits, or something has waited long enough, for a batch; what rests does not count.

        With `max_captures` 0 only feedback counts.
        """
        if max_captures and len(self._waiting) - len(resting.captures & self._waiting.keys()) >= max_captures:
            return True
        first = list(islice((s for n, s in self._waiting_feedback.items() if n not in resting.feedback), 1))
        if max_captures:
            awake = (waiting.since_s for n, waiting in self._waiting.items() if n not in resting.captures)
            first += islice(awake, 1)
        return bool(first) and now_s - min(first) >= max_age_s

    def next_to_send(
        self, *, max_captures: int, max_feedback: int, oldest_share: float, resting: Resting = NOTHING
    ) -> tuple[Sequence[int], Sequence[int]]:
        """Return the captures for a batch, the most valuable and a share of the oldest, and the oldest feedback."""
        oldest = list(islice((n for n in self._waiting if n not in resting.captures), max_captures))
        by_turn = (held for held in self._by_turn if held.sequence not in resting.captures)
        captures = choose_to_send(by_turn, oldest, count=max_captures, oldest_share=oldest_share)
        return captures, list(islice((n for n in self._waiting_feedback if n not in resting.feedback), max_feedback))

    def freeze(self, batch: Batch) -> None:
        """Add the batch and take what it names out of waiting."""
        self.batches[batch.name] = batch
        self.gaps.pop(batch.name, None)
        for sequence in batch.captures:
            if (held := self._pop_waiting(sequence)) is not None:
                self._frozen[sequence] = held
        for sequence in batch.feedback:
            if self._waiting_feedback.pop(sequence, None) is not None:
                self._frozen_feedback.add(sequence)

    def thaw(self, batch: Batch) -> None:
        """Remove the batch and leave a gap; what it named waits again, first in line.

        Whether it was uploaded stays known: then the bucket needs nothing in its place.
        """
        del self.batches[batch.name]
        self.gaps[batch.name] = replace(batch, captures=(), feedback=())
        again = {n: _Waiting(self._frozen.pop(n), LONG_AGO) for n in batch.captures if n in self._frozen}
        self._waiting = again | self._waiting
        self._line_up([waiting.held for waiting in again.values()])
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
        self._acknowledged |= dict.fromkeys(sorted(departure.captures))
        while len(self._acknowledged) > REMEMBERED_PREDICTIONS:
            del self._acknowledged[next(iter(self._acknowledged))]
        self.remove_feedback(departure.feedback)
