"""Schedules: when a volume, or each volume of a type, is backed up.

A volume has at most one schedule of its own, a type has at most one; the
volume's own is good for it if there is one, also if that is ``every: none``.
:mod:`lunr.api.services.schedules.runner` does what they say.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, ScalarSelect, Select, case, func, or_, select, update
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.services import views
from lunr.api.services.pagination import Listing, Query
from lunr.api.services.schedules import runner
from lunr.api.services.schedules.recurrence import Recurrence
from lunr.api.services.volumes import service as volumes
from lunr.api.services.volumes import types
from lunr.common import errors, ids, times
from lunr.common.states import Backup as BackupState
from lunr.db.models import Backup, Schedule, ScheduleRun, VolumeKind, columns


def _statement(*only: ColumnElement[bool]) -> Select[Any]:
    """Schedules, and how far their volumes are: of many the last run, the next, one that failed."""
    problem = func.coalesce(
        ScheduleRun.last_error, case((Backup.status == BackupState.ERROR, Backup.reason))
    )

    def of_runs(value: Any, name: str) -> Any:
        found: ScalarSelect[Any] = (
            select(value)
            .select_from(ScheduleRun)
            .outerjoin(Backup, Backup.id == ScheduleRun.last_backup_id)
            .where(ScheduleRun.schedule_id == Schedule.id, *only)
            .correlate(Schedule)
            .scalar_subquery()
        )
        return found.label(name)

    return select(
        *columns(Schedule),
        of_runs(func.count(ScheduleRun.volume_id), "volumes"),
        of_runs(func.max(ScheduleRun.last_run), "last_run"),
        of_runs(func.min(ScheduleRun.next_run), "next_run"),
        of_runs(case((func.count() == 1, func.max(ScheduleRun.last_backup_id))), "last_backup"),
        of_runs(func.max(problem), "last_error"),
    )


LISTING = Listing(
    "schedules",
    Schedule,
    _statement(),
    views.schedule,
    (Schedule.created_at, Schedule.id),
    Schedule.id,
    hides=None,
)


class Schedules:
    """What callers can do with schedules. An `account_id` of None is an admin, who may with all."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def list(self, query: Query) -> Any:
        """A page of schedules."""
        with self._context.db.read() as connection:
            return LISTING.page(connection, query, self._context.settings.page_limit)

    def get(self, account_id: str | None, id: str) -> Any:
        """The schedule.

        Raises:
            errors.NotFound: the account has none of that id.
        """
        with self._context.db.read() as connection:
            row = connection.execute(LISTING.statement.where(*_own(account_id, id))).one_or_none()
        if row is None:
            raise errors.NotFound(kind="schedule", id=id)
        return views.schedule(row)

    def of_volume(self, account_id: str, volume_id: str) -> Any:
        """The schedule that is good for a volume, its own or its type's, and how far the volume is.

        Raises:
            errors.NotFound: the account has no such volume, or no schedule is good for it.
        """
        statement = _statement(ScheduleRun.volume_id == volume_id)
        with self._context.db.read() as connection:
            volume = volumes.fetch(connection, account_id, volume_id)
            row = connection.execute(
                statement.where(
                    or_(
                        Schedule.volume_id == volume_id,
                        Schedule.volume_type_name == volume["volume_type_name"],
                    )
                )
                .order_by(Schedule.volume_id.is_(None))
                .limit(1)
            ).one_or_none()
        if row is None or volume["status"] == "DELETED":
            raise errors.NotFound(kind="schedule for the volume", id=volume_id)
        return views.schedule(row)

    def create(self, account_id: str, volume_id: str, request: dict[str, Any]) -> Any:
        """Make a volume's own schedule.

        Args:
            request: ``every``, ``at``, ``spread``, ``name``, see docs/api.md.

        Raises:
            errors.InvalidField: they exclude each other.
            errors.NotFound: the account has no such volume.
            errors.Conflict: it has a schedule.
        """
        id = self._context.db.write(self._create, account_id, volume_id, request)
        return self.get(account_id, id)

    def _create(
        self, session: Session, account_id: str, volume_id: str, request: dict[str, Any]
    ) -> str:
        volume = volumes.lock(session, account_id, volume_id)
        if volume.kind == VolumeKind.EXTERNAL:
            raise errors.Conflict(
                reason=f"The volume {volume_id} is external: lunr-live backs it up."
            )
        schedule = _new(request, account_id=account_id, volume_id=volume_id)
        _refuse_second(session, Schedule.volume_id == volume_id, f"The volume {volume_id}")
        session.add(schedule)
        session.flush()
        runner.plan(session, volume_id, schedule, times.now())
        return schedule.id

    def create_for_type(self, name: str, request: dict[str, Any]) -> Any:
        """Make a schedule for the volumes of a type that have none of their own.

        Raises:
            errors.InvalidField: see :meth:`create`.
            errors.NotFound: there is no such type.
            errors.Conflict: it has a schedule.
        """
        return self.get(None, self._context.db.write(self._create_for_type, name, request))

    def _create_for_type(self, session: Session, name: str, request: dict[str, Any]) -> str:
        types.require(session, name)
        _refuse_second(session, Schedule.volume_type_name == name, f"The volume type {name}")
        schedule = _new(request, volume_type_name=name)
        session.add(schedule)
        session.flush()
        return schedule.id  # the housekeeper plans its volumes: they may be thousands

    def update(self, account_id: str | None, id: str, changes: dict[str, Any]) -> Any:
        """Change ``every``, ``at``, ``spread`` or ``name``.

        What was due by the old times and not begun yet is not made up for.

        Raises:
            errors.NotFound: the account has none of that id.
            errors.InvalidField: see :meth:`create`.
        """
        self._context.db.write(self._update, account_id, id, changes)
        return self.get(account_id, id)

    def _update(
        self, session: Session, account_id: str | None, id: str, changes: dict[str, Any]
    ) -> None:
        schedule = _lock(session, account_id, id)
        schedule.name = changes.get("name", schedule.name)
        before = runner.recurrence(schedule)
        every = changes.get("every", before.every)
        # With another period the old time and spread may make no sense: the defaults do.
        kept = before if every == before.every else None
        after = Recurrence.of(
            every,
            changes.get("at", kept and kept.at),
            changes.get("spread", kept and kept.spread),
        )
        if after == before:
            return
        schedule.every, schedule.at, schedule.spread = after.every, after.at, after.spread
        session.flush()
        if schedule.volume_id is not None:
            runner.plan(session, schedule.volume_id, schedule, times.now())
        else:
            session.execute(
                update(ScheduleRun)
                .where(ScheduleRun.schedule_id == id)
                .values(schedule_id=None, next_run=None)
            )

    def delete(self, account_id: str | None, id: str) -> None:
        """Delete a schedule. The backups that it made stay.

        Raises:
            errors.NotFound: the account has none of that id.
        """
        self._context.db.write(self._delete, account_id, id)

    def _delete(self, session: Session, account_id: str | None, id: str) -> None:
        session.delete(_lock(session, account_id, id))


def _new(request: dict[str, Any], **owner: str) -> Schedule:
    recurrence = Recurrence.of(request["every"], request.get("at"), request.get("spread"))
    return Schedule(
        id=ids.new(),
        name=request.get("name", ""),
        every=recurrence.every,
        at=recurrence.at,
        spread=recurrence.spread,
        **owner,
    )


def _refuse_second(session: Session, same: ColumnElement[bool], whose: str) -> None:
    known = session.scalar(select(Schedule.id).where(same))
    if known is not None:
        raise errors.Conflict(
            reason=f"{whose} has the schedule {known}: change that, or delete it."
        )


def _own(account_id: str | None, id: str) -> tuple[ColumnElement[bool], ...]:
    if account_id is None:
        return (Schedule.id == id,)
    return Schedule.id == id, Schedule.account_id == account_id


def _lock(session: Session, account_id: str | None, id: str) -> Schedule:
    schedule = session.scalar(
        select(Schedule).where(*_own(account_id, id)).with_for_update(key_share=True)
    )
    if schedule is None:
        raise errors.NotFound(kind="schedule", id=id)
    return schedule
