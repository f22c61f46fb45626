"""What became of a frame: from the model's answer to the cloud's acknowledgement."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Protocol

from edge_agent.capture.frame_ring import PredictionLog
from edge_agent.capture.keeper import Keeper
from edge_agent.spool.index import CapturePlace


class CaptureStage(StrEnum):
    """Where a frame is on its way."""

    NOT_KEPT = "not_kept"
    """No arm wanted it, so far; a dismissal still can, while the frame is held."""
    QUEUED = "queued"
    """On its way to the disk."""
    DROPPED = "dropped"
    """An arm wanted it, and it never reached the spool; the counters say why."""
    SPOOLED = "spooled"
    """Durable on the device."""
    IN_BATCH = "in_batch"
    """Durable, and part of a batch that is being sent."""
    UPLOADED = "uploaded"
    """The bucket has it; the cloud has not yet said so."""
    ACKNOWLEDGED = "acknowledged"
    """The cloud has durably taken it, and the device has let it go."""
    EVICTED = "evicted"
    """Given up for a more valuable one, or found unreadable."""
    UNKNOWN = "unknown"
    """Never seen, or longer ago than the agent remembers."""


_STAGES: Final = {
    CapturePlace.WAITING: CaptureStage.SPOOLED,
    CapturePlace.IN_BATCH: CaptureStage.IN_BATCH,
    CapturePlace.UPLOADED: CaptureStage.UPLOADED,
    CapturePlace.ACKNOWLEDGED: CaptureStage.ACKNOWLEDGED,
    CapturePlace.EVICTED: CaptureStage.EVICTED,
}


class CaptureStore(Protocol):
    """Where captures lie; the spool."""

    def capture_place(self, prediction_id: str) -> CapturePlace | None:
        """Say where the prediction's capture is, or None when there was none lately."""


class CaptureTracker:
    """Asks the keeper, the spool and the log of predictions. Thread-safe."""

    def __init__(self, keeper: Keeper, store: CaptureStore, predictions: PredictionLog) -> None:
        self._keeper = keeper
        self._store = store
        self._predictions = predictions

    def find(self, prediction_id: str) -> CaptureStage:
        """Return the stage of that prediction's frame."""
        # In this order: a frame moves from the queue to the spool, never back.
        if self._keeper.find(prediction_id) is not None:
            return CaptureStage.QUEUED
        place = self._store.capture_place(prediction_id)
        if place is not None:
            return _STAGES[place]
        prediction = self._predictions.get(prediction_id)
        if prediction is None:
            return CaptureStage.UNKNOWN
        return CaptureStage.DROPPED if prediction.decision.kept else CaptureStage.NOT_KEPT
