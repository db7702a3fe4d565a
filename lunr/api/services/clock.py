"""What is done when the wall clock was wrong: ahead for a while, and right again.

Times in the records say until when something waits. One that was written by a clock ten years
ahead would have it wait for ten years: a schedule, a job to be tried again, a lease that never
runs out. So a time that lies further ahead than anybody could have meant is corrected.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, CursorResult, and_, exists, or_, select, update
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.jobs.completion import MAX_DELAY
from lunr.api.services.schedules.recurrence import PERIODS
from lunr.api.services.schedules.runner import RETRY
from lunr.common.states import Job as JobState
from lunr.common.times import SKEW
from lunr.db.models import Account, Job, Node, Schedule, ScheduleRun

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _TimeCheck:
    """Which rows of a model have an impossible time, and the values that they get."""

    name: str
    model: Any
    condition: ColumnElement[bool]
    values: dict[str, Any]


class Clock:
    """The housekeeper's look at times that can't be."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def correct(self, now: datetime) -> dict[str, int]:
        """Correct the times that lie too far ahead of `now`; how many, by what they are of."""
        checks = self._checks(now)
        # A right clock is the rule: then no writer waits for this.
        with self._context.db.read() as connection:
            needed = [
                check
                for check in checks
                if connection.scalar(
                    select(exists().where(check.condition).select_from(check.model))
                )
            ]
        if not needed:
            return {}
        counts = self._context.db.write(_correct, needed)
        summary = ", ".join(f"{count} of {name}" for name, count in counts.items())
        _log.error("The clock was ahead: times are corrected (%s).", summary)
        return counts

    def _checks(self, now: datetime) -> list[_TimeCheck]:
        longest = timedelta(
            seconds=max(
                self._context.settings.lease_seconds,
                *(one.external_lease_seconds for one in self._context.job_types),
            )
        )
        delay = timedelta(seconds=MAX_DELAY)
        return [
            _TimeCheck(
                "leases",
                Job,
                and_(Job.status == JobState.RUNNING, Job.lease_until > now + longest + SKEW),
                {"lease_until": now + longest},
            ),
            _TimeCheck(
                "jobs that wait to be tried again",
                Job,
                and_(Job.status == JobState.QUEUED, Job.not_before > now + delay + SKEW),
                {"not_before": now},
            ),
            _TimeCheck("nodes", Node, Node.last_seen > now + SKEW, {"last_seen": now}),
            _TimeCheck(
                "garbage collections",
                Account,
                Account.collected_at > now + SKEW,
                {"collected_at": None},
            ),
            _TimeCheck(
                "verifications",
                Account,
                Account.verify_asked_at > now + SKEW,
                {"verify_asked_at": None},
            ),
            _TimeCheck(
                "schedules",
                ScheduleRun,
                or_(ScheduleRun.not_before > now + RETRY + SKEW, _is_too_late(now)),
                {"schedule_id": None, "not_before": None},  # it is planned anew
            ),
        ]


def _correct(session: Session, checks: Sequence[_TimeCheck]) -> dict[str, int]:
    counts = {}
    for check in checks:
        result = session.execute(
            update(check.model).where(check.condition).values(**check.values),
            execution_options={"synchronize_session": False},
        )
        assert isinstance(result, CursorResult)
        counts[check.name] = result.rowcount
    return counts


def _is_too_late(now: datetime) -> ColumnElement[bool]:
    """Whether a schedule's next run is later than its period allows (a condition)."""
    wrong = [
        and_(Schedule.every == name, ScheduleRun.next_run > now + period + SKEW)
        for name, period in PERIODS.items()
        if period is not None
    ]
    return select(Schedule.id).where(Schedule.id == ScheduleRun.schedule_id, or_(*wrong)).exists()
