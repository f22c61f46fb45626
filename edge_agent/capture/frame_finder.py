"""Finds the picture behind a prediction, wherever on the device it still lies."""

from __future__ import annotations

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

    def __init__(self, ring: FrameRing, keeper: Keeper, store: ImageStore) -> None:
        self._ring = ring
        self._keeper = keeper
        self._store = store

    def find(self, prediction_id: str) -> FoundImage | None:
        """Return the frame, or None when the device has it no more.

        Raises:
            AgentError: the disk refused; it may be there.
        """
        held = self._ring.find(prediction_id) or self._keeper.find(prediction_id)
        encoded = held.encoded if held else self._store.find_image(prediction_id)
        return None if encoded is None else FoundImage(encoded)
