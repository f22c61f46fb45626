"""The device's running totals. Only sums are stored, so the ledger's laws cannot be broken by a missed decrement."""

from __future__ import annotations

import threading
from typing import Any, Self

from pydantic import Field

from curate.contracts.document import Document
from curate.contracts.telemetry import DeviceCounters


class Totals(Document):
    """What the device has counted over its life; also used for the difference one event makes.

    Everything only grows. `frames_seen`, `pending` and `feedback_pending` follow from the rest.
    """

    frames_inferred: int = Field(default=0, ge=0)
    frames_skipped: dict[str, int] = Field(default_factory=dict)
    bytes_seen: int = Field(default=0, ge=0)
    selected: int = Field(default=0, ge=0)
    captured: dict[str, int] = Field(default_factory=dict)
    dropped: dict[str, int] = Field(default_factory=dict)
    spooled: int = Field(default=0, ge=0)
    evicted: int = Field(default=0, ge=0)
    evicted_by: dict[str, int] = Field(default_factory=dict)
    """Always told together with `evicted`: see `eviction`."""
    acknowledged: int = Field(default=0, ge=0)
    uploaded: int = Field(default=0, ge=0)
    bytes_uploaded: int = Field(default=0, ge=0)
    feedback_spooled: int = Field(default=0, ge=0)
    feedback_acknowledged: int = Field(default=0, ge=0)
    feedback_given_up: dict[str, int] = Field(default_factory=dict)

    def plus(self, other: Totals) -> Totals:
        """Return the sum, field by field and key by key."""
        # Sums of checked numbers need no check; most of a difference is nothing, and this runs at every capture.
        grown = {name: _sum(getattr(self, name), value) for name, value in other.__dict__.items() if value}
        return self.model_copy(update=grown) if grown else self

    @classmethod
    def eviction(cls, reason: str, count: int) -> Self:
        """Return the difference that giving up `count` spooled captures makes."""
        return cls(evicted=count, evicted_by={reason: count} if count else {})

    @classmethod
    def giving_up(cls, reason: str, count: int) -> Self:
        """Return the difference that giving up `count` spooled verdicts makes."""
        return cls(feedback_given_up={reason: count} if count else {})

    @property
    def pending(self) -> int:
        """Captures that must still lie in the spool."""
        return self.spooled - self.acknowledged - self.evicted

    @property
    def feedback_pending(self) -> int:
        """Verdicts that must still lie in the spool."""
        return self.feedback_spooled - self.feedback_acknowledged - sum(self.feedback_given_up.values())

    def counters(self) -> DeviceCounters:
        """Return the wire form, with what follows from the totals filled in."""
        return DeviceCounters(
            **self.model_dump(),
            frames_seen=self.frames_inferred + sum(self.frames_skipped.values()),
            pending=self.pending,
            feedback_pending=self.feedback_pending,
        )


def _sum(left: Any, right: Any) -> Any:
    if isinstance(left, dict):
        return {key: left.get(key, 0) + right.get(key, 0) for key in (*left, *(k for k in right if k not in left))}
    return left + right


class Ledger:
    """Thread-safe holder of the totals. The spool makes them durable; whoever sees an event adds it once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals = Totals()
        # What happens at every frame is counted in plain numbers and becomes a document when somebody asks.
        self._inferred = 0
        self._bytes_seen = 0
        self._skipped: dict[str, int] = {}

    def frame_inferred(self, encoded_bytes: int) -> None:
        """Count a frame the model answered; `encoded_bytes` is what uploading it would have cost."""
        with self._lock:
            self._inferred += 1
            self._bytes_seen += encoded_bytes

    def frame_skipped(self, reason: str, count: int = 1) -> None:
        """Count frames the model never saw. Call either this or `frame_inferred`, once a frame."""
        with self._lock:
            self._skipped[reason] = self._skipped.get(reason, 0) + count

    def add(self, change: Totals) -> None:
        """Add one event's difference."""
        with self._lock:
            self._totals = self._totals.plus(change)

    def totals(self) -> Totals:
        """Return the totals of this moment."""
        with self._lock:
            if self._inferred or self._skipped:
                frames = Totals(
                    frames_inferred=self._inferred, bytes_seen=self._bytes_seen, frames_skipped=self._skipped
                )
                self._totals = self._totals.plus(frames)
                self._inferred, self._bytes_seen, self._skipped = 0, 0, {}
            return self._totals

    def snapshot(self) -> DeviceCounters:
        """Return the counters of this moment, in their wire form."""
        return self.totals().counters()
