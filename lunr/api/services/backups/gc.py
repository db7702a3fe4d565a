"""Garbage collection of the accounts' repositories: asked for, and due."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import exists, or_, select
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.jobs import queue
from lunr.api.services import views
from lunr.api.services.backups.collections import find_unswept, lock_account
from lunr.api.services.backups.job_types import CollectGarbage, SweepGarbage, enqueue_sweep
from lunr.common import times
from lunr.db.models import STORED, Account, Collection, Job


class GarbageCollection:
    """Asks for collections."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def request(self, account_id: str) -> Any:
        """Collect the account's garbage now; the answer is the job, also one that waits already.

        Sweeps that failed before are tried again first.

        Raises:
            errors.NotFound: there is no such account. A deleted one is fine: its
                backups are still there.
        """
        return self._context.db.write(self._request, account_id)

    def _request(self, session: Session, account_id: str) -> Any:
        account = lock_account(session, account_id)
        for collection in find_unswept(session, account_id):
            if not _is_being_swept(session, account_id, collection):
                enqueue_sweep(session, self._context, account_id, collection)
        job, is_new = queue.enqueue_unique(session, self._context, CollectGarbage, account_id)
        if is_new:
            account.collected_at = times.now()
            session.flush()
        return views.job(job)

    def due(self, now: datetime, interval: int) -> list[str]:
        """Accounts with backups (also deleted ones) not collected for `interval` seconds."""
        with self._context.db.read() as connection:
            return list(
                connection.scalars(
                    select(Account.id)
                    .where(
                        or_(
                            Account.collected_at.is_(None),
                            Account.collected_at < now - timedelta(seconds=interval),
                        ),
                        or_(
                            *(
                                exists().where(model.account_id == Account.id)
                                for model in (*STORED, Collection)
                            ),
                        ),
                    )
                    .order_by(Account.id)
                )
            )


def _is_being_swept(session: Session, account_id: str, collection: str) -> bool:
    sweeps = session.scalars(
        select(Job).where(
            Job.account_id == account_id,
            Job.kind == SweepGarbage.name,
            Job.status.in_(queue.LIVE),
        )
    )
    return any(job.data["collection"] == collection for job in sweeps)
