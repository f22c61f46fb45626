"""What a release has answered is found in the order in which it came."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema forward."""
    op.create_index(op.f("ix_samples_release_id_ingested_at"), "samples", ["release_id", "ingested_at"], unique=False)
