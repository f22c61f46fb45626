"""The blob store port: all that Gleaner asks of a bucket."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class BlobInfo:
    """One listed blob."""

    key: str
    size_bytes: int


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
            StorageError: the blob is larger than `max_bytes`.
        """

    def size(self, key: str) -> int | None:
        """Return the blob's size in bytes, or None when nothing lies there."""

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """Yield the blobs under the prefix in key order."""

    def delete(self, key: str) -> None:
        """Remove the blob; removing nothing is fine."""
