"""Files that survive a power cut whole or not at all, and that can prove they are what was written."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edge_agent.errors import CorruptFileError

TEMPORARY_SUFFIX = ".tmp"
_MAGIC = b"GLEANER1"
_MAX_PREFIX_BYTES = 256


def persist_bytes(path: Path, data: bytes) -> None:
    """Write the file atomically and durably: temporary file, fsync, rename, fsync of the folder.

    One writer a path at a time.

    Raises:
        OSError: the disk refused; the old content, if any, is still there, or already the new.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105 - the system call is the commit point; keep it visible
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in the folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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


def seal(header: bytes, payload: bytes = b"") -> bytes:
    """Return one line of digests and lengths, then the header, then the payload."""
    digests = b" ".join(_digest(part) for part in (header, payload))
    return b"%s %s %d %d\n" % (_MAGIC, digests, len(header), len(payload)) + header + payload


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


def load_header(path: Path) -> bytes:
    """Read only the header of a sealed file, so that opening a big spool does not read its images.

    Raises:
        CorruptFileError: the file's size or the header's digest does not match.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(_MAX_PREFIX_BYTES)
        prefix = _parse_prefix(start, os.fstat(file.fileno()).st_size)
        file.seek(prefix.starts_at)
        header = file.read(prefix.header_bytes)
    if _digest(header) != prefix.header_digest:
        raise CorruptFileError("the header's checksum does not match")
    return header


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
