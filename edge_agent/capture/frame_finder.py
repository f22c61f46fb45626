"""Finds the picture behind a prediction, wherever on the device it still lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from edge_agent.capture.frame_ring import FrameRing
from edge_agent.capture.keeper import Keeper

_PNG_START: Final = b"\x89PNG"


class ImageStore(Protocol):
    """Where captured frames lie; the spool."""

    def find_image(self, prediction_id: str) -> bytes | None:
        """Return the JPEG of that prediction's capture, or None when there is none (any more).

        Raises:
            AgentError: the disk refused; it may be there.
        """


@dataclass(frozen=True, slots=True)
class FoundImage:
    """A frame as it is held."""

    encoded: bytes
    """PNG or JPEG."""

    @property
    def media_type(self) -> str:
        """Its media type, told from its first bytes."""
        return "image/png" if self.encoded.startswith(_PNG_START) else "image/jpeg"


class FrameFinder:
    """Looks in the ring, among the frames on their way to the disk, and on the disk. Thread-safe."""

    def __init__(
        self, ring: FrameRing, keeper: Keeper, store: ImageStore, redact: Callable[[str, bytes], bytes] | None = None
    ) -> None:
        """`redact` takes a camera's name and a picture, and returns the picture as it may be shown."""
        self._ring = ring
        self._keeper = keeper
        self._store = store
        self._redact = redact

    def find(self, prediction_id: str) -> FoundImage | None:
        """Return the frame, or None when the device has it no more.

        Raises:
            AgentError: the disk refused; it may be there. Or the picture cannot be redacted, so nobody sees it.
        """
        held = self._ring.find(prediction_id) or self._keeper.find(prediction_id)
        if held is None:
            stored = self._store.find_image(prediction_id)
            return None if stored is None else FoundImage(stored)
        # What lies on the disk was redacted before it got there; what is in memory was not.
        redact = self._redact
        return FoundImage(held.encoded if redact is None else redact(held.prediction.camera_id, held.encoded))
