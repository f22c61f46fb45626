"""Rounds, what they selected, the tasks sent and the answers taken: the part that must never ask twice."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, select, update

from curate.catalog import tables
from curate.catalog.database import Database, chunks, insert_all, insert_or_skip
from curate.catalog.fleet import counts_still
from curate.catalog.models import (
    AnnotationRow,
    Round,
    RoundPhase,
    SampleStatus,
    SelectedRow,
    SelectionRole,
    TaskRow,
    TaskStatus,
)
from curate.catalog.rounds import has_reached
from curate.catalog.rows import round_of_row
from curate.errors import CatalogError


class Ledger:
    """Operations on rounds, selections, tasks and annotations."""

    _database: Database

    def open_round(self, number: int, *, budget: int, seed: int, now: datetime) -> Round:
        """Open a round, or return the one already open under this number, as it stands."""
        fresh = Round(number=number, phase=RoundPhase.OPEN, budget=budget, seed=seed, opened_at=now)
        with self._database.write() as connection:
            insert_or_skip(connection, tables.rounds, [{**vars(fresh), "phase": fresh.phase.value}])
            return _fetch_round(connection, number)

    def round(self, number: int) -> Round | None:
        """One round, or None."""
        return next((found for found in self.rounds() if found.number == number), None)

    def rounds(self) -> list[Round]:
        """All rounds by number."""
        with self._database.read() as connection:
            return [round_of_row(row) for row in connection.execute(select(tables.rounds).order_by("number"))]

    def current_round(self) -> Round | None:
        """The newest round, unless it is closed."""
        newest = max(self.rounds(), key=lambda found: found.number, default=None)
        return None if newest is None or newest.phase is RoundPhase.CLOSED else newest

    def advance_round(
        self, number: int, phase: RoundPhase, facts: Mapping[str, Any] | None = None, *, now: datetime
    ) -> Round:
        """Move a round forward and merge what its stages learned; the same phase again only merges.

        Raises:
            CatalogError: the round is unknown or already further.
        """
        with self._database.write() as connection:
            current = _fetch_round(connection, number)
            if not has_reached(phase, current.phase):
                raise CatalogError(f"round {number} is at {current.phase}, which is beyond {phase}")
            closed_at = current.closed_at or (now if phase is RoundPhase.CLOSED else None)
            advanced = replace(current, phase=phase, facts={**current.facts, **(facts or {})}, closed_at=closed_at)
            connection.execute(
                update(tables.rounds)
                .where(tables.rounds.c.number == number)
                .values(phase=phase.value, facts=advanced.facts, closed_at=closed_at)
            )
            return advanced

    def save_selection(self, round_number: int, rows: Sequence[SelectedRow]) -> None:
        """Store the choice, queue its samples and write their planned tasks, all or nothing.

        Saving the same choice again changes nothing.

        Raises:
            CatalogError: a sample is not in the pool, or the round has another selection.
        """
        chosen = _by_rank(round_number, rows)
        with self._database.write() as connection:
            _fetch_round(connection, round_number)
            saved = _fetch_selection(connection, round_number)
            if saved == chosen:
                return
            if saved:
                raise CatalogError(f"round {round_number} has another selection already")
            _queue(connection, chosen)

    def extend_selection(self, round_number: int, rows: Sequence[SelectedRow]) -> None:
        """Add to a round's choice and plan the tasks, all or nothing; adding the same rows again changes nothing.

        Raises:
            CatalogError: a sample is neither in the pool nor in the round as it is given here, or a row is of another
                round.
        """
        chosen = _by_rank(round_number, rows)
        with self._database.write() as connection:
            saved = _fetch_selection(connection, round_number)
            _queue(connection, [row for row in chosen if row not in saved])

    def selection(self, round_number: int) -> list[SelectedRow]:
        """What a round chose, by rank."""
        with self._database.read() as connection:
            return _fetch_selection(connection, round_number)

    def selections(self) -> list[SelectedRow]:
        """What all rounds chose, by round and rank."""
        columns = tables.selections.c
        query = select(tables.selections).order_by(columns.round_number, columns.rank)
        with self._database.read() as connection:
            return [_selected_of_row(row) for row in connection.execute(query)]

    def audited(self) -> set[str]:
        """Samples that any round chose as audits: nothing is ever taught with them."""
        return {row.sample_id for row in self.selections() if row.role is SelectionRole.AUDIT}

    def selected(self, sample_id: str) -> SelectedRow | None:
        """Why a sample was chosen, None when it never was; none is chosen twice."""
        with self._database.read() as connection:
            query = select(tables.selections).where(tables.selections.c.sample_id == sample_id)
            row = connection.execute(query).one_or_none()
            return None if row is None else _selected_of_row(row)

    def tasks(self, *, round_number: int | None = None, status: TaskStatus | None = None) -> list[TaskRow]:
        """Tasks that fit, by round and rank."""
        columns = tables.tasks.c
        query = select(tables.tasks).order_by(columns.round_number, columns.rank)
        if round_number is not None:
            query = query.where(columns.round_number == round_number)
        if status is not None:
            query = query.where(columns.status == status.value)
        with self._database.read() as connection:
            return [_task_of_row(row) for row in connection.execute(query)]

    def mark_sent(self, backend_ids: Mapping[str, str]) -> None:
        """Note the backend's task id of each sample sent. An answered task stays answered; repeating is fine.

        Raises:
            CatalogError: a sample has no task, or one of the tasks bears another id; nothing is noted then.
        """
        columns = tables.tasks.c
        with self._database.write() as connection:
            for sample_id, backend_id in backend_ids.items():
                task = _fetch_task(connection, sample_id)
                if task.backend_task_id not in (None, backend_id):
                    raise CatalogError(f"{sample_id} was sent as task {task.backend_task_id}, not {backend_id}")
                status = TaskStatus.SENT if task.status is TaskStatus.PLANNED else task.status
                connection.execute(
                    update(tables.tasks)
                    .where(columns.sample_id == sample_id)
                    .values(status=status.value, backend_task_id=backend_id)
                )

    def mark_task(self, sample_id: str, status: TaskStatus) -> None:
        """Set one task's status; CatalogError when the sample has no task."""
        with self._database.write() as connection:
            _fetch_task(connection, sample_id)
            _set_task(connection, sample_id, status)

    def save_annotations(self, rows: Sequence[AnnotationRow]) -> int:
        """Take answers; of one answer's versions the newest by `updated_at` stays. Returns how many rows changed.

        In the same transaction samples become labelled (or skipped, when every answer is a skip) and tasks completed.

        Raises:
            CatalogError: an answer belongs to no sample; nothing is taken then.
        """
        with self._database.write() as connection:
            changed = [row for row in rows if _save_annotation(connection, row)]
            _settle(connection, {row.sample_id for row in changed})
        return len(changed)

    def delete_annotation(self, annotation_id: str) -> bool:
        """Take an answer back; a sample without answers is queued again. Returns whether there was one."""
        key = tables.annotation_rows.c.annotation_id == annotation_id
        with self._database.write() as connection:
            sample_id = connection.execute(select(tables.annotation_rows.c.sample_id).where(key)).scalar_one_or_none()
            if sample_id is None:
                return False
            connection.execute(delete(tables.annotation_rows).where(key))
            _settle(connection, {sample_id})
        return True

    def annotations(
        self, *, round_number: int | None = None, sample_ids: Collection[str] | None = None
    ) -> list[AnnotationRow]:
        """Answers that fit all that is given, by sample and then in order of creation."""
        query = select(tables.annotation_rows)
        if round_number is not None:
            of_round = select(tables.tasks.c.sample_id).where(tables.tasks.c.round_number == round_number)
            query = query.where(tables.annotation_rows.c.sample_id.in_(of_round))
        asked = tables.annotation_rows.c.sample_id
        parts = [query] if sample_ids is None else [query.where(asked.in_(part)) for part in chunks(set(sample_ids))]
        with self._database.read() as connection:
            found = [AnnotationRow(**row._mapping) for part in parts for row in connection.execute(part)]
        return sorted(found, key=lambda row: (row.sample_id, row.created_at, row.annotation_id))

    def watermark(self, name: str) -> str | None:
        """How far a poller has come, in its own words, or None."""
        with self._database.read() as connection:
            query = select(tables.watermarks.c.value).where(tables.watermarks.c.name == name)
            return connection.execute(query).scalar_one_or_none()

    def set_watermark(self, name: str, value: str) -> None:
        """Remember how far a poller has come."""
        with self._database.write() as connection:
            insert_or_skip(connection, tables.watermarks, [{"name": name, "value": value}])
            connection.execute(update(tables.watermarks).where(tables.watermarks.c.name == name).values(value=value))


