"""How long a claimed job may be kept without a sign of life, and what follows when it was."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.jobs import completion
from lunr.common import errors, times
from lunr.common.states import Job as State
from lunr.db.models import Job


class LeaseExpired(errors.LunrError):
    """{who} gave no sign of work on the job for {seconds} seconds."""

    code = "lease_expired"
    retry = True


def lease_end(seconds: int) -> datetime:
    """When a lease of so many `seconds` that begins now runs out."""
    return times.now() + timedelta(seconds=seconds)


class Leases:
    """What the housekeeper does about leases that ran out."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def expire(self, now: datetime) -> int:
        """Take the jobs whose lease ran out from their nodes; how many they were."""
        return self._context.db.write(self._expire, now)

    def _expire(self, session: Session, now: datetime) -> int:
        jobs = session.scalars(
            select(Job)
            .where(Job.status == State.RUNNING, Job.lease_until < now)
            .order_by(Job.seq)
            .with_for_update(skip_locked=True)
        ).all()
        for job in jobs:
            external = self._context.job_types.of(job).external_lease_seconds
            who = "Who does it" if external else f"The node {job.node_id}"
            seconds = external or self._context.settings.lease_seconds
            error = LeaseExpired(who=who, seconds=seconds)
            completion.retry_or_fail(session, self._context, job, error.as_dict(), delay=True)
        return len(jobs)
