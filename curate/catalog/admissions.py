"""The catalog's front door: batches, what they brought, and what is acknowledged to devices."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Table, and_, func, select, tuple_, update

from curate.catalog import tables
from curate.catalog.database import Database, chunks, insert_all, insert_or_skip
from curate.catalog.ingest import AdmissionPlan, quarantine_row
from curate.catalog.models import BatchRow, BatchStatus, DeviceRow, QuarantineRow
from curate.catalog.rows import batch_of_row, quarantine_of_row, row_of_batch, row_of_sample
from curate.contracts.assignment import Acknowledgement
from curate.contracts.telemetry import DeviceCounters, ReportedState

RECENT_BOOTS = 50


@dataclass(frozen=True)
class AdmissionResult:
    """What admitting one batch changed. All zero and `known` when it had been taken before."""

    known: bool = False
    """The very same record had been taken before."""
    conflict: bool = False
    """A different record had been taken under this batch id; this one went to quarantine."""
    samples: int = 0
    feedback: int = 0
    repeated: int = 0
    """Captures and verdicts that an earlier batch had already brought."""
    quarantined: int = 0


class Admissions:
    """Operations on devices, batches and the quarantine."""

    _database: Database

    def admit_batch(self, plan: AdmissionPlan) -> AdmissionResult:
        """Take one batch, all or nothing. Taking it again changes nothing."""
        return self.admit_batches([plan])[0]

    def admit_batches(self, plans: Sequence[AdmissionPlan]) -> list[AdmissionResult]:
        """Take batches one after the other, all of them or none, in one commit. Taking them again changes nothing."""
        if not any(plans):
            return [AdmissionResult() for _ in plans]
        with self._database.write() as connection:
            return [_admit(connection, plan) for plan in plans]

    def batches(self, device_id: str | None = None) -> list[BatchRow]:
        """Every batch taken, by device, boot and sequence."""
        query = select(tables.batches)
        if device_id is not None:
            query = query.where(tables.batches.c.device_id == device_id)
        with self._database.read() as connection:
            found = [batch_of_row(row) for row in connection.execute(query)]
        return sorted(found, key=lambda batch: (batch.device_id, batch.boot_id, batch.sequence))

    def batches_around(self, device_id: str, since: datetime, until: datetime) -> list[BatchRow]:
        """A device's batches of a period by its own clock, with the last before and the first after it, by that time.

        Running totals can be read off them at both ends.
        """
        columns = tables.batches.c
        mine = select(tables.batches).where(columns.device_id == device_id)
        parts = (
            mine.where(columns.created_at < since).order_by(columns.created_at.desc()).limit(1),
            mine.where(columns.created_at >= since, columns.created_at <= until),
            mine.where(columns.created_at > until).order_by(columns.created_at).limit(1),
        )
        with self._database.read() as connection:
            found = [batch_of_row(row) for part in parts for row in connection.execute(part)]
        return sorted(found, key=lambda batch: (batch.created_at or since, batch.boot_id, batch.sequence))

    def known_batches(self, device_id: str | None = None) -> dict[str, str]:
        """Digest of every batch taken, by batch id."""
        return {batch.batch_id: batch.digest for batch in self.batches(device_id)}

    def batch_status(self, batches: Collection[tuple[str, str, int]]) -> dict[tuple[str, str, int], BatchStatus]:
        """Status of those of the batches, named by (device, boot, sequence), that have been taken."""
        columns = tables.batches.c
        identity = (columns.device_id, columns.boot_id, columns.sequence)
        status: dict[tuple[str, str, int], BatchStatus] = {}
        with self._database.read() as connection:
            for chunk in chunks(batches):
                query = select(*identity, columns.status).where(tuple_(*identity).in_(chunk))
                status |= {
                    (r.device_id, r.boot_id, r.sequence): BatchStatus(r.status) for r in connection.execute(query)
                }
        return status

    def acknowledgement(self, device_id: str, *, now: datetime, recent_boots: int = RECENT_BOOTS) -> Acknowledgement:
        """The highest contiguous sequence, counted from 1, of each of the device's recently seen boots.

        A gap holds back what lies behind it: devices upload in order, so the gap is still on its way.
        """
        columns = tables.batches.c
        recent = (
            select(columns.boot_id)
            .where(columns.device_id == device_id)
            .group_by(columns.boot_id)
            .order_by(func.max(columns.taken_at).desc(), columns.boot_id)
            .limit(recent_boots)
        )
        numbered = (
            select(
                columns.boot_id,
                columns.sequence,
                func.row_number().over(partition_by=columns.boot_id, order_by=columns.sequence).label("position"),
            )
            .where(columns.device_id == device_id, columns.boot_id.in_(recent))
            .subquery()
        )
        query = (
            select(numbered.c.boot_id, func.max(numbered.c.sequence).label("through"))
            .where(numbered.c.sequence == numbered.c.position)
            .group_by(numbered.c.boot_id)
            .order_by(numbered.c.boot_id)
        )
        with self._database.read() as connection:
            through = {row.boot_id: row.through for row in connection.execute(query)}
        return Acknowledgement(device_id=device_id, through=through, updated_at=now)

    def device_counters(self) -> dict[str, DeviceCounters]:
        """The newest counters each device sent in a batch.

        Newest: within a boot the highest sequence, between boots the most frames seen. Clocks are not asked.
        """
        columns = tables.batches.c
        newest = (
            select(columns.device_id, columns.boot_id, func.max(columns.sequence).label("sequence"))
            .where(columns.status == BatchStatus.INGESTED)
            .group_by(columns.device_id, columns.boot_id)
            .subquery()
        )
        query = select(tables.batches).join(
            newest,
            and_(*(columns[name] == newest.c[name] for name in ("device_id", "boot_id", "sequence"))),
        )
        with self._database.read() as connection:
            return _newest_counters([batch_of_row(row) for row in connection.execute(query)])

    def register_device(self, device_id: str, now: datetime) -> None:
        """Know a device before it has sent anything, so that it can be given a release."""
        with self._database.write() as connection:
            _see_device(connection, device_id, now)

    def save_reported(self, reported: ReportedState, *, now: datetime) -> None:
        """Keep a device's heartbeat, replacing the one before."""
        with self._database.write() as connection:
            _see_device(connection, reported.device_id, now)
            connection.execute(
                update(tables.devices)
                .where(tables.devices.c.device_id == reported.device_id)
                .values(reported=reported.model_dump(mode="json"))
            )

    def devices(self) -> list[DeviceRow]:
        """Every device that was registered or ever sent something, by id."""
        with self._database.read() as connection:
            rows = connection.execute(select(tables.devices)).all()
        return sorted((_device_of_row(row) for row in rows), key=lambda device: device.device_id)

    def quarantine(self, device_id: str | None = None) -> list[QuarantineRow]:
        """What was refused, oldest first."""
        query = select(tables.quarantine)
        if device_id is not None:
            query = query.where(tables.quarantine.c.device_id == device_id)
        with self._database.read() as connection:
            rows = [quarantine_of_row(row) for row in connection.execute(query)]
        return sorted(rows, key=lambda row: (row.at, row.key, row.quarantine_id))


