"""Pictures on the local disk, so that none travels from the bucket twice."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
from pathlib import Path, PurePosixPath

_DIGEST = re.compile(r"^[0-9a-f]{64}$")
_SWEEPS_PER_FILLING = 16
_FULL = 0.9
"""Share of the room that a sweep leaves taken."""


class ImageCache:
    """Blobs whose key ends in their SHA-256, under `folder`; the least recently used go first.

    Any number of processes may share a folder, and it may be deleted at any time. What cannot be read or written, or
    is not what its name says, is as good as not there: the bucket has it.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Hold about `max_bytes`; 0 keeps nothing."""
        self._folder = folder
        self._max_bytes = max_bytes
        self._until_sweep = 0

    def get(self, key: str) -> bytes | None:
        """Return the blob, or None when it has to be fetched."""
        path = self._path(key)
        if path is None:
            return None
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return data if _is_named_after(path, data) else None

    def put(self, key: str, data: bytes) -> None:
        """Keep the blob if its key names its content."""
        path = self._path(key)
        if path is None or not _is_named_after(path, data):
            return
        with contextlib.suppress(OSError):
            self._write(path, data)
            self._until_sweep -= len(data)
            if self._until_sweep < 0:
                self._until_sweep = self._max_bytes // _SWEEPS_PER_FILLING
                self._sweep()

    def _path(self, key: str) -> Path | None:
        digest = PurePosixPath(key).stem
        named = self._max_bytes > 0 and _DIGEST.match(digest)
        return self._folder / digest[:2] / digest if named else None

    def _write(self, path: Path, data: bytes) -> None:
        temporary = f"{path}.{os.getpid()}-{threading.get_ident()}"
        try:
            file = open(temporary, "wb", buffering=0)  # noqa: PTH123, SIM115 (one for every picture that arrives)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(temporary, "wb", buffering=0)  # noqa: PTH123, SIM115
        with file:
            file.write(data)
        os.replace(temporary, path)  # noqa: PTH105

    def _sweep(self) -> None:
        """Delete what was not used for longest, and what a killed process was writing."""
        used = sorted(
            ((stat.st_mtime, stat.st_size, path) for path in self._folder.rglob("*") if (stat := _stat_of(path))),
            reverse=True,
        )
        room = self._max_bytes * _FULL if sum(size for _, size, _ in used) > self._max_bytes else self._max_bytes
        for _, size, path in used:
            room -= size
            if room < 0:
                path.unlink(missing_ok=True)


def _is_named_after(path: Path, data: bytes) -> bool:
    return hashlib.sha256(data).hexdigest() == path.name


def _stat_of(path: Path) -> os.stat_result | None:
    """Return a file's figures; None for a folder, and for what another process has just deleted."""
    try:
        return path.stat() if path.is_file() else None
    except OSError:
        return None
