"""${message}."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

import curate.catalog.tables as types

${imports if imports else ""}

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    """Bring the schema forward."""
    ${upgrades if upgrades else "pass"}
