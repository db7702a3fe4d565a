"""What verifying backups finds, and the share of an account's objects that is read each day.

A backup that has lost something stays AVAILABLE: it may come back when a part of
the store was only away, and the next backup may be built on what is left of it.
But it says so (`damaged`), and no volume is made from it. Only a verify of all
of that very backup takes the mark away.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import exists, or_, select, update
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.jobs import queue
from lunr.api.services import views
from lunr.api.services.backups import gc
from lunr.common import errors, ids, times
from lunr.common.states import Backup as State
from lunr.db.models import Account, Backup, Job

#: The most of a reason that is kept.
_REASON = 2000
#: Ids in one statement.
_AT_ONCE = 500


class BackupDamaged(errors.Conflict):
    """Backup {id} is damaged: {reason}"""

    code = "backup_damaged"


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
        account = gc.lock(session, account_id)
        shared = {"shares": shares}
        job, is_new = queue.once(session, self._context, "repository.verify", account_id, shared)
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


def payload(session: Session, job: Job) -> dict[str, Any]:
    """What a ``repository.verify`` is told besides the repository."""
    available = select(Backup.id).where(
        Backup.account_id == job.account_id, Backup.status == State.AVAILABLE
    )
    number = session.get_one(Account, job.account_id).shares_verified
    return {
        "backup_ids": sorted(session.scalars(available)),
        "share": [number, job.data["shares"]],
    }


def verified(session: Session, job: Job, result: dict[str, Any]) -> BackupDamaged | None:
    """Heed what a verify that is done found; the damage of the backup it was about.

    Raises:
        errors.InvalidField: the result is not what a verify results in.
    """
    lost: dict[str, str] = {}
    for reason, backup_ids in _damaged(result):
        lost |= dict.fromkeys(backup_ids, reason)
        for first in range(0, len(backup_ids), _AT_ONCE):
            _mark(session, job.account_id, backup_ids[first : first + _AT_ONCE], reason)
    if job.kind == "repository.verify":
        session.get_one(Account, job.account_id).shares_verified += 1
        return None
    if job.subject_id in lost:
        return BackupDamaged(id=job.subject_id, reason=lost[job.subject_id])
    _mark(session, job.account_id, [job.subject_id], None)
    return None


def _mark(session: Session, account_id: str, backup_ids: list[str], damaged: str | None) -> None:
    session.execute(
        update(Backup)
        .where(
            Backup.id.in_(backup_ids),
            Backup.account_id == account_id,
            Backup.status == State.AVAILABLE,
        )
        .values(damaged=damaged),
        execution_options={"synchronize_session": "fetch"},
    )


def _damaged(result: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Reasons, and the ids of the backups that each is true of."""
    try:
        for group in result.get("damaged", ()):
            found = [ids.check(id, "result.damaged") for id in group["backup_ids"]]
            yield str(group["reason"])[:_REASON], found
    except (TypeError, KeyError, AttributeError):
        raise errors.InvalidField(
            field="result.damaged", reason='it is a list of {"reason", "backup_ids"}'
        ) from None
