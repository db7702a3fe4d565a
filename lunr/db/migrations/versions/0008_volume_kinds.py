"""External volumes have a kind of their own, and neither a node nor a type.

SQLite can't make a column nullable in place, and would empty the tables that refer to this one
if the migration created it again: so the columns are replaced.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    kind = sa.Column("kind", sa.String(8), server_default="local", nullable=False)
    op.add_column("volumes", kind)
    op.execute("UPDATE volumes SET kind = 'external' WHERE status = 'EXTERNAL'")
    op.drop_index("ix_volumes_room", "volumes")
    for name in ("volume_type_name", "node_id"):
        op.execute(f"ALTER TABLE volumes RENAME COLUMN {name} TO old_{name}")
        op.add_column("volumes", sa.Column(name, sa.String(64), nullable=True))
        new: sa.ColumnClause[str] = sa.column(name)
        old: sa.ColumnClause[str] = sa.column(f"old_{name}")
        op.execute(sa.update(sa.table("volumes", new, old)).values({new: sa.func.nullif(old, "")}))
        op.execute(f"ALTER TABLE volumes DROP COLUMN old_{name}")
    op.create_index("ix_volumes_room", "volumes", ["node_id", "status", "reserved"])
