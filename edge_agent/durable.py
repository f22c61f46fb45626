"""Files that survive a power cut whole or not at all, and that can prove they are what was written.

A full disk must not keep the agent from noting what it does: a reserve file holds room for that. It lies in the state
folder, above every file of the agent's, so each process that writes there finds it and gives it up when it must.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_agent.errors import CorruptFileError

log = logging.getLogger(__name__)

TEMPORARY_SUFFIX = ".tmp"
DISK_FULL_CODES = frozenset({errno.ENOSPC, errno.EDQUOT})
RESERVE_NAME = "disk-reserve"
_RESERVE_DEPTH = 3
"""How many folders above a state file the reserve may lie."""
_MAGIC = b"GLEANER1"
_MAX_PREFIX_BYTES = 256
_NO_DIGEST = b"0" * 64
_LIKELY_HEADER_BYTES = 4096


def persist_bytes(path: Path, data: bytes) -> None:
    """Write a state file atomically and durably; on a full disk, with the room of the reserve.

    One writer a path at a time.

    Raises:
        OSError: the disk refused; the old content, if any, is still there, or already the new.
    """
    try:
        write_durably(path, data)
    except OSError as exc:
        if exc.errno not in DISK_FULL_CODES or not release_reserve(path):
            raise
        write_durably(path, data)


def write_durably(path: Path, data: bytes) -> None:
    """Write a file atomically and durably: temporary file, fsync, rename, fsync of the folder. Leaves the reserve.

    Raises:
        OSError: as `persist_bytes`.
    """
    stage(path, data)
    place([path])


def stage(path: Path, data: bytes) -> None:
    """Write a file's content beside its place, durably; `place` puts it there.

    Raises:
        OSError: the disk refused; nothing is left of it.
    """
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def place(paths: Sequence[Path]) -> None:
    """Put what was staged into its place, with one fsync of each folder for all of it.

    Raises:
        OSError: the disk refused; each place holds the old file or the new one, and nothing staged is left.
    """
    waiting = list(paths)
    try:
        while waiting:
            os.replace(_temporary(waiting[0]), waiting[0])  # noqa: PTH105 - the commit point; keep it visible
            del waiting[0]
    except OSError:
        for path in waiting:
            with contextlib.suppress(OSError):
                _temporary(path).unlink(missing_ok=True)
        raise
    for folder in {path.parent: None for path in paths}:
        sync_folder(folder)


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + TEMPORARY_SUFFIX)


def make_reserve(state_dir: Path, size_bytes: int, *, min_free_bytes: int = 0) -> bool:
    """See to it that the reserve is there, if the disk has so much room left beside it; return whether it is."""
    path = state_dir / RESERVE_NAME
    try:
        if path.exists() and path.stat().st_size == size_bytes:
            return True
        if size_bytes == 0 or shutil.disk_usage(state_dir).free < size_bytes + min_free_bytes:
            return False
        temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
        with temporary.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size_bytes)
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105 - as above
    except OSError as exc:
        log.warning("the disk's reserve cannot be made: %s", exc)
        with contextlib.suppress(OSError):
            path.with_name(path.name + TEMPORARY_SUFFIX).unlink(missing_ok=True)
        return False
    return True


def release_reserve(path: Path) -> bool:
    """Give up the reserve that lies above `path`; return whether there was one."""
    for folder in path.parents[:_RESERVE_DEPTH]:
        with contextlib.suppress(OSError):
            (folder / RESERVE_NAME).unlink()
            log.warning("the disk is full: its reserve is given up for %s", path.name)
            return True
    return False


def sync_folder(folder: Path) -> None:
    """Make renames and removals in the folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make the folder and what is missing above it, durably: a new folder is lost with all it holds unless the one
    above it is synced. Also when it is there already: a process that made it may have died before that.

    Raises:
        OSError: the disk refused.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(exist_ok=True)
        sync_folder(place.parent)
    with contextlib.suppress(PermissionError):  # what is not ours to read we have not made
        sync_folder((missing[-1].parent if missing else folder).parent)


