"""The catalog's tables. Unique constraints carry the guarantees: one batch an id, one task a sample.

A change here needs a migration beside it; a test compares the two.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
)


class UtcTime(TypeDecorator[datetime]):
    """Aware datetimes in and out; stored as UTC, also where the database knows no time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive times and drop the zone where it cannot be stored."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002  SQLAlchemy's signature
        """Give the zone back."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Words(TypeDecorator[tuple[str, ...]]):
    """A tuple of short names without commas, as one text that can be grouped by."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, dialect: Dialect) -> str | None:  # noqa: ARG002  SQLAlchemy's signature
        """Join."""
        return None if value is None else ",".join(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> tuple[str, ...] | None:  # noqa: ARG002  SQLAlchemy's signature
        """Split."""
        return None if value is None else tuple(word for word in value.split(",") if word)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

devices = Table(
    "devices",
    metadata,
    Column("device_id", Text, primary_key=True),
    Column("first_seen", UtcTime, nullable=False),
    Column("last_seen", UtcTime, nullable=False),
    Column("reported", JSON(none_as_null=True)),
    Column("site", Text),
    Column("unlearned_at", UtcTime),
)

batches = Table(
    "batches",
    metadata,
    Column("device_id", Text, ForeignKey("devices.device_id"), nullable=False),
    Column("boot_id", Text, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("status", Text, nullable=False),
    Column("taken_at", UtcTime, nullable=False),
    Column("created_at", UtcTime),
    Column("counters", JSON(none_as_null=True)),
    Column("captures", Integer, nullable=False),
    Column("feedback", Integer, nullable=False),
    PrimaryKeyConstraint("device_id", "boot_id", "sequence"),
    Index(None, "device_id", "created_at"),
)

samples = Table(
    "samples",
    metadata,
    Column("sample_id", Text, primary_key=True),
    Column("device_id", Text, nullable=False),
    Column("camera_id", Text, nullable=False),
    Column("frame_index", BigInteger, nullable=False),
    Column("captured_at", UtcTime, nullable=False),
    Column("boot_id", Text, nullable=False),
    Column("batch_sequence", BigInteger, nullable=False),
    Column("image_key", Text, nullable=False),
    Column("image_sha256", String(64), nullable=False),
    Column("image_bytes", BigInteger, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("release_id", Text),
    Column("prediction_id", Text),
    Column("prediction", JSON(none_as_null=True)),
    Column("embedding", LargeBinary),
    Column("arms", Words, nullable=False),
    Column("random_probability", Float),
    Column("inclusion_probability", Float, nullable=False),
    Column("reasons", JSON, nullable=False),
    Column("status", Text, nullable=False),
    Column("ingested_at", UtcTime),
    Column("flags", Words, nullable=False),
    Index(None, "device_id", "boot_id", "batch_sequence"),
    Index(None, "device_id", "prediction_id"),
    Index(None, "status"),
    Index(None, "captured_at"),
    Index(None, "release_id", "captured_at"),
    Index(None, "release_id", "ingested_at"),
)

feedback = Table(
    "feedback",
    metadata,
    Column("feedback_id", Text, primary_key=True),
    Column("device_id", Text, ForeignKey("devices.device_id"), nullable=False),
    Column("prediction_id", Text, nullable=False),
    Column("verdict", Text, nullable=False),
    Column("reason", Text),
    Column("label", Text),
    Column("user", Text),
    Column("received_at", UtcTime, nullable=False),
    Column("frame_available", Boolean, nullable=False),
    Column("sample_id", Text, ForeignKey("samples.sample_id"), index=True),
    Column("quarantined", Boolean, nullable=False, server_default=false()),
    Column("box_id", Text),
)

quarantine = Table(
    "quarantine",
    metadata,
    Column("quarantine_id", Text, primary_key=True),
    Column("device_id", Text),
    Column("key", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("at", UtcTime, nullable=False),
)

rounds = Table(
    "rounds",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("phase", Text, nullable=False),
    Column("budget", Integer, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("opened_at", UtcTime, nullable=False),
    Column("closed_at", UtcTime),
    Column("facts", JSON, nullable=False),
)

selections = Table(
    "selections",
    metadata,
    Column("sample_id", Text, ForeignKey("samples.sample_id"), primary_key=True),
    Column("round_number", Integer, ForeignKey("rounds.number"), nullable=False),
    Column("rank", Integer, nullable=False),
    Column("role", Text, nullable=False),
    Column("utility", Float, nullable=False),
    Column("inclusion_probability", Float),
    Column("reasons", JSON, nullable=False),
    Column("cluster", BigInteger),
    Column("stands_for", Integer, nullable=False),
    Column("explored", Boolean, nullable=False, server_default=false()),
    Column("nearest_id", Text),
    Column("nearest_cosine", Float),
    Column("cell", BigInteger),
    Column("parts", JSON(none_as_null=True)),
    Column("policy_digest", String(64)),
    UniqueConstraint("round_number", "rank"),
)

tasks = Table(
    "tasks",
    metadata,
    Column("sample_id", Text, ForeignKey("selections.sample_id"), primary_key=True),
    Column("round_number", Integer, ForeignKey("rounds.number"), nullable=False),
    Column("rank", Integer, nullable=False),
    Column("status", Text, nullable=False, index=True),
    Column("backend_task_id", Text, unique=True),
)

annotation_rows = Table(
    "annotations",
    metadata,
    Column("annotation_id", Text, primary_key=True),
    Column("sample_id", Text, ForeignKey("samples.sample_id"), nullable=False, index=True),
    Column("annotator", Text),
    Column("label", JSON(none_as_null=True)),
    Column("was_cancelled", Boolean, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    Column("lead_time_s", Float),
)

watermarks = Table(
    "watermarks",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

dataset_versions = Table(
    "dataset_versions",
    metadata,
    Column("version", Text, primary_key=True),
    Column("round_number", Integer, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("saved_order", Integer, nullable=False, unique=True),
)

dataset_items = Table(
    "dataset_items",
    metadata,
    Column("version", Text, ForeignKey("dataset_versions.version"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("sample_id", Text, nullable=False),
    Column("image_key", Text, nullable=False),
    Column("label", JSON, nullable=False),
    Column("split", Text, nullable=False),
    Column("group", Text, nullable=False),
    Column("device_id", Text, nullable=False),
    Column("camera_id", Text, nullable=False),
    Column("weight", Float, nullable=False),
    Column("inclusion_probability", Float),
    PrimaryKeyConstraint("version", "position"),
    UniqueConstraint("version", "sample_id"),
)

models = Table(
    "models",
    metadata,
    Column("model_id", Text, primary_key=True),
    Column("round_number", Integer, nullable=False),
    Column("dataset_version", Text, ForeignKey("dataset_versions.version"), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("status", Text, nullable=False),
    Column("artifacts", JSON, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("release_id", Text, unique=True),
    Column("release_number", Integer, unique=True),
    Column("gate", JSON(none_as_null=True)),
)
