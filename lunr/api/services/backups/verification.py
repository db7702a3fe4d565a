"""Verification of the accounts' repositories: a share of their objects is read each day."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import exists, or_, select
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.jobs import queue
from lunr.api.services import views
from lunr.api.services.backups.collections import lock_account
from lunr.api.services.backups.job_types import VerifyRepository
from lunr.common import times
from lunr.common.states import Backup as State
from lunr.db.models import Account, Backup


class Verification:
    """Asks for verifies of accounts' repositories."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def request(self, account_id: str, shares: int) -> Any:
        """Have the next one of `shares` shares of the account's objects read.

        The answer is the job, also one that is there already. Roots and segments are read always.

        Raises:
            errors.NotFound: there is no such account. A deleted one is fine.
        """
        return self._context.db.write(self._request, account_id, shares)

    def _request(self, session: Session, account_id: str, shares: int) -> Any:
        account = lock_account(session, account_id)
        job, is_new = queue.enqueue_unique(
            session, self._context, VerifyRepository, account_id, {"shares": shares}
        )
        if is_new:
            account.verify_asked_at = times.now()
            session.flush()
        return views.job(job)

    def due(self, now: datetime, interval: int) -> list[str]:
        """Accounts with backups of which no share was read for `interval` seconds."""
        with self._context.db.read() as connection:
            return list(
                connection.scalars(
                    select(Account.id)
                    .where(
                        or_(
                            Account.verify_asked_at.is_(None),
                            Account.verify_asked_at < now - timedelta(seconds=interval),
                        ),
                        exists().where(
                            Backup.account_id == Account.id, Backup.status == State.AVAILABLE
                        ),
                    )
                    .order_by(Account.id)
                )
            )