def _admit(connection: Connection, plan: AdmissionPlan) -> AdmissionResult:
    if plan.batch is None:
        return AdmissionResult(quarantined=_quarantine(connection, plan.quarantine))
    taken = _taken_digest(connection, plan.batch)
    if taken == plan.batch.digest:
        return AdmissionResult(known=True)
    if taken is not None:
        return AdmissionResult(conflict=True, quarantined=_quarantine(connection, [_conflict(plan, plan.batch)]))
    _see_device(connection, plan.batch.device_id, plan.batch.taken_at)
    connection.execute(tables.batches.insert(), row_of_batch(plan.batch))
    return _admit_content(connection, plan, plan.batch)


def _taken_digest(connection: Connection, batch: BatchRow) -> str | None:
    columns = tables.batches.c
    query = select(columns.digest).where(
        columns.device_id == batch.device_id,
        columns.boot_id == batch.boot_id,
        columns.sequence == batch.sequence,
    )
    return connection.execute(query).scalar_one_or_none()


def _admit_content(connection: Connection, plan: AdmissionPlan, batch: BatchRow) -> AdmissionResult:
    samples = {sample.sample_id: sample for sample in plan.samples}
    verdicts = {verdict.feedback_id: verdict for verdict in plan.feedback}
    new_samples, taken_samples = _sort_out(
        {key: (sample.device_id, sample.image_sha256) for key, sample in samples.items()},
        _known(connection, tables.samples, ("sample_id", "device_id", "image_sha256"), samples),
    )
    new_verdicts, taken_verdicts = _sort_out(
        {key: (verdict.device_id, verdict.prediction_id) for key, verdict in verdicts.items()},
        _known(connection, tables.feedback, ("feedback_id", "device_id", "prediction_id"), verdicts),
    )
    insert_all(connection, tables.samples, [row_of_sample(samples[key]) for key in new_samples])
    insert_all(connection, tables.feedback, [dict(vars(verdicts[key])) for key in new_verdicts])
    taken = [*taken_samples, *taken_verdicts]
    refused = [*plan.quarantine, *(_id_taken(plan, batch, name) for name in taken)]
    return AdmissionResult(
        samples=len(new_samples),
        feedback=len(new_verdicts),
        repeated=len(samples) + len(verdicts) - len(new_samples) - len(new_verdicts) - len(taken),
        quarantined=_quarantine(connection, refused),
    )


