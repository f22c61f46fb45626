"""The blob store port: all that Gleaner asks of a bucket."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

STREAM_BYTES: Final = 64 * 1024
"""The largest piece of a streamed blob."""


@dataclass(frozen=True)
class BlobInfo:
    """One listed blob."""

    key: str
    size_bytes: int


@dataclass(frozen=True)
class TaggedBlob:
    """A blob as it was read, with the store's tag of these bytes; another write gives another tag."""

    data: bytes
    tag: str


class ServerClock(Protocol):
    """A clock that a store signs with and teaches, for machines whose own clock may be wrong. Thread-safe."""

    def now(self) -> datetime:
        """Return the time, as well as it is known."""

    def monotonic(self) -> float:
        """Return seconds that only grow."""

    def learn(self, server_time: datetime, *, sent_s: float, received_s: float) -> None:
        """Take note of an answer's `Date`, a whole second, and of when it was asked for and came (monotonic)."""


class BlobStore(Protocol):
    """A flat, strongly consistent key space. Every method may raise `StorageUnavailableError` (try again)
    or `AccessDeniedError` (trying again will not help)."""

    def put(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        """Write the whole blob atomically, replacing what was there."""

    def create(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        """Write only if the key is free, as far as the store can tell.

        Raises:
            BlobExistsError: the key is taken.
        """

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """Read the whole blob.

        Raises:
            BlobNotFoundError: nothing lies there.
            BlobTooLargeError: the blob is larger than `max_bytes`.
        """

    def get_if_changed(self, key: str, tag: str | None, *, max_bytes: int | None = None) -> TaggedBlob | None:
        """Read the whole blob unless it is still the one with this tag: then None, and nothing was transferred.

        Raises:
            BlobNotFoundError: nothing lies there.
            BlobTooLargeError: the blob is larger than `max_bytes`.
        """

    def stream(self, key: str, *, start: int = 0) -> Iterator[bytes]:
        """Yield the blob's bytes from `start` on, in pieces; nothing when it ends there or before. A link that breaks
        raises after what came: whoever kept that starts from its end.

        Raises:
            BlobNotFoundError: nothing lies there.
        """

    def size(self, key: str) -> int | None:
        """Return the blob's size in bytes, or None when nothing lies there."""

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """Yield the blobs under the prefix in key order."""

    def delete(self, key: str) -> None:
        """Remove the blob; removing nothing is fine."""
