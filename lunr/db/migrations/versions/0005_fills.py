"""Volumes that can be used while they are restored."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    zero = sa.text("0")
    for column in (
        sa.Column("usable", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("fill", sa.String(8), nullable=True),
        sa.Column("fill_limit", sa.Integer(), server_default=zero, nullable=False),
        sa.Column("fill_job_id", sa.String(64), nullable=True),
        sa.Column("fill_rate", sa.BigInteger(), server_default=zero, nullable=False),
        sa.Column("fill_remaining", sa.BigInteger(), nullable=True),
    ):
        op.add_column("volumes", column)
