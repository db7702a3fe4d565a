"""Alembic's environment; only :mod:`lunr.db.migrate` runs it, with a connection."""

from __future__ import annotations

from alembic import context

from lunr.db.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite changes a table by creating a new one
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
