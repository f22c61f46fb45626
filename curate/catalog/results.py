"""What a round produced: dataset versions and models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, func, select, update

from curate.catalog import tables
from curate.catalog.database import Database, insert_all
from curate.catalog.models import DatasetItem, DatasetVersion, ModelRow, ModelStatus, Split
from curate.errors import CatalogError


class Results:
    """Operations on dataset versions and models."""

    _database: Database

    def save_dataset_version(self, dataset: DatasetVersion, *, renew: bool = False) -> None:
        """Keep a version for ever. Saving it again changes nothing: its name is the digest of its items.

        With `renew` an older version becomes the newest again.
        """
        columns = tables.dataset_versions.c
        with self._database.write() as connection:
            known = select(columns.saved_order).where(columns.version == dataset.version)
            known_order = connection.execute(known).scalar_one_or_none()
            order = connection.execute(select(func.coalesce(func.max(columns.saved_order), 0) + 1)).scalar_one()
            if known_order is not None:
                if renew:
                    again = update(tables.dataset_versions).where(columns.version == dataset.version)
                    connection.execute(again.values(saved_order=order))
                return
            header = {
                "version": dataset.version,
                "round_number": dataset.round_number,
                "created_at": dataset.created_at,
                "saved_order": order,
            }
            connection.execute(tables.dataset_versions.insert(), header)
            items = [_row_of_item(dataset.version, position, item) for position, item in enumerate(dataset.items)]
            insert_all(connection, tables.dataset_items, items)

    def dataset_version(self, version: str) -> DatasetVersion | None:
        """One version, or None."""
        columns = tables.dataset_versions.c
        with self._database.read() as connection:
            row = connection.execute(select(tables.dataset_versions).where(columns.version == version)).one_or_none()
            return None if row is None else _dataset_of_row(connection, row)

    def latest_dataset_version(self) -> DatasetVersion | None:
        """The version saved last, or None."""
        newest = select(tables.dataset_versions).order_by(tables.dataset_versions.c.saved_order.desc()).limit(1)
        with self._database.read() as connection:
            row = connection.execute(newest).one_or_none()
            return None if row is None else _dataset_of_row(connection, row)

    def save_model(self, model: ModelRow) -> None:
        """Keep a new model; saving an equal one again changes nothing.

        Raises:
            CatalogError: the id, the release or its number is taken, or the dataset version is unknown.
        """
        with self._database.write() as connection:
            known = _fetch_model(connection, model.model_id)
            if known is None:
                connection.execute(tables.models.insert(), _row_of_model(model))
            elif known != model:
                raise CatalogError(f"model {model.model_id} is known with other content", hint="use update_model")

    def update_model(
        self,
        model_id: str,
        *,
        status: ModelStatus | None = None,
        release_id: str | None = None,
        release_number: int | None = None,
        gate: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        artifacts: Mapping[str, str] | None = None,
    ) -> ModelRow:
        """Change what is given; metrics and artifacts are merged. Returns the model as it now stands.

        Raises:
            CatalogError: the model is unknown, or the release or its number is another model's.
        """
        with self._database.write() as connection:
            known = _fetch_model(connection, model_id)
            if known is None:
                raise CatalogError(f"there is no model {model_id}")
            changed = replace(
                known,
                status=status or known.status,
                release_id=release_id or known.release_id,
                release_number=release_number or known.release_number,
                gate=known.gate if gate is None else dict(gate),
                metrics={**known.metrics, **(metrics or {})},
                artifacts={**known.artifacts, **(artifacts or {})},
            )
            connection.execute(
                update(tables.models).where(tables.models.c.model_id == model_id).values(**_row_of_model(changed))
            )
            return changed

    def model(self, model_id: str) -> ModelRow | None:
        """One model, or None."""
        with self._database.read() as connection:
            return _fetch_model(connection, model_id)

    def models(self) -> list[ModelRow]:
        """All models by round and time."""
        with self._database.read() as connection:
            found = [_model_of_row(row) for row in connection.execute(select(tables.models))]
        return sorted(found, key=lambda model: (model.round_number, model.created_at, model.model_id))

    def released_model(self) -> ModelRow | None:
        """The released model with the highest release number, or None."""
        columns = tables.models.c
        newest = select(tables.models).where(columns.status == ModelStatus.RELEASED.value)
        with self._database.read() as connection:
            released = [_model_of_row(row) for row in connection.execute(newest)]
        return max(released, key=lambda model: (model.release_number or 0, model.created_at), default=None)


def _row_of_item(version: str, position: int, item: DatasetItem) -> dict[str, Any]:
    return {**vars(item), "version": version, "position": position, "split": item.split.value}


def _dataset_of_row(connection: Connection, row: Row[Any]) -> DatasetVersion:
    columns = tables.dataset_items.c
    query = select(tables.dataset_items).where(columns.version == row.version).order_by(columns.position)
    items = tuple(_item_of_row(item) for item in connection.execute(query))
    return DatasetVersion(row.version, row.round_number, row.created_at, items)


def _item_of_row(row: Row[Any]) -> DatasetItem:
    values = {name: value for name, value in row._mapping.items() if name not in ("version", "position")}
    return DatasetItem(**{**values, "split": Split(values["split"])})


def _row_of_model(model: ModelRow) -> dict[str, Any]:
    return {**vars(model), "status": model.status.value}


def _model_of_row(row: Row[Any]) -> ModelRow:
    values = dict(row._mapping)
    return ModelRow(**{**values, "status": ModelStatus(values["status"])})


def _fetch_model(connection: Connection, model_id: str) -> ModelRow | None:
    row = connection.execute(select(tables.models).where(tables.models.c.model_id == model_id)).one_or_none()
    return None if row is None else _model_of_row(row)
