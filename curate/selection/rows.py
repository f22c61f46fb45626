"""Embeddings read in blocks: a million rows of float16 stay where they are, on disk or in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from curate.selection.base import BoolArray, EmbeddingArray, Float32Array, IntArray

BLOCK_ROWS = 8192
FingerprintArray = NDArray[np.uint64]


class Rows(Protocol):
    """Unit rows that can be asked for by slice or by number: a matrix, or a view of one that is not in memory."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | IntArray, /) -> Float32Array: ...


class UnitRows:
    """Rows of an embedding matrix scaled to length 1 whenever they are asked for; the matrix is never copied whole.

    `source` float16, float32 or float64 [N', D], memory-mapped or not; `index` int64 [N] names the rows that are seen.
    """

    def __init__(self, source: EmbeddingArray, index: IntArray | None = None) -> None:
        self._source: EmbeddingArray = np.asarray(source)
        self._index = np.arange(len(source)) if index is None else index

    def __len__(self) -> int:
        return len(self._index)

    @property
    def width(self) -> int:
        """How many numbers a row has."""
        return int(self._source.shape[1])

    def __getitem__(self, rows: slice | IntArray, /) -> Float32Array:
        """Return the asked rows with length 1, float32; zero rows stay zero."""
        return unit_rows(self._source[self._index[rows]])

    def take(self, rows: IntArray) -> UnitRows:
        """Return a view of the given rows."""
        return UnitRows(self._source, self._index[rows])


@dataclass(frozen=True, eq=False)
class RowScan:
    """What one reading of N rows tells: `finite` and `directed` (not all zero) bool [N]; `fingerprint` uint64 [N],
    equal for equal bytes and else different, but for a chance of about 2⁻⁶³ a pair.
    """

    finite: BoolArray
    directed: BoolArray
    fingerprint: FingerprintArray


def unit_rows(embeddings: EmbeddingArray) -> Float32Array:
    """Return the rows scaled to length 1, float32 [N, D]; zero rows stay zero."""
    rows: Float32Array = np.array(embeddings, dtype=np.float32, order="C")
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    rows /= np.where(norms > 0, norms, np.float32(1))[:, None]
    return rows


def scan_rows(embeddings: EmbeddingArray) -> RowScan:
    """Read every row once, block by block."""
    count = len(embeddings)
    scan = RowScan(np.ones(count, np.bool_), np.ones(count, np.bool_), np.zeros(count, np.uint64))
    for block in blocks(count):
        raw = np.ascontiguousarray(embeddings[block])
        with np.errstate(over="ignore"):
            narrow = raw.astype(np.float32)
            squared = np.einsum("ij,ij->i", narrow, narrow)
        odd = ~np.isfinite(squared) | (squared == 0)  # few or none: only these are looked at number by number
        scan.finite[block][odd] = np.isfinite(raw[odd]).all(axis=1)
        scan.directed[block][odd] = (raw[odd] != 0).any(axis=1)
        scan.fingerprint[block] = _fingerprints(raw)
    return scan


def exact_copies(
    embeddings: EmbeddingArray, index: IntArray, fingerprint: FingerprintArray, groups: IntArray
) -> IntArray:
    """Return for each of N rows the first row of its group with the very same bytes (itself if none): int64 [N].

    `index` int64 [N] names the rows of `embeddings`; `fingerprint` and `groups` are theirs. Fingerprints only propose:
    the bytes are compared.
    """
    order = np.lexsort((fingerprint, groups))
    same = (np.diff(fingerprint[order]) == 0) & (np.diff(groups[order]) == 0)
    run = np.concatenate([[0], np.cumsum(~same)]) if len(order) else np.empty(0, np.int64)
    first_of_run = order[np.flatnonzero(np.concatenate([[True], ~same]))] if len(order) else order
    first = np.empty(len(order), np.int64)
    first[order] = first_of_run[run]
    copies = np.flatnonzero(first != np.arange(len(first)))
    for block in blocks(len(copies)):
        rows = copies[block]
        differs = (embeddings[index[rows]] != embeddings[index[first[rows]]]).any(axis=1)
        first[rows[differs]] = rows[differs]
    return first


def blocks(count: int, size: int = BLOCK_ROWS) -> Iterator[slice]:
    """Cut `count` rows into slices of at most `size`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def number_names(names: Sequence[str]) -> IntArray:
    """Return a number for each name, int64 [N]: equal names share one, numbered from 0 in order of first appearance."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.fromiter(map(numbers.__getitem__, names), np.int64, len(names))


def _fingerprints(raw: EmbeddingArray) -> FingerprintArray:
    """Hash each row's bytes by a multilinear hash over odd multipliers, modulo 2⁶⁴."""
    row_bytes = raw.shape[1] * raw.itemsize
    words = raw.view(np.uint64 if row_bytes % 8 == 0 else np.uint16).astype(np.uint64, copy=False)
    multipliers = np.random.default_rng(words.shape[1]).integers(0, 2**63, words.shape[1], np.uint64) * 2 + 1
    return np.asarray(np.einsum("ij,j->i", words, multipliers), np.uint64)
