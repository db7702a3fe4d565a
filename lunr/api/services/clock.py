"""What is done when the wall clock was wrong: ahead for a while, and right again.

Times in the records say until when something waits. One that was written by a clock ten years
ahead would have it wait for ten years: a schedule, a job to be tried again, a lease that never
runs out. So a time that lies further ahead than anybody could have meant is corrected.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import CursorResult, Update, and_, or_, select, update
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.jobs.completion import MAX_DELAY
from lunr.api.services.schedules.recurrence import PERIODS
from lunr.api.services.schedules.runner import RETRY
from lunr.common.states import Job as JobState
from lunr.common.times import SKEW
from lunr.db.models import Account, Job, Node, Schedule, ScheduleRun

_log = logging.getLogger(__name__)


class Clock:
    """The housekeeper's look at times that can't be."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def correct(self, now: datetime) -> dict[str, int]:
        """Correct the times that lie too far ahead of `now`; how many, by what they are of."""
        found = self._context.db.write(self._correct, now)
        if found:
            counts = ", ".join(f"{count} of {name}" for name, count in found.items())
            _log.error("The clock was ahead: times are corrected (%s).", counts)
        return found

    def _correct(self, session: Session, now: datetime) -> dict[str, int]:
        counts = {}
        for name, statement in self._corrections(now):
            result = session.execute(statement, execution_options={"synchronize_session": False})
            assert isinstance(result, CursorResult)
            if result.rowcount:
                counts[name] = result.rowcount
        return counts

    def _corrections(self, now: datetime) -> Iterator[tuple[str, Update]]:
        longest = timedelta(
            seconds=max(
                self._context.settings.lease_seconds,
                *(one.external_lease_seconds for one in self._context.job_types),
            )
        )
        delay = timedelta(seconds=MAX_DELAY)
        yield (
            "leases",
            update(Job)
            .where(Job.status == JobState.RUNNING, Job.lease_until > now + longest + SKEW)
            .values(lease_until=now + longest),
        )
        yield (
            "jobs that wait to be tried again",
            update(Job)
            .where(Job.status == JobState.QUEUED, Job.not_before > now + delay + SKEW)
            .values(not_before=now),
        )
        yield (
            "nodes",
            update(Node).where(Node.last_seen > now + SKEW).values(last_seen=now),
        )
        for name, column in (
            ("garbage collections", Account.collected_at),
            ("verifications", Account.verify_asked_at),
        ):
            yield name, update(Account).where(column > now + SKEW).values({column: None})
        yield (
            "schedules",
            update(ScheduleRun)
            .where(or_(ScheduleRun.not_before > now + RETRY + SKEW, _is_too_late(now)))
            .values(schedule_id=None, not_before=None),  # it is planned anew
        )


def _is_too_late(now: datetime) -> Any:
    """Whether a schedule's next run is later than its period allows (a condition)."""
    wrong = [
        and_(Schedule.every == name, ScheduleRun.next_run > now + period + SKEW)
        for name, period in PERIODS.items()
        if period is not None
    ]
    return select(Schedule.id).where(Schedule.id == ScheduleRun.schedule_id, or_(*wrong)).exists()
