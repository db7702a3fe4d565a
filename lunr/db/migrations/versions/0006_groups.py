"""Backups that were taken at one instant."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("backups", sa.Column("group_id", sa.String(64), nullable=True))
    op.create_index("ix_backups_group_id", "backups", ["group_id"])
