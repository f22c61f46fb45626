"""Turns chosen frames into durable captures, beside the capture loop: a slow disk must not delay the next frame."""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
from dataclasses import dataclass
from typing import Final, Protocol

from curate.contracts.capture import CaptureRecord, ImageRef
from edge_agent.cameras.base import UndecodableError, decode_image, encode_jpeg
from edge_agent.capture.frame_ring import HeldFrame
from edge_agent.capture.policy import CaptureDecision
from edge_agent.ledger import Ledger, Totals
from edge_agent.report import DeviceReport

log = logging.getLogger(__name__)

_WAIT_S: Final = 0.2
BACKLOG: Final = "backlog"
UNENCODABLE: Final = "unencodable"


class CaptureSink(Protocol):
    """Where captures become durable; the spool."""

    def put(self, draft: CaptureRecord, jpeg: bytes) -> bool:
        """Store one capture and count it; False when it was dropped, and counted as that."""


@dataclass(frozen=True, slots=True)
class _Queued:
    frame: HeldFrame
    settled: threading.Event


class Keeper:
    """Encodes and stores captures on a thread of its own, from a short queue. Thread-safe.

    A frame counts as selected when the sink takes or drops it; one that is still in the queue when the power goes was
    never selected, so the ledger closes. When the disk is so slow that the queue is full, the frame is dropped with
    the reason `backlog`.
    """

    def __init__(
        self,
        sink: CaptureSink,
        ledger: Ledger,
        report: DeviceReport,
        *,
        device_id: str,
        boot_id: str,
        jpeg_quality: int,
        max_pixels: int,
        max_queued: int,
    ) -> None:
        self._sink = sink
        self._ledger = ledger
        self._report = report
        self._device_id = device_id
        self._boot_id = boot_id
        self._jpeg_quality = jpeg_quality
        self._max_pixels = max_pixels
        self._queue: queue.Queue[tuple[HeldFrame, CaptureDecision]] = queue.Queue(max_queued)
        self._unsettled: dict[str, _Queued] = {}

    def offer(self, frame: HeldFrame, decision: CaptureDecision) -> bool:
        """Queue a frame without waiting; False when the queue is full and the frame was dropped."""
        prediction_id = frame.prediction.prediction_id
        # Dict operations are atomic: the capture loop never waits for somebody who waits for its frame.
        self._unsettled[prediction_id] = _Queued(frame, threading.Event())
        try:
            self._queue.put_nowait((frame, decision))
        except queue.Full:
            self._settle(prediction_id)
            self._ledger.add(Totals(selected=1, dropped={BACKLOG: 1}))
            return False
        return True

    def keep_now(self, frame: HeldFrame, decision: CaptureDecision) -> bool:
        """Store a frame before returning; False when it was dropped."""
        try:
            pixels = decode_image(frame.encoded, max_pixels=self._max_pixels)
            jpeg = encode_jpeg(pixels, quality=self._jpeg_quality)
        except (UndecodableError, OSError) as exc:
            log.warning("capture cannot be encoded", extra={"error": str(exc)})
            self._ledger.add(Totals(selected=1, dropped={UNENCODABLE: 1}))
            return False
        height, width = pixels.shape[:2]
        image = ImageRef(
            sha256=hashlib.sha256(jpeg).hexdigest(), size_bytes=len(jpeg), width=int(width), height=int(height)
        )
        draft = draft_capture(frame, decision, image, device_id=self._device_id, boot_id=self._boot_id)
        return self._sink.put(draft, jpeg)

    def turn(self) -> bool:
        """Store one queued frame; False when none came for a moment."""
        try:
            frame, decision = self._queue.get(timeout=_WAIT_S)
        except queue.Empty:
            return False
        try:
            self.keep_now(frame, decision)
        finally:
            self._settle(frame.prediction.prediction_id)
        return True

    def wait_settled(self, prediction_id: str, timeout_s: float) -> bool:
        """Wait until the frame of that prediction is no longer in the queue: it is durable, or dropped and counted.

        False when it still is after `timeout_s`. True at once for a frame that was never offered.
        """
        queued = self._unsettled.get(prediction_id)
        return queued is None or queued.settled.wait(timeout_s)

    def find(self, prediction_id: str) -> HeldFrame | None:
        """Return a frame that is on its way to the disk."""
        queued = self._unsettled.get(prediction_id)
        return queued.frame if queued else None

    def _settle(self, prediction_id: str) -> None:
        self._unsettled.pop(prediction_id).settled.set()

    def run(self, stop: threading.Event) -> None:
        """Store queued frames until told to stop and the queue is empty."""
        while not (stop.is_set() and self._queue.empty()):
            try:
                self.turn()
            except Exception as exc:
                log.exception("keeper turn failed")
                self._report.count_error(type(exc).__name__)


def draft_capture(
    frame: HeldFrame, decision: CaptureDecision, image: ImageRef, *, device_id: str, boot_id: str
) -> CaptureRecord:
    """Return the wire record of one kept frame; its id carries device and boot, so no two captures share one."""
    prediction = frame.prediction
    return CaptureRecord(
        capture_id=f"{device_id}-{prediction.prediction_id}",
        camera_id=prediction.camera_id,
        frame_index=prediction.frame_index,
        captured_at=prediction.captured_at,
        boot_id=boot_id,
        monotonic_s=prediction.monotonic_s,
        image=image,
        prediction=prediction.to_prediction(),
        arms=list(decision.outcomes),
        inclusion_probability=decision.inclusion_probability,
        reasons=list(decision.reasons),
    )
