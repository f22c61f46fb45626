"""Devices have a site and may be unlearned; a verdict names the box it is about."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the schema forward."""
    op.add_column("devices", sa.Column("site", sa.Text(), nullable=True))
    op.add_column("devices", sa.Column("unlearned_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("feedback", sa.Column("box_id", sa.Text(), nullable=True))
