"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema forward."""
    _arrivals()
    _samples()
    _rounds()
    _answers()
    _results()


def _arrivals() -> None:
    op.create_table(
        "devices",
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("first_seen", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reported", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("device_id", name=op.f("pk_devices")),
    )
    op.create_table(
        "batches",
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("boot_id", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("taken_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("counters", sa.JSON(), nullable=True),
        sa.Column("captures", sa.Integer(), nullable=False),
        sa.Column("feedback", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["devices.device_id"], name=op.f("fk_batches_device_id")),
        sa.PrimaryKeyConstraint("device_id", "boot_id", "sequence", name=op.f("pk_batches")),
    )
    op.create_table(
        "quarantine",
        sa.Column("quarantine_id", sa.Text(), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=True),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("quarantine_id", name=op.f("pk_quarantine")),
    )


def _samples() -> None:
    op.create_table(
        "samples",
        sa.Column("sample_id", sa.Text(), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("camera_id", sa.Text(), nullable=False),
        sa.Column("frame_index", sa.BigInteger(), nullable=False),
        sa.Column("captured_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("boot_id", sa.Text(), nullable=False),
        sa.Column("batch_sequence", sa.BigInteger(), nullable=False),
        sa.Column("image_key", sa.Text(), nullable=False),
        sa.Column("image_sha256", sa.String(length=64), nullable=False),
        sa.Column("image_bytes", sa.BigInteger(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("release_id", sa.Text(), nullable=True),
        sa.Column("prediction_id", sa.Text(), nullable=True),
        sa.Column("prediction", sa.JSON(), nullable=True),
        sa.Column("embedding", sa.LargeBinary(), nullable=True),
        sa.Column("arms", sa.Text(), nullable=False),
        sa.Column("random_probability", sa.Float(), nullable=True),
        sa.Column("inclusion_probability", sa.Float(), nullable=False),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("ingested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("flags", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("sample_id", name=op.f("pk_samples")),
    )
    op.create_index(op.f("ix_samples_captured_at"), "samples", ["captured_at"], unique=False)
    op.create_index(
        op.f("ix_samples_device_id_boot_id_batch_sequence"),
        "samples",
        ["device_id", "boot_id", "batch_sequence"],
        unique=False,
    )
    op.create_index(op.f("ix_samples_device_id_prediction_id"), "samples", ["device_id", "prediction_id"], unique=False)
    op.create_index(op.f("ix_samples_status"), "samples", ["status"], unique=False)
    op.create_table(
        "feedback",
        sa.Column("feedback_id", sa.Text(), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("prediction_id", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("user", sa.Text(), nullable=True),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("frame_available", sa.Boolean(), nullable=False),
        sa.Column("sample_id", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["device_id"], ["devices.device_id"], name=op.f("fk_feedback_device_id")),
        sa.ForeignKeyConstraint(["sample_id"], ["samples.sample_id"], name=op.f("fk_feedback_sample_id")),
        sa.PrimaryKeyConstraint("feedback_id", name=op.f("pk_feedback")),
    )
    op.create_index(op.f("ix_feedback_sample_id"), "feedback", ["sample_id"], unique=False)


def _rounds() -> None:
    op.create_table(
        "rounds",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("budget", sa.Integer(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_rounds")),
    )
    op.create_table(
        "selections",
        sa.Column("sample_id", sa.Text(), nullable=False),
        sa.Column("round_number", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("utility", sa.Float(), nullable=False),
        sa.Column("inclusion_probability", sa.Float(), nullable=True),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("cluster", sa.BigInteger(), nullable=True),
        sa.Column("stands_for", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["round_number"], ["rounds.number"], name=op.f("fk_selections_round_number")),
        sa.ForeignKeyConstraint(["sample_id"], ["samples.sample_id"], name=op.f("fk_selections_sample_id")),
        sa.PrimaryKeyConstraint("sample_id", name=op.f("pk_selections")),
        sa.UniqueConstraint("round_number", "rank", name=op.f("uq_selections_round_number_rank")),
    )
    op.create_table(
        "tasks",
        sa.Column("sample_id", sa.Text(), nullable=False),
        sa.Column("round_number", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("backend_task_id", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["round_number"], ["rounds.number"], name=op.f("fk_tasks_round_number")),
        sa.ForeignKeyConstraint(["sample_id"], ["selections.sample_id"], name=op.f("fk_tasks_sample_id")),
        sa.PrimaryKeyConstraint("sample_id", name=op.f("pk_tasks")),
        sa.UniqueConstraint("backend_task_id", name=op.f("uq_tasks_backend_task_id")),
    )
    op.create_index(op.f("ix_tasks_status"), "tasks", ["status"], unique=False)


def _answers() -> None:
    op.create_table(
        "annotations",
        sa.Column("annotation_id", sa.Text(), nullable=False),
        sa.Column("sample_id", sa.Text(), nullable=False),
        sa.Column("annotator", sa.Text(), nullable=True),
        sa.Column("label", sa.JSON(), nullable=True),
        sa.Column("was_cancelled", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("lead_time_s", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["sample_id"], ["samples.sample_id"], name=op.f("fk_annotations_sample_id")),
        sa.PrimaryKeyConstraint("annotation_id", name=op.f("pk_annotations")),
    )
    op.create_index(op.f("ix_annotations_sample_id"), "annotations", ["sample_id"], unique=False)
    op.create_table(
        "watermarks",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_watermarks")),
    )


def _results() -> None:
    op.create_table(
        "dataset_versions",
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("round_number", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("saved_order", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_dataset_versions")),
        sa.UniqueConstraint("saved_order", name=op.f("uq_dataset_versions_saved_order")),
    )
    op.create_table(
        "dataset_items",
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("sample_id", sa.Text(), nullable=False),
        sa.Column("image_key", sa.Text(), nullable=False),
        sa.Column("label", sa.JSON(), nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("group", sa.Text(), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("camera_id", sa.Text(), nullable=False),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.Column("inclusion_probability", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["version"], ["dataset_versions.version"], name=op.f("fk_dataset_items_version")),
        sa.PrimaryKeyConstraint("version", "position", name=op.f("pk_dataset_items")),
        sa.UniqueConstraint("version", "sample_id", name=op.f("uq_dataset_items_version_sample_id")),
    )
    op.create_table(
        "models",
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("round_number", sa.Integer(), nullable=False),
        sa.Column("dataset_version", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("artifacts", sa.JSON(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("release_id", sa.Text(), nullable=True),
        sa.Column("release_number", sa.Integer(), nullable=True),
        sa.Column("gate", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(
            ["dataset_version"], ["dataset_versions.version"], name=op.f("fk_models_dataset_version")
        ),
        sa.PrimaryKeyConstraint("model_id", name=op.f("pk_models")),
        sa.UniqueConstraint("release_id", name=op.f("uq_models_release_id")),
        sa.UniqueConstraint("release_number", name=op.f("uq_models_release_number")),
    )