def _known(
    connection: Connection, table: Table, names: tuple[str, str, str], ids: Collection[str]
) -> dict[str, tuple[str, str]]:
    """Owner and content of the ids the catalog knows already."""
    key, owner, content = (table.c[name] for name in names)
    known: dict[str, tuple[str, str]] = {}
    for chunk in chunks(ids):
        known |= {
            row[0]: (row[1], row[2]) for row in connection.execute(select(key, owner, content).where(key.in_(chunk)))
        }
    return known


def _sort_out(
    wanted: Mapping[str, tuple[str, str]], known: Mapping[str, tuple[str, str]]
) -> tuple[list[str], list[str]]:
    """Ids nobody bears yet, and ids something else bears: a repeated upload is neither."""
    new = [key for key in wanted if key not in known]
    taken = [key for key in wanted if key in known and known[key] != wanted[key]]
    return new, taken


def _conflict(plan: AdmissionPlan, batch: BatchRow) -> QuarantineRow:
    detail = f"another record was taken as {batch.batch_id}; this one has digest {batch.digest}"
    return quarantine_row(plan.inbox_key, batch.device_id, "batch_conflict", detail, batch.taken_at)


def _id_taken(plan: AdmissionPlan, batch: BatchRow, name: str) -> QuarantineRow:
    detail = f"{name} is known with another device or content"
    return quarantine_row(plan.inbox_key, batch.device_id, "id_taken", detail, batch.taken_at)


def _quarantine(connection: Connection, rows: Sequence[QuarantineRow]) -> int:
    insert_or_skip(connection, tables.quarantine, [dict(vars(row)) for row in rows])
    return len(rows)


def _see_device(connection: Connection, device_id: str, now: datetime) -> None:
    columns = tables.devices.c
    insert_or_skip(connection, tables.devices, [{"device_id": device_id, "first_seen": now, "last_seen": now}])
    connection.execute(
        update(tables.devices).where(columns.device_id == device_id, columns.last_seen < now).values(last_seen=now)
    )


def _device_of_row(row: Row[Any]) -> DeviceRow:
    values = dict(row._mapping)
    if values["reported"] is not None:
        values["reported"] = ReportedState.model_validate(values["reported"])
    return DeviceRow(**values)


def _newest_counters(newest_of_boot: Sequence[BatchRow]) -> dict[str, DeviceCounters]:
    newest: dict[str, DeviceCounters] = {}
    for batch in sorted(newest_of_boot, key=lambda batch: (batch.device_id, batch.taken_at, batch.boot_id)):
        before = newest.get(batch.device_id)
        if batch.counters is not None and (before is None or batch.counters.frames_seen >= before.frames_seen):
            newest[batch.device_id] = batch.counters
    return newest
