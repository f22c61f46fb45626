"""A blob store in front of another that counts requests and fails at a chosen one, as a link or a process does."""

from __future__ import annotations

from collections.abc import Iterator

from curate.errors import StorageUnavailableError
from curate.storage.ports import BlobInfo, BlobStore


class CrashError(Exception):
    """Stands for the process dying at this request: nobody may handle it."""


class RecordingStore:
    """Passes everything on. `crash_at` is the index of the request that dies, counted from 0 at `reset`;
    with `crash_after` the request still reaches the store, and the caller never learns of it."""

    def __init__(self, inner: BlobStore) -> None:
        self.inner = inner
        self.offline = False
        self.reset()

    def reset(self, *, crash_at: int | None = None, crash_after: bool = False) -> None:
        """Forget the requests so far and arm the next crash."""
        self.requests: list[tuple[str, str]] = []
        self._crash_at = crash_at
        self._crash_after = crash_after

    def put(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        """Write a blob."""
        dies = self._note("put", key)
        try:
            self.inner.put(key, data, content_type=content_type)
        finally:
            self._die_if(dies)

    def create(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        """Write a blob if the key is free."""
        dies = self._note("create", key)
        try:
            self.inner.create(key, data, content_type=content_type)
        finally:
            self._die_if(dies)

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """Read a blob."""
        dies = self._note("get", key)
        try:
            return self.inner.get(key, max_bytes=max_bytes)
        finally:
            self._die_if(dies)

    def size(self, key: str) -> int | None:
        """Return a blob's size in bytes."""
        dies = self._note("size", key)
        try:
            return self.inner.size(key)
        finally:
            self._die_if(dies)

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """Yield the blobs under the prefix."""
        self._note("list", prefix)
        return self.inner.list(prefix)

    def delete(self, key: str) -> None:
        """Remove a blob."""
        dies = self._note("delete", key)
        try:
            self.inner.delete(key)
        finally:
            self._die_if(dies)

    def _note(self, method: str, key: str) -> bool:
        if self.offline:
            raise StorageUnavailableError("the link is down")
        dies = len(self.requests) == self._crash_at
        self.requests.append((method, key))
        if dies and not self._crash_after:
            raise CrashError
        return dies

    @staticmethod
    def _die_if(dies: bool) -> None:
        if dies:
            raise CrashError
