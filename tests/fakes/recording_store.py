"""A blob store in front of another that counts requests and fails at a chosen one, as a link or a process does."""

from __future__ import annotations

from collections.abc import Iterator

from curate.errors import StorageUnavailableError
from curate.storage.ports import BlobInfo, BlobStore, TaggedBlob


class CrashError(Exception):
    """Stands for the process dying at this request: nobody may handle it."""


class RecordingStore:
    """Passes everything on. `crash_at` is the index of the request that dies, counted from 0 at `reset`;
    with `crash_after` the request still reaches the store, and the caller never learns of it."""

    def __init__(self, inner: BlobStore) -> None:
        self.inner = inner
        self.offline = False
        self.cut_after_bytes: int | None = None
        self.served_bytes = 0
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

    def get_if_changed(self, key: str, tag: str | None, *, max_bytes: int | None = None) -> TaggedBlob | None:
        """Read a blob unless it is still the one with this tag."""
        dies = self._note("get", key)
        try:
            return self.inner.get_if_changed(key, tag, max_bytes=max_bytes)
        finally:
            self._die_if(dies)

    def stream(self, key: str, *, start: int = 0) -> Iterator[bytes]:
        """Read a blob in pieces; with `cut_after_bytes` the link breaks after so many, once."""
        dies = self._note("stream", key)
        left = self.cut_after_bytes
        for piece in self.inner.stream(key, start=start):
            if left is not None and len(piece) > left:
                self.cut_after_bytes = None
                yield piece[:left]
                raise StorageUnavailableError("the link broke")
            left = None if left is None else left - len(piece)
            self.served_bytes += len(piece)
            yield piece
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
