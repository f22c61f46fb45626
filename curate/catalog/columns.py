"""Many samples at once, as columns: what a selection over a million captures reads of the catalog."""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Row, Select, Text, and_, cast, false, func, not_, null, or_, select, type_coerce

from curate.catalog import tables
from curate.catalog.database import Database, chunks
from curate.catalog.fleet import counts_still
from curate.catalog.models import SampleStatus
from curate.errors import CatalogError

BLOCK_ROWS = 8192
WIRE_FLOAT = np.dtype("<f2")


@dataclass(frozen=True, eq=False)
class SampleColumns:
    """N samples that one release has answered; row i of every column is one sample, in no particular order.

    `embeddings` float16 [N, D]; `probabilities` float32 [N, K], None where the release gives no one distribution a
    frame; `captured_s` float64 [N] seconds since 1970; `random_probability` float64 [N], NaN where the random arm did
    not keep the sample; `score` float64 [N], the score that was asked for, NaN where the device gave none.
    """

    ids: tuple[str, ...]
    devices: tuple[str, ...]
    cameras: tuple[str, ...]
    captured_s: NDArray[np.float64]
    random_probability: NDArray[np.float64]
    score: NDArray[np.float64]
    probabilities: NDArray[np.float32] | None
    embeddings: NDArray[np.float16]

    def __len__(self) -> int:
        """How many samples there are."""
        return len(self.ids)


@dataclass(frozen=True)
class IdRange:
    """Sample ids from `first` (inclusive) to `end` (exclusive); None: as far as they go."""

    first: str | None = None
    end: str | None = None


EVERYTHING = IdRange()


@dataclass(frozen=True)
class Position:
    """A place in the order in which samples came."""

    ingested_at: datetime
    sample_id: str


@dataclass(frozen=True, eq=False)
class EmbeddingBlock:
    """The embeddings, float16 [N, D], of samples that came one after the other; `last` is the last of them."""

    embeddings: NDArray[np.float16]
    last: Position


class Columns:
    """Reading of many samples."""

    _database: Database

    def sample_columns(
        self,
        release_id: str,
        *,
        status: SampleStatus | None = None,
        within: IdRange = EVERYTHING,
        ids: Collection[str] | None = None,
        score: str | None = None,
        folder: Path | None = None,
    ) -> SampleColumns:
        """Samples that the release has answered with an embedding, all that fit; none of unlearned devices.

        Rows are read in blocks and nothing of a row is kept but these columns. The embeddings are in memory, 2 · D
        bytes a sample, or with `folder` in a file there that has no name and is mapped: it goes when nobody needs it.

        Raises:
            CatalogError: two embeddings of the release differ in length, or the folder cannot be written.
        """
        reading = _Reading(release_id, folder)
        in_blocks = {"yield_per": BLOCK_ROWS}
        with self._database.read() as connection:
            for query in _narrowed(_columns_query(release_id, score), status, within, ids):
                with connection.execute(query, execution_options=in_blocks) as result:
                    for rows in result.partitions():
                        reading.take(rows)
        return reading.finish()

    def arrivals(self, release_id: str, after: Position | None = None) -> Iterator[EmbeddingBlock]:
        """Embeddings of what the release answered and devices sent, in the order it came; none of unlearned devices.

        One block is in memory at a time. What another process admits meanwhile under an earlier time is not seen.

        Raises:
            CatalogError: two embeddings of the release differ in length.
        """
        columns = tables.samples.c
        order = (columns.ingested_at, columns.sample_id)
        came = and_(_answered(release_id), columns.ingested_at.is_not(None))
        query = select(*order, columns.embedding).where(came, counts_still()).order_by(*order)
        if after is not None:
            later = or_(columns.ingested_at > after.ingested_at, columns.sample_id > after.sample_id)
            query = query.where(columns.ingested_at >= after.ingested_at, later)
        in_blocks = {"yield_per": BLOCK_ROWS}
        with self._database.read() as connection, connection.execute(query, execution_options=in_blocks) as result:
            for rows in result.partitions():
                yield _block(release_id, rows)

    def unanswered(
        self,
        release_id: str,
        *,
        status: SampleStatus | None = None,
        within: IdRange = EVERYTHING,
        ids: Collection[str] | None = None,
    ) -> list[str]:
        """Ids of the samples that fit and that `sample_columns` leaves out: the release has not answered them."""
        columns = tables.samples.c
        known = func.coalesce(_answered(release_id), false())  # no release, no embedding: not answered
        query = select(columns.sample_id).where(not_(known))
        with self._database.read() as connection:
            parts = [connection.execute(part).scalars().all() for part in _narrowed(query, status, within, ids)]
        return sorted(name for part in parts for name in part)

    def id_ranges(self, rows: int) -> list[IdRange]:
        """Ranges that hold about so many samples each, every sample in exactly one of them."""
        key = tables.samples.c.sample_id
        numbered = select(key, func.row_number().over(order_by=key).label("position")).subquery()
        begins = and_(numbered.c.position > 1, (numbered.c.position - 1) % rows == 0)
        query = select(numbered.c.sample_id).where(begins).order_by(numbered.c.sample_id)
        with self._database.read() as connection:
            borders: list[str | None] = list(connection.execute(query).scalars())
        return [IdRange(first, end) for first, end in zip([None, *borders], [*borders, None], strict=True)]


