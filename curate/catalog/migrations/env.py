"""Alembic's entry point: runs the migrations in the transaction the catalog opened."""

from __future__ import annotations

from alembic import context

from curate.catalog.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
context.run_migrations()
