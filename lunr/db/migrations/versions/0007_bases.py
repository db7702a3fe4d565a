"""Backing backups of volumes that are being restored, of their snapshots and backups."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    for table in ("volumes", "snapshots", "backups"):
        op.add_column(table, sa.Column("base_id", sa.String(64), nullable=True))
        op.create_index(f"ix_{table}_base_id", table, ["base_id"])
    op.execute(
        "UPDATE volumes SET base_id = COALESCE(transfer_id, backup_id)"
        " WHERE status IN ('NEW', 'RESTORING')"
    )
