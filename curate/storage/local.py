"""The blob store in a folder: for tests, for one machine, and for looking inside."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from curate.errors import (
    AccessDeniedError,
    BlobExistsError,
    BlobNotFoundError,
    BlobTooLargeError,
    StorageError,
    StorageUnavailableError,
)
from curate.storage.keys import verify_key, verify_prefix
from curate.storage.ports import STREAM_BYTES, BlobInfo, TaggedBlob


class LocalBlobStore:
    """A `BlobStore` of one file per key. Writes are atomic and synced; safe between threads and processes.

    A key cannot be a file and a folder at once: `a` and `a/b` exclude each other, with StorageError.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:  # noqa: ARG002  a folder keeps no media types
        """Write the whole blob atomically, replacing what was there."""
        path = self._path(key)
        with _translated("put", key), _temporary(path, data) as temporary:
            temporary.replace(path)

    def create(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:  # noqa: ARG002  a folder keeps no media types
        """Write only if the key is free; of many at once exactly one wins."""
        path = self._path(key)
        with _translated("create", key), _temporary(path, data) as temporary:
            try:
                path.hardlink_to(temporary)
            except FileExistsError as exc:
                raise BlobExistsError(f"create {key}: the key is taken") from exc

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """Read the whole blob; BlobTooLargeError when it is larger than `max_bytes`."""
        path = self._path(key)
        with _translated("get", key):
            if max_bytes is not None and (size := path.stat().st_size) > max_bytes:
                raise BlobTooLargeError(f"{key} holds {size} bytes, more than {max_bytes}")
            return path.read_bytes()

    def get_if_changed(self, key: str, tag: str | None, *, max_bytes: int | None = None) -> TaggedBlob | None:
        """Read the whole blob unless it is still the one with this tag. Every write makes a new file."""
        path = self._path(key)
        with _translated("get", key), path.open("rb") as file:
            status = os.fstat(file.fileno())
            found = f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"
            if found == tag:
                return None
            if max_bytes is not None and status.st_size > max_bytes:
                raise BlobTooLargeError(f"{key} holds {status.st_size} bytes, more than {max_bytes}")
            return TaggedBlob(file.read(), found)

    def stream(self, key: str, *, start: int = 0) -> Iterator[bytes]:
        """Yield the blob's bytes from `start` on, in pieces."""
        path = self._path(key)
        with _translated("stream", key), path.open("rb") as file:
            file.seek(start)
            while piece := file.read(STREAM_BYTES):
                yield piece

    def size(self, key: str) -> int | None:
        """Return the size in bytes, or None when nothing lies there."""
        path = self._path(key)
        try:
            with _translated("size", key):
                return path.stat().st_size if path.is_file() else None
        except BlobNotFoundError:
            return None

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """Yield the blobs under the prefix in key order."""
        verify_prefix(prefix)
        folder = self._root / prefix.rpartition("/")[0]
        for key in sorted(key for key in self._keys(folder) if key.startswith(prefix)):
            size = self.size(key)
            if size is not None:  # removed since the walk
                yield BlobInfo(key=key, size_bytes=size)

    def delete(self, key: str) -> None:
        """Remove the blob; removing nothing is fine. Folders left empty stay."""
        path = self._path(key)
        try:
            with _translated("delete", key):
                path.unlink()
        except BlobNotFoundError:
            return

    def _path(self, key: str) -> Path:
        verify_key(key)
        return self._root / key

    def _keys(self, folder: Path) -> Iterator[str]:
        for parent, _, names in os.walk(folder):
            relative = Path(parent).relative_to(self._root)
            yield from ((relative / name).as_posix() for name in names if not name.startswith("."))


@contextmanager
def _temporary(path: Path, data: bytes) -> Iterator[Path]:
    """Write `data` durably beside `path` under a hidden name; afterwards make the rename durable too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
        _fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _translated(operation: str, key: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as exc:
        if operation in ("put", "create"):
            raise StorageError(f"{operation} {key}: another key is in the way: {exc.strerror}") from exc
        raise BlobNotFoundError(f"{operation} {key}: nothing lies there") from exc
    except FileExistsError as exc:
        raise StorageError(f"{operation} {key}: another key is in the way") from exc
    except PermissionError as exc:
        raise AccessDeniedError(f"{operation} {key}: {exc.strerror}") from exc
    except OSError as exc:
        raise StorageUnavailableError(f"{operation} {key}: {exc.strerror}") from exc
