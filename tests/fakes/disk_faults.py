"""A disk that refuses at a chosen call: ENOSPC, EIO, for code that opens files by `io.open` and works through `os`."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_CALLS = ("open", "fsync", "fdatasync", "replace", "rename", "unlink", "remove", "rmdir", "mkdir", "link", "ftruncate")
_NEED_ROOM = frozenset({"write", "fsync", "fdatasync", "mkdir", "link", "open for writing"})
"""What a full disk refuses. Renames and removals go on, as everywhere."""
_CHANGE = frozenset({"replace", "rename", "unlink", "remove", "rmdir", "ftruncate"})
_NEVER = 10**9


class FaultyDisk:
    """Counts the calls below one folder, and fails `length` of them from the `first` (counted from 0)."""

    def __init__(self, root: Path, code: int, first: int, length: int = 1) -> None:
        self.calls: list[str] = []
        self.failed: list[str] = []
        self._root = str(root)
        self._code = code
        self._range = range(first, first + length)

    def concerns(self, path: Any) -> bool:
        """Whether the path lies below the folder; a handle does when the file behind it does."""
        if isinstance(path, int):
            with contextlib.suppress(OSError):
                return str(Path(f"/proc/self/fd/{path}").readlink()).startswith(self._root)
            return False
        return os.fspath(path).startswith(self._root)

    def pass_or_fail(self, name: str) -> None:
        """Count one call, and refuse it when its turn has come."""
        if self._code == errno.ENOSPC and name not in _NEED_ROOM:
            return
        self.calls.append(name)
        if len(self.calls) - 1 in self._range:
            self.failed.append(name)
            raise OSError(self._code, os.strerror(self._code))


class _File:
    """A real file whose writes can be refused half-way."""

    def __init__(self, file: Any, disk: FaultyDisk) -> None:
        self._file = file
        self._disk = disk

    def write(self, data: Any) -> int:
        try:
            self._disk.pass_or_fail("write")
        except OSError:
            self._file.write(data[: len(data) // 2])
            raise
        return int(self._file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        self._file.__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        self._file.__exit__(*args)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._file)


@contextlib.contextmanager
def faulty_disk(root: Path, code: int, first: int, length: int = 1) -> Iterator[FaultyDisk]:
    """Let calls of the body below `root` fail. With `first` beyond their number it only counts them."""
    disk = FaultyDisk(root, code, first, length)
    real_open, real_usage = io.open, shutil.disk_usage

    def guarded(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            if disk.concerns(args[0]):
                disk.pass_or_fail(name)
            return call(*args, **options)

        return run

    def opened(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if isinstance(file, int) or not disk.concerns(file):
            return real_open(file, mode, *args, **options)
        writes = any(letter in mode for letter in "wxa+")
        disk.pass_or_fail("open for writing" if writes else "open")
        found = real_open(file, mode, *args, **options)
        return _File(found, disk) if writes else found

    with pytest.MonkeyPatch.context() as patch:
        for name in _CALLS:
            patch.setattr(os, name, guarded(name, getattr(os, name)))
        patch.setattr(io, "open", opened)
        patch.setattr("builtins.open", opened)
        patch.setattr(shutil, "disk_usage", guarded("disk_usage", real_usage))
        yield disk


@contextlib.contextmanager
def dead_disk(root: Path, code: int) -> Iterator[None]:
    """Let everything that would change the disk below `root` fail, as on one that is full to the last byte (ENOSPC) or
    was mounted read-only (EROFS)."""
    with faulty_disk(root, code, _NEVER) as disk:
        real = disk.pass_or_fail

        def refuse(name: str) -> None:
            if name in _NEED_ROOM or (code == errno.EROFS and name in _CHANGE):
                raise OSError(code, os.strerror(code))
            real(name)

        disk.pass_or_fail = refuse  # type: ignore[method-assign]
        yield
