"""What people decide about devices: where they stand, and which of them counts for nothing any longer."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, Select, case, func, select, update

from curate.catalog import tables
from curate.catalog.database import Database
from curate.catalog.models import SampleStatus, Split, TaskStatus
from curate.errors import CatalogError

_UNLEARNED = select(tables.devices.c.device_id).where(tables.devices.c.unlearned_at.is_not(None))


def counts_still() -> ColumnElement[bool]:
    """The samples of devices that were not unlearned, as a condition."""
    return tables.samples.c.device_id.not_in(_UNLEARNED)


class Fleet:
    """Operations on the standing of devices."""

    _database: Database

    def place_device(self, device_id: str, site: str | None) -> None:
        """Note where a device stands, None to forget it; CatalogError when there is no such device."""
        with self._database.write() as connection:
            _set(connection, device_id, site=site)

    def unlearn_device(self, device_id: str, now: datetime) -> None:
        """Let nothing of a device count from now on: what it sent, and what it will send.

        Questions about its samples that nobody has answered are skipped. Again changes nothing; CatalogError when there
        is no such device.
        """
        columns = tables.tasks.c
        waiting = columns.status.in_([TaskStatus.PLANNED.value, TaskStatus.SENT.value])
        since = func.coalesce(tables.devices.c.unlearned_at, now)
        with self._database.write() as connection:
            _set(connection, device_id, unlearned_at=since)
            connection.execute(
                update(tables.tasks)
                .where(waiting, columns.sample_id.in_(_sample_ids(device_id)))
                .values(status=TaskStatus.SKIPPED.value)
            )

    def relearn_device(self, device_id: str) -> None:
        """Let a device count again and ask again what was skipped for it; CatalogError when there is no such device."""
        columns = tables.tasks.c
        # Where a person skipped, the sample is skipped, too.
        queued = _sample_ids(device_id).where(tables.samples.c.status == SampleStatus.QUEUED.value)
        asked = case((columns.backend_task_id.is_not(None), TaskStatus.SENT.value), else_=TaskStatus.PLANNED.value)
        with self._database.write() as connection:
            _set(connection, device_id, unlearned_at=None)
            connection.execute(
                update(tables.tasks)
                .where(columns.status == TaskStatus.SKIPPED.value, columns.sample_id.in_(queued))
                .values(status=asked)
            )

    def unlearned_devices(self) -> tuple[str, ...]:
        """The devices that count for nothing, by id."""
        with self._database.read() as connection:
            return tuple(sorted(connection.execute(_UNLEARNED).scalars()))

    def taught_by(self, devices: Collection[str]) -> set[str]:
        """The dataset versions that hold samples of these devices to train with."""
        columns = tables.dataset_items.c
        taught = columns.split.in_([Split.TRAIN.value, Split.VALIDATION.value])
        query = select(columns.version).where(taught, columns.device_id.in_(list(devices))).distinct()
        with self._database.read() as connection:
            return set(connection.execute(query).scalars())

    def last_version_with(self, device_id: str) -> str | None:
        """The newest dataset version that holds anything of a device, None when none does."""
        items, versions = tables.dataset_items.c, tables.dataset_versions.c
        query = (
            select(versions.version)
            .where(versions.version.in_(select(items.version).where(items.device_id == device_id)))
            .order_by(versions.saved_order.desc())
            .limit(1)
        )
        with self._database.read() as connection:
            return connection.execute(query).scalar_one_or_none()


def _sample_ids(device_id: str) -> Select[tuple[str]]:
    return select(tables.samples.c.sample_id).where(tables.samples.c.device_id == device_id)


def _set(connection: Connection, device_id: str, **values: object) -> None:
    change = update(tables.devices).where(tables.devices.c.device_id == device_id).values(**values)
    if not connection.execute(change).rowcount:
        raise CatalogError(f"there is no device {device_id}", hint="see `gleaner device list`")
