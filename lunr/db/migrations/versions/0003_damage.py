"""Which backups are damaged, and how much of an account was verified."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("accounts", sa.Column("verify_asked_at", sa.DateTime(), nullable=True))
    op.add_column(
        "accounts",
        sa.Column("shares_verified", sa.Integer(), server_default=sa.text("0"), nullable=False),
    )
    op.add_column("backups", sa.Column("damaged", sa.Text(), nullable=True))
