"""Reports of nodes on LVM, backups of snapshots, and cross-node copies.

Columns that must have a value have it from the server: SQLite then adds them in
place, and an older process that still runs can go on inserting.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column(
        "nodes", sa.Column("full", sa.String(255), server_default=sa.text("''"), nullable=False)
    )
    op.add_column(
        "nodes", sa.Column("limits_io", sa.Boolean(), server_default=sa.false(), nullable=False)
    )
    op.add_column("volumes", sa.Column("transfer_id", sa.String(64), nullable=True))
    op.create_index("ix_volumes_transfer_id", "volumes", ["transfer_id"])
    op.add_column("backups", sa.Column("snapshot_id", sa.String(64), nullable=True))
    op.add_column(
        "backups", sa.Column("internal", sa.Boolean(), server_default=sa.false(), nullable=False)
    )
    op.create_index("ix_backups_snapshot_id", "backups", ["snapshot_id"])
    op.create_index("ix_backups_internal", "backups", ["internal", "status"])