def remove_files(paths: Iterable[Path]) -> None:
    """Remove the files durably; those already gone are fine."""
    folders = set()
    for path in paths:
        path.unlink(missing_ok=True)
        folders.add(path.parent)
    for folder in sorted(folders):
        sync_folder(folder)


@dataclass(frozen=True)
class _Prefix:
    header_digest: bytes
    payload_digest: bytes
    header_bytes: int
    payload_bytes: int
    starts_at: int


def seal(header: bytes, payload: bytes = b"", *, payload_sha256: str | None = None) -> bytes:
    """Return one line of digests and lengths, then the header, then the payload.

    With the payload's digest, 64 hexadecimal digits, it is not computed again; of another payload, it will not unseal.
    """
    payload_digest = _digest(payload) if payload_sha256 is None else payload_sha256.encode()
    return b"".join((_prefix(_digest(header), payload_digest, len(header), len(payload)), header, payload))


def sealed_bytes(header: bytes, payload_bytes: int) -> int:
    """Return the size of the sealed file without making it."""
    return len(_prefix(_NO_DIGEST, _NO_DIGEST, len(header), payload_bytes)) + len(header) + payload_bytes


def _prefix(header_digest: bytes, payload_digest: bytes, header_bytes: int, payload_bytes: int) -> bytes:
    return b"%s %s %s %d %d\n" % (_MAGIC, header_digest, payload_digest, header_bytes, payload_bytes)


def unseal(raw: bytes) -> tuple[bytes, bytes]:
    """Return (header, payload) of a sealed file.

    Raises:
        CorruptFileError: a length or a digest does not match.
    """
    prefix = _parse_prefix(raw[:_MAX_PREFIX_BYTES], len(raw))
    middle = prefix.starts_at + prefix.header_bytes
    header, payload = raw[prefix.starts_at : middle], raw[middle:]
    if _digest(header) != prefix.header_digest or _digest(payload) != prefix.payload_digest:
        raise CorruptFileError("the checksum does not match")
    return header, payload


def load_header_and_size(path: Path) -> tuple[bytes, int]:
    """Read only the header of a sealed file, so that opening a big spool does not read its images.

    Returns the header and the file's size in bytes.

    Raises:
        CorruptFileError: the file's size or the header's digest does not match.
        OSError: the file cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        start = os.read(descriptor, _LIKELY_HEADER_BYTES)
        size_bytes = os.fstat(descriptor).st_size
        prefix = _parse_prefix(start[:_MAX_PREFIX_BYTES], size_bytes)
        middle = prefix.starts_at + prefix.header_bytes
        while len(start) < middle and (more := os.read(descriptor, middle - len(start))):
            start += more
    finally:
        os.close(descriptor)
    header = start[prefix.starts_at : middle]
    if _digest(header) != prefix.header_digest:
        raise CorruptFileError("the header's checksum does not match")
    return header, size_bytes


def _digest(part: bytes) -> bytes:
    return hashlib.sha256(part).hexdigest().encode()


def _parse_prefix(start: bytes, file_bytes: int) -> _Prefix:
    line, newline, _ = start.partition(b"\n")
    try:
        magic, header_digest, payload_digest, header_bytes, payload_bytes = line.split(b" ")
        prefix = _Prefix(header_digest, payload_digest, int(header_bytes), int(payload_bytes), len(line) + 1)
    except ValueError as exc:
        raise CorruptFileError("the file does not start as a sealed file does") from exc
    if magic != _MAGIC or not newline:
        raise CorruptFileError("the file does not start as a sealed file does")
    if prefix.starts_at + prefix.header_bytes + prefix.payload_bytes != file_bytes:
        raise CorruptFileError(f"the file holds {file_bytes} bytes, not what it promises")
    return prefix