def _fetch_round(connection: Connection, number: int) -> Round:
    row = connection.execute(select(tables.rounds).where(tables.rounds.c.number == number)).one_or_none()
    if row is None:
        raise CatalogError(f"there is no round {number}")
    return round_of_row(row)


def _fetch_selection(connection: Connection, round_number: int) -> list[SelectedRow]:
    columns = tables.selections.c
    query = select(tables.selections).where(columns.round_number == round_number).order_by(columns.rank)
    return [_selected_of_row(row) for row in connection.execute(query)]


def _by_rank(round_number: int, rows: Sequence[SelectedRow]) -> list[SelectedRow]:
    if any(row.round_number != round_number for row in rows):
        raise CatalogError(f"the selection holds rows of other rounds than {round_number}")
    return sorted(rows, key=lambda row: row.rank)


def _queue(connection: Connection, chosen: Sequence[SelectedRow]) -> None:
    _take_from_pool(connection, [row.sample_id for row in chosen])
    insert_all(connection, tables.selections, [_row_of_selected(row) for row in chosen])
    insert_all(connection, tables.tasks, [_planned_task(row) for row in chosen])


def _row_of_selected(row: SelectedRow) -> dict[str, Any]:
    return {**vars(row), "role": row.role.value, "reasons": list(row.reasons)}


