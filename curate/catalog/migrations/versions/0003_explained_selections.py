"""Chosen samples carry what explains them; captures of a release and batches of a time are found without a search."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema forward."""
    op.add_column("selections", sa.Column("explored", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("selections", sa.Column("nearest_id", sa.Text(), nullable=True))
    op.add_column("selections", sa.Column("nearest_cosine", sa.Float(), nullable=True))
    op.add_column("selections", sa.Column("cell", sa.BigInteger(), nullable=True))
    op.add_column("selections", sa.Column("parts", sa.JSON(), nullable=True))
    op.add_column("selections", sa.Column("policy_digest", sa.String(length=64), nullable=True))
    op.create_index(op.f("ix_samples_release_id_captured_at"), "samples", ["release_id", "captured_at"], unique=False)
    op.create_index(op.f("ix_batches_device_id_created_at"), "batches", ["device_id", "created_at"], unique=False)
