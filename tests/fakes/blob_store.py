"""A bucket in memory that can be told to fail."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Iterator

from curate.errors import BlobExistsError, BlobNotFoundError, BlobTooLargeError, Error, StorageUnavailableError
from curate.storage.ports import STREAM_BYTES, BlobInfo, TaggedBlob


class FakeBlobStore:
    """Implements `BlobStore`; thread-safe.

    `fail_next` lets operations fail before they do anything; `commit_then_fail_next` lets writes take
    effect although the caller sees a failure, as when an answer is lost on the way. `refuse` holds key
    prefixes whose operations fail with that error until it is removed. `is_down` cuts everything.
    """

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.operations: list[tuple[str, str]] = []
        self.refuse: dict[str, Error] = {}
        self.is_down = False
        self.transferred = 0
        """Blobs that `get_if_changed` handed out because they had changed."""
        self._before: deque[Error | None] = deque()
        self._after: deque[Error | None] = deque()
        self._lock = threading.Lock()

    def fail_next(self, count: int, error: Error | None = None, *, after: int = 0) -> None:
        """Let `after` operations pass, then fail `count` before they take effect."""
        self._before.extend([None] * after + [error or StorageUnavailableError("connection refused")] * count)

    def commit_then_fail_next(self, count: int, *, after: int = 0) -> None:
        """Let `after` writes pass, then let `count` take effect and fail."""
        self._after.extend([None] * after + [StorageUnavailableError("the answer was lost")] * count)

    def heal(self) -> None:
        """Forget every fault."""
        self.is_down = False
        self.refuse.clear()
        self._before.clear()
        self._after.clear()

    def keys(self, operation: str) -> list[str]:
        """Return the keys of the attempted operations of that kind, in order."""
        return [key for name, key in self.operations if name == operation]

    def put(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        """As the port says."""
        with self._lock:
            self._begin("put", key)
            self.blobs[key] = bytes(data)
            self._lose_answer()

    def create(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        """As the port says."""
        with self._lock:
            self._begin("create", key)
            if key in self.blobs:
                raise BlobExistsError(f"{key} is taken")
            self.blobs[key] = bytes(data)
            self._lose_answer()

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """As the port says."""
        with self._lock:
            self._begin("get", key)
            if key not in self.blobs:
                raise BlobNotFoundError(key)
            data = self.blobs[key]
        if max_bytes is not None and len(data) > max_bytes:
            raise BlobTooLargeError(f"{key} holds more than {max_bytes} bytes")
        return data

    def get_if_changed(self, key: str, tag: str | None, *, max_bytes: int | None = None) -> TaggedBlob | None:
        """As the port says."""
        data = self.get(key, max_bytes=max_bytes)
        found = hashlib.sha256(data).hexdigest()
        if found == tag:
            return None
        self.transferred += 1
        return TaggedBlob(data, found)

    def stream(self, key: str, *, start: int = 0) -> Iterator[bytes]:
        """As the port says."""
        data = self.get(key)[start:]
        yield from (data[at : at + STREAM_BYTES] for at in range(0, len(data), STREAM_BYTES))

    def size(self, key: str) -> int | None:
        """As the port says."""
        with self._lock:
            self._begin("size", key)
            return len(self.blobs[key]) if key in self.blobs else None

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """As the port says."""
        with self._lock:
            self._begin("list", prefix)
            found = [BlobInfo(key, len(data)) for key, data in sorted(self.blobs.items()) if key.startswith(prefix)]
        yield from found

    def delete(self, key: str) -> None:
        """As the port says."""
        with self._lock:
            self._begin("delete", key)
            self.blobs.pop(key, None)
            self._lose_answer()

    def _begin(self, operation: str, key: str) -> None:
        self.operations.append((operation, key))
        if self.is_down:
            raise StorageUnavailableError("connection refused")
        for prefix, error in self.refuse.items():
            if key.startswith(prefix):
                raise error
        _raise_first(self._before)

    def _lose_answer(self) -> None:
        _raise_first(self._after)


def _raise_first(faults: deque[Error | None]) -> None:
    fault = faults.popleft() if faults else None
    if fault is not None:
        raise fault
