"""What the agent remembers of recent frames: small records for pollers, and frames that can still be captured.

Frames are held encoded, several times smaller than pixels (32x32: about 1 kB against 3 kB; 1080p: 0.4 MB against 6 MB);
the JPEG of a capture is made only for the few that are kept. Answers are held as the reader gave them: boxes take a
fraction of the memory of their wire document, and most are never asked for. Everything here is lost at a restart;
feedback then travels without its frame.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from datetime import datetime
from itertools import islice
from typing import Any, Final, NamedTuple

from curate.answers.base import Answer
from curate.answers.registry import ANSWERS
from curate.contracts.prediction import Prediction
from curate.contracts.release import ModelSpec
from edge_agent.capture.policy import CaptureDecision
from edge_agent.capture.scene_gate import GateLook

_ENTRY_OVERHEAD_BYTES: Final = 2048
"""Roughly what the objects around one held frame cost."""


class LivePrediction(NamedTuple):
    """What the model said about one frame, and what the arms decided."""

    prediction_id: str
    """Unique among all cameras and boots of the device."""
    camera_id: str
    frame_index: int
    captured_at: datetime
    monotonic_s: float
    release_id: str
    spec: ModelSpec
    answer: Answer
    """Without embeddings: thousands are remembered."""
    decision: CaptureDecision
    look: GateLook | None = None
    """What the scene gate saw; None when it is off or had nothing to compare with."""
    reused_from: str | None = None
    """The prediction whose answer stands for this unchanged frame too; None for a frame the model has seen."""
    cursor: int = 0
    """Counts this process's predictions from 1, without gaps; known to the log, which tells it."""

    def to_prediction(self) -> Prediction:
        """Return the wire form."""
        return self.answer.to_prediction(self.prediction_id, self.release_id)

    def describe(self) -> dict[str, Any]:
        """Return what the API tells of the answer, as JSON values."""
        return ANSWERS[self.spec.kind].describe(self.to_prediction(), self.spec.class_names)


class HeldFrame(NamedTuple):
    """A frame that can still become a capture."""

    prediction: LivePrediction
    answer: Answer
    """The prediction's, with embeddings."""
    encoded: bytes
    """PNG or JPEG; see `Frame.encoded`."""
    may_be_kept: bool = True
    """False when it was taken while privacy let nothing be kept."""

    @property
    def size_bytes(self) -> int:
        """Memory it takes, roughly."""
        return len(self.encoded) + self.answer.size_bytes + _ENTRY_OVERHEAD_BYTES

    def to_prediction(self) -> Prediction:
        """Return the wire form."""
        return self.answer.to_prediction(self.prediction.prediction_id, self.prediction.release_id)


def _numbered(known: tuple[int, LivePrediction] | None) -> LivePrediction | None:
    return None if known is None else known[1]._replace(cursor=known[0])


class FrameRing:
    """Recent frames that no arm has kept yet, bounded by bytes; the oldest go first. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._frames: OrderedDict[str, tuple[HeldFrame, int]] = OrderedDict()
        """With their sizes in bytes."""
        self._used_bytes = 0

    def put(self, frame: HeldFrame) -> None:
        """Hold the newest frame."""
        size_bytes = frame.size_bytes
        with self._lock:
            self._frames[frame.prediction.prediction_id] = (frame, size_bytes)
            self._used_bytes += size_bytes
            while self._used_bytes > self._max_bytes and self._frames:
                _, (_, freed_bytes) = self._frames.popitem(last=False)
                self._used_bytes -= freed_bytes

    def claim(self, prediction_id: str) -> HeldFrame | None:
        """Take the frame out, so that two dismissals cannot capture it twice; None when it is not held."""
        with self._lock:
            frame, size_bytes = self._frames.pop(prediction_id, (None, 0))
            self._used_bytes -= size_bytes
            return frame

    def find(self, prediction_id: str) -> HeldFrame | None:
        """Return the frame and go on holding it; None when it is not held."""
        with self._lock:
            return self._frames.get(prediction_id, (None, 0))[0]

    @property
    def used_bytes(self) -> int:
        """Memory held now."""
        with self._lock:
            return self._used_bytes

    def __len__(self) -> int:
        """Return the number of frames held."""
        with self._lock:
            return len(self._frames)


class PredictionLog:
    """The newest predictions in order, bounded by count, readable from a cursor. Thread-safe."""

    def __init__(self, max_predictions: int) -> None:
        self._max = max_predictions
        self._lock = threading.Lock()
        self._order: deque[str] = deque()
        self._by_id: dict[str, tuple[int, LivePrediction]] = {}
        self._newest: dict[str, tuple[int, LivePrediction]] = {}
        self._newest_cursor = 0

    def append(self, prediction: LivePrediction) -> None:
        """Remember the next prediction of some camera; its cursor follows the one before."""
        with self._lock:
            self._newest_cursor = cursor = self._newest_cursor + 1
            self._order.append(prediction.prediction_id)
            self._by_id[prediction.prediction_id] = self._newest[prediction.camera_id] = (cursor, prediction)
            if len(self._order) > self._max:
                del self._by_id[self._order.popleft()]

    def get(self, prediction_id: str) -> LivePrediction | None:
        """Return the prediction, or None when it is unknown or too old."""
        with self._lock:
            return _numbered(self._by_id.get(prediction_id))

    def newest(self, camera_id: str) -> LivePrediction | None:
        """Return the newest prediction of a camera, as it was when it came; None before the first."""
        with self._lock:
            return _numbered(self._newest.get(camera_id))

    def after(self, cursor: int, limit: int) -> list[LivePrediction]:
        """Return up to `limit` predictions with a higher cursor, oldest first."""
        with self._lock:
            oldest = self._newest_cursor - len(self._order) + 1
            start = max(0, cursor + 1 - oldest)
            # Pollers read the end: walking from there keeps the lock short.
            wanted = max(0, len(self._order) - start)
            ids = list(islice(reversed(self._order), wanted))[::-1][:limit]
            found = [self._by_id[prediction_id] for prediction_id in ids]
        return [prediction._replace(cursor=number) for number, prediction in found]

    def update_decision(self, prediction_id: str, decision: CaptureDecision) -> None:
        """Say that a later event changed what the arms decided."""
        with self._lock:
            if (known := self._by_id.get(prediction_id)) is not None:
                self._by_id[prediction_id] = (known[0], known[1]._replace(decision=decision))

    @property
    def newest_cursor(self) -> int:
        """Cursor of the newest prediction; 0 before the first."""
        with self._lock:
            return self._newest_cursor
