"""Verdicts that came in a flood are marked."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema forward."""
    op.add_column("feedback", sa.Column("quarantined", sa.Boolean(), nullable=False, server_default=sa.false()))
