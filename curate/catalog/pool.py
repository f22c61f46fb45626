"""The catalog's samples and what people said about them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, and_, func, select, update

from curate.catalog import tables
from curate.catalog.database import Database, chunks, insert_or_skip
from curate.catalog.fleet import counts_still
from curate.catalog.models import FeedbackRow, Sample, SampleStatus
from curate.catalog.rows import feedback_of_row, row_of_sample, sample_of_row
from curate.errors import CatalogError


@dataclass(frozen=True)
class SampleCount:
    """How many samples share device, status and arms."""

    device_id: str
    status: SampleStatus
    arms: tuple[str, ...]
    count: int


@dataclass(frozen=True)
class FeedbackJoin:
    """Where all feedback stands: every verdict is in exactly one of the three."""

    joined: int
    frame_gone: int
    """The device said the frame was no longer there; no capture will come."""
    waiting: int


class Pool:
    """Operations on samples and feedback."""

    _database: Database

    def samples(
        self,
        *,
        status: SampleStatus | Collection[SampleStatus] | None = None,
        devices: Collection[str] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        ids: Collection[str] | None = None,
        release_id: str | None = None,
        random_arm_only: bool = False,
        unlearned_too: bool = False,
    ) -> list[Sample]:
        """Samples that fit all that is given, by capture time, then id.

        `since` (inclusive) and `until` (exclusive) bound the capture time, `release_id` made the prediction. Unknown
        ids are left out, and what came from devices that were unlearned unless it is asked for.
        """
        columns = tables.samples.c
        query = select(tables.samples)
        if not unlearned_too:
            query = query.where(counts_still())
        if status is not None:
            query = query.where(columns.status.in_([status] if isinstance(status, SampleStatus) else list(status)))
        if devices is not None:
            query = query.where(columns.device_id.in_(list(devices)))
        if since is not None:
            query = query.where(columns.captured_at >= since)
        if until is not None:
            query = query.where(columns.captured_at < until)
        if release_id is not None:
            query = query.where(columns.release_id == release_id)
        if random_arm_only:
            query = query.where(columns.random_probability.is_not(None))
        with self._database.read() as connection:
            found = [sample for part in _by_ids(query, ids) for sample in map(sample_of_row, connection.execute(part))]
        return sorted(found, key=lambda sample: (sample.captured_at, sample.sample_id))

    def sample(self, sample_id: str) -> Sample | None:
        """One sample, of whatever device, or None."""
        return next(iter(self.samples(ids=[sample_id], unlearned_too=True)), None)

    def sample_ids(self, prefix: str, limit: int) -> list[str]:
        """At most `limit` ids that begin with `prefix`, in order."""
        key = tables.samples.c.sample_id
        query = select(key).where(func.substr(key, 1, len(prefix)) == prefix).order_by(key).limit(limit)
        with self._database.read() as connection:
            return sorted(connection.execute(query).scalars())

    def first_captures(self, release_id: str, until: datetime) -> dict[str, datetime]:
        """When each device first kept a frame that the release had answered, of those captured before `until`."""
        columns = tables.samples.c
        query = (
            select(columns.device_id, func.min(columns.captured_at).label("first"))
            .where(columns.release_id == release_id, columns.captured_at < until, counts_still())
            .group_by(columns.device_id)
        )
        with self._database.read() as connection:
            return {row.device_id: row.first for row in connection.execute(query)}

    def add_samples(self, samples: Sequence[Sample]) -> int:
        """Import samples that no device sent, such as labelled pictures from elsewhere. Returns how many were new."""
        with self._database.write() as connection:
            before = _count_samples(connection)
            insert_or_skip(connection, tables.samples, [row_of_sample(sample) for sample in samples])
            return _count_samples(connection) - before

    def set_status(self, sample_ids: Collection[str], status: SampleStatus) -> None:
        """Move samples; CatalogError, and nothing moved, when one is unknown."""
        ids = set(sample_ids)
        with self._database.write() as connection:
            moved = sum(
                connection.execute(
                    update(tables.samples).where(tables.samples.c.sample_id.in_(chunk)).values(status=status.value)
                ).rowcount
                for chunk in chunks(ids)
            )
            if moved != len(ids):
                raise CatalogError(f"{len(ids) - moved} of {len(ids)} samples are unknown")

    def sample_counts(self) -> list[SampleCount]:
        """Samples by device, status and arms; sum over what does not matter."""
        columns = tables.samples.c
        key = (columns.device_id, columns.status, columns.arms)
        with self._database.read() as connection:
            rows = connection.execute(select(*key, func.count().label("count")).group_by(*key)).all()
        found = [SampleCount(row.device_id, SampleStatus(row.status), row.arms, row._mapping["count"]) for row in rows]
        return sorted(found, key=lambda count: (count.device_id, count.status, count.arms))

    def embedding_dims(self) -> dict[str, int]:
        """Length of the embeddings of each release seen so far."""
        columns = tables.samples.c
        releases = select(columns.release_id).where(columns.release_id.is_not(None)).distinct().subquery()
        # Admission has seen to it that one tells for all.
        any_size = (
            select(func.length(columns.embedding))
            .where(columns.release_id == releases.c.release_id, columns.embedding.is_not(None))
            .limit(1)
            .scalar_subquery()
        )
        with self._database.read() as connection:
            rows = connection.execute(select(releases.c.release_id, any_size.label("size"))).all()
        return {row.release_id: row.size // 2 for row in rows if row.size is not None}

    def feedback(
        self, *, device_id: str | None = None, verdict: str | None = None, sample_ids: Collection[str] | None = None
    ) -> list[FeedbackRow]:
        """Verdicts that fit all that is given, by time of receipt, then id."""
        columns = tables.feedback.c
        query = select(tables.feedback)
        if device_id is not None:
            query = query.where(columns.device_id == device_id)
        if verdict is not None:
            query = query.where(columns.verdict == verdict)
        with self._database.read() as connection:
            parts = (
                [query] if sample_ids is None else [query.where(columns.sample_id.in_(c)) for c in chunks(sample_ids)]
            )
            found = [feedback_of_row(row) for part in parts for row in connection.execute(part)]
        return sorted(found, key=lambda row: (row.received_at, row.feedback_id))

    def feedback_by_sample(self) -> dict[str, tuple[FeedbackRow, ...]]:
        """Joined verdicts by sample, each in order of receipt."""
        by_sample: dict[str, tuple[FeedbackRow, ...]] = {}
        for row in self.feedback():
            if row.sample_id is not None:
                by_sample[row.sample_id] = (*by_sample.get(row.sample_id, ()), row)
        return by_sample

    def join_feedback(self) -> FeedbackJoin:
        """Join verdicts to samples by prediction, whichever came first, and count where all verdicts stand.

        A verdict joins only a sample of the device that sent it.
        """
        verdicts, samples = tables.feedback.c, tables.samples.c
        match = (
            select(func.min(samples.sample_id))
            .where(samples.device_id == verdicts.device_id, samples.prediction_id == verdicts.prediction_id)
            .correlate(tables.feedback)
            .scalar_subquery()
        )
        joined, gone = verdicts.sample_id.is_not(None), verdicts.frame_available.is_(False)
        with self._database.write() as connection:
            connection.execute(
                update(tables.feedback).where(verdicts.sample_id.is_(None), match.is_not(None)).values(sample_id=match)
            )
            row = connection.execute(
                select(
                    func.count().label("all"),
                    func.count().filter(joined).label("joined"),
                    func.count().filter(and_(~joined, gone)).label("gone"),
                ).select_from(tables.feedback)
            ).one()
        total, with_sample, without_frame = tuple(row)
        return FeedbackJoin(with_sample, without_frame, total - with_sample - without_frame)


def _by_ids(query: Select[Any], ids: Collection[str] | None) -> Iterator[Select[Any]]:
    if ids is None:
        yield query
        return
    for chunk in chunks(set(ids)):
        yield query.where(tables.samples.c.sample_id.in_(chunk))


def _count_samples(connection: Connection) -> int:
    return connection.execute(select(func.count()).select_from(tables.samples)).scalar_one()
