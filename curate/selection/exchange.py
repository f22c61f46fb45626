"""Pools and labelled sets as bytes: how workers that share nothing but a bucket hand rows to each other."""

from __future__ import annotations

import dataclasses
import io
import sys
import zipfile
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from curate.errors import SelectionError
from curate.selection.base import CandidatePool, LabelledSet

Table = TypeVar("Table", CandidatePool, LabelledSet)


class Exchange(Protocol):
    """Where blobs lie that every worker can reach, such as a bucket. Errors are the store's own."""

    def put(self, key: str, data: bytes) -> None:
        """Write a blob, replacing what was there."""

    def get(self, key: str) -> bytes:
        """Read a blob."""

    def delete(self, key: str) -> None:
        """Remove a blob; removing nothing is fine."""


def to_bytes(table: CandidatePool | LabelledSet) -> bytes:
    """Return every column of a pool or a labelled set as an npz archive; names must not hold a zero character."""
    out = io.BytesIO()
    columns = {field.name: getattr(table, field.name) for field in dataclasses.fields(table)}
    arrays: dict[str, Any] = {name: _to_array(column) for name, column in columns.items() if column is not None}
    np.savez(out, **arrays)
    return out.getvalue()


def from_bytes(kind: type[Table], raw: bytes) -> Table:
    """Read what `to_bytes` wrote.

    Raises:
        SelectionError: it is something else.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    try:
        with np.load(io.BytesIO(raw), allow_pickle=False) as found:
            read = {name: _from_array(found[name]) for name in found.files if name in fields}
        required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
        columns: dict[str, Any] = {name: read.get(name) for name in required | read.keys()}
        return kind(**columns)
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as exc:
        raise SelectionError(f"rows that another worker left cannot be read: {exc}") from exc


def concatenate(pools: Sequence[CandidatePool]) -> CandidatePool:
    """Return the rows of all pools as one; there has to be a pool.

    Raises:
        SelectionError: they do not have the same columns.
    """
    columns: dict[str, Any] = {}
    for field in dataclasses.fields(CandidatePool):
        parts = [getattr(pool, field.name) for pool in pools]
        if len({part is None for part in parts}) > 1:
            raise SelectionError(f"only some parts of the pool have a column {field.name}")
        columns[field.name] = _join(parts)
    return CandidatePool(**columns)


def _join(parts: Sequence[Any]) -> Any:
    if parts[0] is None or len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], tuple):
        return tuple(name for part in parts for name in part)
    return np.concatenate(parts)


def _to_array(column: Any) -> NDArray[Any]:
    """Names become one text: an array of them would give each the length of the longest."""
    if isinstance(column, tuple):
        text = "".join(f"{name}\0" for name in column).encode()
        return np.frombuffer(text, np.uint8) if text else np.empty(0, np.uint8)
    return np.asarray(column)


def _from_array(array: NDArray[Any]) -> Any:
    if array.dtype == np.uint8:
        # Interned: a million rows name a few cameras.
        return tuple(map(sys.intern, array.tobytes().decode().split("\0")[:-1]))
    return array
