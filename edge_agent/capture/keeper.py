"""Turns chosen frames into durable captures, beside the capture loop: a slow disk must not delay the next frame."""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

from curate.contracts.capture import CaptureRecord, ImageRef
from curate.errors import AgentError
from edge_agent.cameras.base import Pixels, UndecodableError, decode_image, encode_jpeg
from edge_agent.capture.frame_ring import HeldFrame
from edge_agent.capture.policy import CaptureDecision
from edge_agent.ledger import Ledger, Totals
from edge_agent.report import DeviceReport

log = logging.getLogger(__name__)

_WAIT_S: Final = 1.0
"""How long the thread sleeps when there is nothing to do."""
_MOST_AT_ONCE: Final = 8
"""Captures that share one commit: the first of them waits until the last is encoded."""
BACKLOG: Final = "backlog"
UNENCODABLE: Final = "unencodable"
PRIVACY: Final = "privacy"


class CaptureSink(Protocol):
    """Where captures become durable; the spool."""

    def put(self, draft: CaptureRecord, jpeg: bytes) -> bool:
        """Store one capture and count it; False when it was dropped, and counted as that."""

    def put_all(self, captures: Sequence[tuple[CaptureRecord, bytes]]) -> list[bool]:
        """Store captures that wait together, each as `put` would; they share the disk's work."""


class Privacy(Protocol):
    """What may be kept at all. Asked for every frame, from several threads: answering takes microseconds."""

    def may_keep(self) -> bool:
        """Say whether a picture of this moment may be kept, as windows and switches stand now."""

    def redact(self, camera_id: str, pixels: Pixels) -> Pixels:
        """Return the picture, uint8 [H, W, 3] RGB, without what nobody may see; never a changed argument.

        Raises:
            AgentError: it cannot be made safe; nothing of it is kept.
        """


class AllowAll:
    """Keeps everything as it is."""

    def may_keep(self) -> bool:
        """Allow it."""
        return True

    def redact(self, camera_id: str, pixels: Pixels) -> Pixels:  # noqa: ARG002 - others need it
        """Return the picture."""
        return pixels


@dataclass(frozen=True, slots=True)
class _Queued:
    frame: HeldFrame
    settled: threading.Event


