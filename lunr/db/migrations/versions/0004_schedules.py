"""Schedules, retention, and protected backups."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("volume_types", sa.Column("retention", sa.JSON(), nullable=True))
    op.add_column("volumes", sa.Column("retention", sa.JSON(), nullable=True))
    op.add_column(
        "backups", sa.Column("protected", sa.Boolean(), server_default=sa.false(), nullable=False)
    )
    op.add_column("backups", sa.Column("schedule_id", sa.String(64), nullable=True))
    op.drop_index("ix_backups_volume", "backups")
    op.create_index(
        "ix_backups_volume", "backups", ["volume_id", "account_id", "status", "created_at"]
    )
    op.create_index("ix_backups_changed", "backups", ["status", "updated_at"])
    op.create_table(
        "schedules",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("account_id", sa.String(64), nullable=True),
        sa.Column("volume_id", sa.String(64), nullable=True),
        sa.Column("volume_type_name", sa.String(64), nullable=True),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("every", sa.String(8), nullable=False),
        sa.Column("at", sa.String(16), nullable=False),
        sa.Column("spread", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("updated_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_schedules"),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name="fk_schedules_account_id"),
        sa.ForeignKeyConstraint(
            ["volume_id"], ["volumes.id"], name="fk_schedules_volume_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["volume_type_name"],
            ["volume_types.name"],
            name="fk_schedules_volume_type_name",
            ondelete="CASCADE",
        ),
        sa.UniqueConstraint("volume_id", name="uq_schedules_volume_id"),
        sa.UniqueConstraint("volume_type_name", name="uq_schedules_volume_type_name"),
    )
    op.create_index("ix_schedules_page", "schedules", ["account_id", "created_at", "id"])
    op.create_index("ix_schedules_page_all", "schedules", ["created_at", "id"])
    op.create_table(
        "schedule_runs",
        sa.Column("volume_id", sa.String(64), nullable=False),
        sa.Column("schedule_id", sa.String(64), nullable=True),
        sa.Column("next_run", sa.DateTime(), nullable=True),
        sa.Column("not_before", sa.DateTime(), nullable=True),
        sa.Column("last_run", sa.DateTime(), nullable=True),
        sa.Column("last_backup_id", sa.String(64), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("volume_id", name="pk_schedule_runs"),
        sa.ForeignKeyConstraint(
            ["volume_id"], ["volumes.id"], name="fk_schedule_runs_volume_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["schedule_id"],
            ["schedules.id"],
            name="fk_schedule_runs_schedule_id",
            ondelete="SET NULL",
        ),
    )
    op.create_index("ix_schedule_runs_schedule_id", "schedule_runs", ["schedule_id"])
    op.create_index("ix_schedule_runs_next_run", "schedule_runs", ["next_run"])
