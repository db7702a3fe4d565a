"""Jobs, as callers see them: listed and cancelled."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.jobs import completion
from lunr.api.services import views
from lunr.api.services.pagination import Listing, Query
from lunr.common import errors
from lunr.common.states import Job as State
from lunr.db.models import Job, columns
from lunr.db.transitions import wrong_state

LISTING = Listing("jobs", Job, select(*columns(Job)), views.job, (Job.seq,), Job.id, hides=None)


class Jobs:
    """What callers can do with jobs."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def list(self, query: Query) -> Any:
        """A page of jobs."""
        with self._context.db.read() as connection:
            return LISTING.page(connection, query, self._context.settings.page_limit)

    def get(self, account_id: str, id: str) -> Any:
        """The job.

        Raises:
            errors.NotFound: the account has none of that id.
        """
        with self._context.db.read() as connection:
            row = connection.execute(
                LISTING.statement.where(Job.id == id, Job.account_id == account_id)
            ).one_or_none()
        if row is None:
            raise errors.NotFound(kind="job", id=id)
        return views.job(row)

    def cancel(self, account_id: str, id: str) -> bool:
        """Cancel a job. True: it had not begun and is cancelled; False: its node is told to stop.

        Raises:
            errors.NotFound: the account has none of that id.
            errors.WrongState: it is over.
        """
        return self._context.db.write(self._cancel, account_id, id)

    def _cancel(self, session: Session, account_id: str, id: str) -> bool:
        job = session.scalar(
            select(Job).where(Job.id == id, Job.account_id == account_id).with_for_update()
        )
        if job is None:
            raise errors.NotFound(kind="job", id=id)
        if job.status == State.QUEUED:
            completion.complete(
                session, self._context, job, State.CANCELLED, errors.Cancelled().as_dict()
            )
            return True
        if job.status != State.RUNNING:
            raise wrong_state(job, "cancel it", "QUEUED or RUNNING")
        job.cancel = True
        return False