class Keeper:
    """Encodes and stores captures on a thread of its own, from a short queue. Thread-safe.

    A frame counts as selected when the sink takes or drops it; one that is still in the queue when the power goes was
    never selected, so the ledger closes. When the disk is so slow that the queue is full, the frame is dropped with
    the reason `backlog`. What privacy forbids is dropped with the reason `privacy`, before anything of it is written:
    a picture taken while nothing could be kept stays unkept, however late a person asks for it.
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
        privacy: Privacy | None = None,
    ) -> None:
        self._privacy: Privacy = privacy or AllowAll()
        self._sink = sink
        self._ledger = ledger
        self._report = report
        self._device_id = device_id
        self._boot_id = boot_id
        self._jpeg_quality = jpeg_quality
        self._max_pixels = max_pixels
        self._queue: queue.Queue[tuple[HeldFrame, CaptureDecision] | None] = queue.Queue(max_queued)
        self._unsettled: dict[str, _Queued] = {}

    def offer(self, frame: HeldFrame, decision: CaptureDecision) -> bool:
        """Queue a frame without waiting; False when it was dropped: the queue is full, or privacy forbids it."""
        if not frame.may_be_kept:
            return self._drop(PRIVACY)
        prediction_id = frame.prediction.prediction_id
        # Dict operations are atomic: the capture loop never waits for somebody who waits for its frame.
        self._unsettled[prediction_id] = _Queued(frame, threading.Event())
        try:
            self._queue.put_nowait((frame, decision))
        except queue.Full:
            self._settle(prediction_id)
            log.warning("capture dropped: the disk does not keep up", extra={"prediction_id": prediction_id})
            return self._drop(BACKLOG)
        return True

    def may_keep(self) -> bool:
        """Say whether privacy lets a picture of this moment be kept."""
        return self._privacy.may_keep()

    def keep_now(self, frame: HeldFrame, decision: CaptureDecision) -> bool:
        """Store a frame before returning; False when it was dropped."""
        drafted = self._draft(frame, decision)
        return drafted is not None and self._sink.put(*drafted)

    def _draft(self, frame: HeldFrame, decision: CaptureDecision) -> tuple[CaptureRecord, bytes] | None:
        """Return the record and the picture to store; None when it was dropped."""
        if not (frame.may_be_kept and self._privacy.may_keep()):
            self._drop(PRIVACY)
            return None
        try:
            return self._encode(frame, decision)
        except (UndecodableError, OSError, ValueError) as exc:  # ValueError: wider than a record may say, for one
            log.warning("capture cannot be encoded", extra={"error": str(exc)})
            self._drop(UNENCODABLE)
        except AgentError as exc:
            log.warning("capture cannot be redacted", extra={"error": str(exc)})
            self._drop(PRIVACY)
        return None

    def _encode(self, frame: HeldFrame, decision: CaptureDecision) -> tuple[CaptureRecord, bytes]:
        pixels = decode_image(frame.encoded, max_pixels=self._max_pixels)
        pixels = self._privacy.redact(frame.prediction.camera_id, pixels)
        jpeg = encode_jpeg(pixels, quality=self._jpeg_quality)
        height, width = pixels.shape[:2]
        image = ImageRef(
            sha256=hashlib.sha256(jpeg).hexdigest(), size_bytes=len(jpeg), width=int(width), height=int(height)
        )
        return draft_capture(frame, decision, image, device_id=self._device_id, boot_id=self._boot_id), jpeg

    def _draft_queued(self, frame: HeldFrame, decision: CaptureDecision) -> tuple[CaptureRecord, bytes] | None:
        """The same for one of several that wait: what is unforeseen costs this one only, and is counted."""
        try:
            return self._draft(frame, decision)
        except Exception as exc:
            log.exception("a capture failed")
            self._report.count_error(type(exc).__name__)
            self._drop(UNENCODABLE)
            return None

    def turn(self, wait_s: float = 0.0) -> bool:
        """Store what is queued, a few frames at most; False when none came within `wait_s`."""
        queued = self._take_queued(wait_s)
        try:
            drafts = [self._draft_queued(frame, decision) for frame, decision in queued]
            self._sink.put_all([drafted for drafted in drafts if drafted is not None])
        finally:
            for frame, _ in queued:
                self._settle(frame.prediction.prediction_id)
        return bool(queued)

    def _take_queued(self, wait_s: float) -> list[tuple[HeldFrame, CaptureDecision]]:
        """Return what is queued, up to a few; wait for the first."""
        taken: list[tuple[HeldFrame, CaptureDecision]] = []
        with suppress(queue.Empty):
            queued = self._queue.get(timeout=wait_s) if wait_s else self._queue.get_nowait()
            while queued is not None:
                taken.append(queued)
                queued = self._queue.get_nowait() if len(taken) < _MOST_AT_ONCE else None
        return taken

    def wait_settled(self, prediction_id: str, timeout_s: float) -> bool:
        """Wait until the frame of that prediction is no longer in the queue: it is durable, or dropped and counted.

        False when it still is after `timeout_s`. True at once for a frame that was never offered.
        """
        queued = self._unsettled.get(prediction_id)
        return queued is None or queued.settled.wait(timeout_s)

    @property
    def queued(self) -> int:
        """Frames on their way to the disk."""
        return len(self._unsettled)

    def find(self, prediction_id: str) -> HeldFrame | None:
        """Return a frame that is on its way to the disk."""
        queued = self._unsettled.get(prediction_id)
        return queued.frame if queued else None

    def wake(self) -> None:
        """End the sleep of the thread that stores: it has been told to stop."""
        with suppress(queue.Full):
            self._queue.put_nowait(None)

    def _drop(self, reason: str) -> bool:
        self._ledger.add(Totals(selected=1, dropped={reason: 1}))
        return False

    def _settle(self, prediction_id: str) -> None:
        self._unsettled.pop(prediction_id).settled.set()

    def run(self, stop: threading.Event) -> None:
        """Store queued frames until told to stop and the queue is empty."""
        while not (stop.is_set() and self._queue.empty()):
            try:
                self.turn(_WAIT_S)
                self._report.persist_noted()
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
        prediction=frame.to_prediction(),
        arms=list(decision.outcomes),
        inclusion_probability=decision.inclusion_probability,
        reasons=list(decision.reasons),
        reused_from=prediction.reused_from,
    )