def _columns_query(release_id: str, score: str | None) -> Select[Any]:
    columns = tables.samples.c
    return select(
        columns.sample_id,
        columns.device_id,
        columns.camera_id,
        type_coerce(columns.captured_at, Text),  # as the driver gives it: parsed many at a time
        columns.random_probability,
        null() if score is None else columns.prediction["scores", score].as_float(),
        cast(columns.prediction["probabilities"], Text),
        columns.embedding,
    ).where(_answered(release_id))


def _answered(release_id: str) -> ColumnElement[bool]:
    columns = tables.samples.c
    return and_(columns.release_id == release_id, columns.embedding.is_not(None), columns.prediction.is_not(None))


def _narrowed(
    query: Select[Any], status: SampleStatus | None, within: IdRange, ids: Collection[str] | None
) -> Iterator[Select[Any]]:
    columns = tables.samples.c
    query = query.where(counts_still())
    if status is not None:
        query = query.where(columns.status == status.value)
    if within.first is not None:
        query = query.where(columns.sample_id >= within.first)
    if within.end is not None:
        query = query.where(columns.sample_id < within.end)
    if ids is None:
        yield query
        return
    for some in chunks(set(ids)):
        yield query.where(columns.sample_id.in_(some))


def _block(release_id: str, rows: Sequence[Row[Any]]) -> EmbeddingBlock:
    times, names, embeddings = zip(*rows, strict=True)
    if len(set(map(len, embeddings))) != 1:
        raise _lengths_differ(release_id)
    values = np.frombuffer(b"".join(embeddings), WIRE_FLOAT).reshape(len(rows), -1)
    return EmbeddingBlock(values, Position(times[-1], names[-1]))


def _lengths_differ(release_id: str) -> CatalogError:
    return CatalogError(f"the embeddings of {release_id} differ in length")


class _Reading:
    """Takes blocks of rows and puts each column together."""

    def __init__(self, release_id: str, folder: Path | None) -> None:
        self._release_id = release_id
        self._sink: IO[bytes] = io.BytesIO() if folder is None else _open_nameless(folder)
        self._width = 0
        self._names: tuple[list[str], list[str], list[str]] = ([], [], [])
        self._numbers: list[NDArray[np.float64]] = []
        self._classes: set[int] = set()  # 0 stands for "no distribution"
        self._probabilities: list[NDArray[np.float32]] = []

    def take(self, rows: Sequence[Row[Any]]) -> None:
        """Add a block of at least one row."""
        ids, devices, cameras, captured, chances, scores, distributions, embeddings = zip(*rows, strict=True)
        self._width = self._width or len(embeddings[0])
        if set(map(len, embeddings)) != {self._width}:
            raise _lengths_differ(self._release_id)
        self._write(b"".join(embeddings))
        for column, values in zip(self._names, (ids, map(sys.intern, devices), map(sys.intern, cameras)), strict=True):
            column.extend(values)
        self._numbers.append(np.stack([_seconds(captured), *np.array([chances, scores], np.float64)]))
        self._take_probabilities(distributions)

    def finish(self) -> SampleColumns:
        """Return the columns."""
        ids, devices, cameras = map(tuple, self._names)
        captured_s, chances, scores = np.concatenate([np.empty((3, 0)), *self._numbers], axis=1)
        return SampleColumns(
            ids=ids,
            devices=devices,
            cameras=cameras,
            captured_s=captured_s,
            random_probability=chances,
            score=scores,
            probabilities=np.concatenate(self._probabilities) if self._probabilities else None,
            embeddings=self._matrix(len(ids)),
        )

    def _take_probabilities(self, distributions: Sequence[str | None]) -> None:
        texts = [text or "null" for text in distributions]  # JSON's null or the database's, as the database likes
        self._classes.update(0 if text == "null" else text.count(",") + 1 for text in texts)
        if len(self._classes) > 1:
            raise CatalogError(f"the distributions of {self._release_id} differ in length")
        (classes,) = self._classes
        if classes:  # arrays of numbers, read as one: half of the time that a JSON reader takes
            numbers = np.fromstring(",".join([text[1:-1] for text in texts]), np.float32, sep=",")
            self._probabilities.append(numbers.reshape(len(texts), classes))

    def _write(self, raw: bytes) -> None:
        try:
            self._sink.write(raw)
        except OSError as exc:
            raise CatalogError(f"the embeddings cannot be written to a file: {exc.strerror}", retryable=True) from exc

    def _matrix(self, rows: int) -> NDArray[np.float16]:
        shape = (rows, self._width // WIRE_FLOAT.itemsize)
        if isinstance(self._sink, io.BytesIO):
            return np.frombuffer(self._sink.getbuffer(), WIRE_FLOAT).reshape(shape)
        with self._sink as file:
            file.flush()
            return np.memmap(file, WIRE_FLOAT, "r+", shape=shape) if rows else np.empty(shape, WIRE_FLOAT)


def _seconds(captured: Sequence[str] | Sequence[datetime]) -> NDArray[np.float64]:
    """Return seconds since 1970; SQLite keeps times in UTC as text, PostgreSQL gives aware ones."""
    if isinstance(captured[0], str):
        return np.array(captured, "datetime64[us]").astype(np.int64) / 1e6
    return np.array([at.timestamp() for at in captured if isinstance(at, datetime)], np.float64)


def _open_nameless(folder: Path) -> IO[bytes]:
    try:
        return tempfile.TemporaryFile(dir=folder)
    except OSError as exc:
        raise CatalogError(f"no file can be made in {folder}: {exc.strerror}") from exc
