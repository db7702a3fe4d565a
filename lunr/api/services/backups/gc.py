"""Garbage collection of the accounts' repositories.

A collect job condemns objects (a collection); a sweep job removes them, but
only when every save that was running by then is over: such a save began
without knowing what is condemned. Saves that begin later are told (`condemned`
in their payload). The account's row is locked both when a save is claimed and
when a collect ends, so that each save is on one side of that line or the other.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, exists, or_, select
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.jobs import queue
from lunr.api.services import views
from lunr.common import errors, ids, times
from lunr.common.states import Job as State
from lunr.db.models import Account, Backup, Collection, Job


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
        account = lock(session, account_id)
        for collection in condemned(session, account_id):
            if not _is_being_swept(session, account_id, collection):
                _queue_sweep(session, self._context, account_id, collection)
        job, is_new = queue.once(session, self._context, "repository.collect", account_id)
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
                            exists().where(Backup.account_id == Account.id),
                            exists().where(Collection.account_id == Account.id),
                        ),
                    )
                    .order_by(Account.id)
                )
            )


def lock(session: Session, account_id: str) -> Account:
    """The account, deleted or not, locked until the end of the transaction.

    Raises:
        errors.NotFound: there is no such account.
    """
    account = session.scalar(
        select(Account).where(Account.id == account_id).with_for_update(key_share=True)
    )
    if account is None:
        raise errors.NotFound(kind="account", id=account_id)
    return account


def condemned(session: Session, account_id: str) -> list[str]:
    """The collections of the account that are not swept yet, oldest first."""
    return list(
        session.scalars(
            select(Collection.id)
            .where(Collection.account_id == account_id)
            .order_by(Collection.created_at, Collection.id)
        )
    )


def collected(session: Session, context: Context, job: Job, result: dict[str, Any]) -> None:
    """A collect job is DONE: have swept what it condemned.

    And what others condemned that died before they told, or that a lost database knew of: the
    node finds their lists in the store. Else nobody would, and what they name would stay.
    """
    found = reported(result)
    if not found:
        return
    lock(session, job.account_id)
    for collection in found:
        if session.get(Collection, collection) is None:
            session.add(Collection(id=collection, account_id=job.account_id))
            _queue_sweep(session, context, job.account_id, collection)


def reported(result: dict[str, Any]) -> list[str]:
    """The collections in the result of a collect job.

    Raises:
        errors.InvalidField: they are something else.
    """
    new, others = result.get("collection"), result.get("unswept", [])
    if not isinstance(others, list):
        raise errors.InvalidField(field="result.unswept", reason="it is a list of ids")
    found = [*others, *([] if new is None else [new])]
    return list(dict.fromkeys(ids.check(one, "result.collection") for one in found))


def swept(session: Session, _context: Context, job: Job, _result: dict[str, Any]) -> None:
    """A sweep job is DONE: the collection is no more."""
    collection = session.get(Collection, job.data["collection"])
    if collection is not None:
        session.delete(collection)


def _queue_sweep(session: Session, context: Context, account_id: str, collection: str) -> None:
    # A save that waits for another attempt counts: what is left of the attempt
    # before may still be at work on a node that was cut off.
    begun = session.scalars(
        select(Job.id).where(
            Job.account_id == account_id,
            Job.kind.in_(("backup.save", "group.save")),
            or_(Job.status == State.RUNNING, and_(Job.status == State.QUEUED, Job.attempt > 0)),
        )
    ).all()
    queue.add(
        session,
        context,
        "repository.sweep",
        account_id=account_id,
        subject_id=account_id,
        volume_id=None,
        node_id=None,
        data={"collection": collection},
        after=begun,
    )


def _is_being_swept(session: Session, account_id: str, collection: str) -> bool:
    sweeps = session.scalars(
        select(Job).where(
            Job.account_id == account_id,
            Job.kind == "repository.sweep",
            Job.status.in_(queue.LIVE),
        )
    )
    return any(job.data["collection"] == collection for job in sweeps)
