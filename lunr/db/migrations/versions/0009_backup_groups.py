"""Backup groups have a table of their own.

Before, a group was a backup that had its own id as its group. SQLite can't add a
``FOREIGN KEY`` to a column: so the column is replaced.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_table(
        "backup_groups",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("account_id", sa.String(64), nullable=False),
        sa.Column("machine", sa.String(64), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("progress", sa.Integer(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("job_id", sa.String(64), nullable=True),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("updated_at", sa.DateTime(), nullable=False),
        sa.Column("deleted_at", sa.DateTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_backup_groups"),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name="fk_backup_groups_account_id"
        ),
    )
    op.create_index("ix_backup_groups_page", "backup_groups", ["account_id", "created_at", "id"])
    op.execute(
        "INSERT INTO backup_groups (id, account_id, machine, status, reason, progress, metadata,"
        " job_id, created_at, updated_at, deleted_at)"
        " SELECT id, account_id, volume_id, status, COALESCE(damaged, reason), progress, metadata,"
        " job_id, created_at, updated_at, deleted_at FROM backups WHERE group_id = id"
    )
    op.execute("DELETE FROM backups WHERE group_id = id")
    op.drop_index("ix_backups_group_id", "backups")
    op.execute("ALTER TABLE backups RENAME COLUMN group_id TO old_group_id")
    op.execute(
        "ALTER TABLE backups ADD COLUMN group_id VARCHAR(64)"
        " CONSTRAINT fk_backups_group_id REFERENCES backup_groups (id)"
    )
    op.execute(
        "UPDATE backups SET group_id = old_group_id"
        " WHERE old_group_id IN (SELECT id FROM backup_groups)"
    )
    op.execute("ALTER TABLE backups DROP COLUMN old_group_id")
    op.create_index("ix_backups_group_id", "backups", ["group_id"])
    op.execute(
        "UPDATE jobs SET data = '{\"is_group\": true}'"
        " WHERE kind = 'backup.delete' AND subject_id IN (SELECT id FROM backup_groups)"
    )
