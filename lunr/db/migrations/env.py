"""What Alembic runs; called only by :mod:`lunr.db.migrate`, with a connection."""

from __future__ import annotations

from alembic import context

from lunr.db.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite changes a table by making it anew
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