def _selected_of_row(row: Row[Any]) -> SelectedRow:
    values = dict(row._mapping)
    values["role"], values["reasons"] = SelectionRole(values["role"]), tuple(values["reasons"])
    values["parts"] = values["parts"] or {}  # a row from before there were any
    return SelectedRow(**values)


def _take_from_pool(connection: Connection, sample_ids: Sequence[str]) -> None:
    columns = tables.samples.c
    moved = 0
    for chunk in chunks(sample_ids):
        in_pool = (columns.sample_id.in_(chunk), columns.status == SampleStatus.POOL.value, counts_still())
        taken = update(tables.samples).where(*in_pool).values(status=SampleStatus.QUEUED.value)
        moved += connection.execute(taken).rowcount
    if moved != len(sample_ids):
        raise CatalogError(
            f"{len(sample_ids) - moved} of {len(sample_ids)} selected samples are not in the pool",
            hint="select again: the pool has changed",
        )


def _planned_task(row: SelectedRow) -> dict[str, Any]:
    task = TaskRow(row.sample_id, row.round_number, row.rank, TaskStatus.PLANNED)
    return {**vars(task), "status": task.status.value}


def _task_of_row(row: Row[Any]) -> TaskRow:
    values = dict(row._mapping)
    return TaskRow(**{**values, "status": TaskStatus(values["status"])})


def _fetch_task(connection: Connection, sample_id: str) -> TaskRow:
    row = connection.execute(select(tables.tasks).where(tables.tasks.c.sample_id == sample_id)).one_or_none()
    if row is None:
        raise CatalogError(f"{sample_id} has no task")
    return _task_of_row(row)


def _set_task(connection: Connection, sample_id: str, status: TaskStatus) -> bool:
    """Whether there was a task to set."""
    change = update(tables.tasks).where(tables.tasks.c.sample_id == sample_id).values(status=status.value)
    return connection.execute(change).rowcount == 1


def _save_annotation(connection: Connection, row: AnnotationRow) -> bool:
    columns = tables.annotation_rows.c
    known = connection.execute(
        select(columns.sample_id, columns.updated_at).where(columns.annotation_id == row.annotation_id)
    ).one_or_none()
    if known is None:
        connection.execute(tables.annotation_rows.insert(), dict(vars(row)))
        return True
    if known.sample_id != row.sample_id:
        raise CatalogError(f"annotation {row.annotation_id} belongs to {known.sample_id}, not to {row.sample_id}")
    if row.updated_at <= known.updated_at:
        return False
    connection.execute(
        update(tables.annotation_rows).where(columns.annotation_id == row.annotation_id).values(**vars(row))
    )
    return True


def _settle(connection: Connection, sample_ids: Collection[str]) -> None:
    """Let the status of samples and tasks follow from the answers that stand."""
    columns = tables.annotation_rows.c
    for sample_id in sorted(sample_ids):
        query = select(columns.was_cancelled).where(columns.sample_id == sample_id)
        skips = list(connection.execute(query).scalars())
        if not skips:
            sample, task = SampleStatus.QUEUED, TaskStatus.SENT
        elif all(skips):
            sample, task = SampleStatus.SKIPPED, TaskStatus.SKIPPED
        else:
            sample, task = SampleStatus.LABELLED, TaskStatus.COMPLETED
        if not _set_task(connection, sample_id, task) and not skips:
            sample = SampleStatus.POOL  # an imported label taken back: nobody was asked
        connection.execute(
            update(tables.samples).where(tables.samples.c.sample_id == sample_id).values(status=sample.value)
        )
