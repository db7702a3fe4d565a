"""The housekeeper's part in schedules: it plans each volume's next run, and runs what is due.

How far a volume is stands in its ScheduleRun. What is due is run once, however
often it was missed: then the next run is in the future again. So it is when the
run is skipped, because a backup of the volume is on its way already or the
volume can't be backed up as it is. What only has no chance now (another job is
at work on the volume, the quota is used up) stays due and is tried again.

Each run is a transaction that holds the lock on its ScheduleRun: of several
housekeepers, one makes the backup.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, Select, delete, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from lunr.api.context import Context
from lunr.api.services.accounts import service as accounts
from lunr.api.services.backups import service as backups
from lunr.api.services.schedules.recurrence import Recurrence
from lunr.api.services.volumes import service as volumes
from lunr.common import errors
from lunr.common.states import Backup as BackupState
from lunr.common.states import Volume as VolumeState
from lunr.db.models import Backup, Schedule, ScheduleRun, Volume

#: Until what had no chance is tried again.
RETRY = timedelta(minutes=5)
#: From when on a due run is overdue: the housekeeper is away, or it has no chance for long.
OVERDUE = timedelta(minutes=30)
#: Volumes planned in one transaction.
_AT_ONCE = 500


@dataclass(frozen=True)
class RunResult:
    """What came of a run: a backup, or the reason why there is none."""

    volume_id: str
    backup_id: str | None = None
    reason: str | None = None


class ScheduleRunner:
    """Does what the schedules say."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def plan(self, now: datetime) -> int:
        """Reckon the next run of volumes that are new, or that another schedule is good for now.

        Returns:
            How many; there may be more.
        """
        with self._context.db.read() as connection:
            ids = list(connection.scalars(_unplanned().limit(_AT_ONCE)))
        return self._context.db.write(self._plan, ids, now) if ids else 0

    def _plan(self, session: Session, ids: list[str], now: datetime) -> int:
        # Who gives a volume a schedule of its own holds this lock. Those that are locked now are
        # planned by the one who holds them, or in the next round.
        locked = session.scalars(
            select(Volume.id)
            .where(Volume.id.in_(ids))
            .order_by(Volume.id)
            .with_for_update(skip_locked=True, key_share=True)
        ).all()
        found = session.execute(_unplanned().where(Volume.id.in_(locked))).all()
        for volume_id, schedule_id in found:
            schedule = session.get(Schedule, schedule_id)
            if schedule is not None:  # not deleted at this moment
                plan(session, volume_id, schedule, now)
        return len(found)

    def forget(self) -> int:
        """Delete the schedules of volumes that are deleted; how many they were."""
        gone = Schedule.volume_id.in_(select(Volume.id).where(Volume.status == "DELETED"))
        with self._context.db.read() as connection:
            count = connection.scalar(select(func.count()).where(gone)) or 0
        if count:
            self._context.db.write(lambda session: session.execute(delete(Schedule).where(gone)))
        return count

    def run(self, now: datetime) -> RunResult | None:
        """Run what has been due for longest; None: nothing is due."""
        with self._context.db.read() as connection:
            if connection.scalar(select(_due(now).exists())) is not True:
                return None
        return self._context.db.write(self._run, now)

    def _run(self, session: Session, now: datetime) -> RunResult | None:
        run = session.scalar(_due(now).with_for_update(skip_locked=True, key_share=True))
        if run is None:
            return None
        schedule = session.get_one(Schedule, run.schedule_id)
        account_id = session.scalars(
            select(Volume.account_id).where(Volume.id == run.volume_id)
        ).one()
        try:
            backup_id = self._start(session, account_id, run.volume_id, schedule)
        except (errors.InUse, errors.QuotaExceeded) as error:
            run.not_before = now + RETRY
            run.last_error = str(error)
            return RunResult(run.volume_id, reason=run.last_error)
        except (errors.WrongState, errors.NotFound, BackupInProgress) as error:
            run.last_error = f"A backup was skipped. {error}"
        else:
            run.last_run, run.last_backup_id, run.last_error = now, backup_id, None
        run.next_run = recurrence(schedule).after(now, run.volume_id)
        run.not_before = None
        return RunResult(
            run.volume_id, run.last_backup_id if not run.last_error else None, run.last_error
        )

    def _start(self, session: Session, account_id: str, volume_id: str, schedule: Schedule) -> str:
        account = accounts.lock(session, account_id)
        volume = volumes.lock(session, account_id, volume_id)
        waiting = exists().where(
            Backup.volume_id == volume_id,
            Backup.status.in_((BackupState.NEW, BackupState.SAVING)),
            Backup.internal.is_(False),  # it brings a copy about, and is gone then
        )
        if session.scalar(select(waiting)):
            raise BackupInProgress(id=volume_id)
        request = {"name": schedule.name}
        return backups.start(
            session, self._context, account, volume, request, schedule_id=schedule.id
        ).id


class BackupInProgress(errors.Conflict):
    """A backup of the volume {id} is running or waiting already."""

    code = "on_its_way"


def recurrence(schedule: Schedule) -> Recurrence:
    """When the schedule runs."""
    return Recurrence(schedule.every, schedule.at, schedule.spread)


def plan(session: Session, volume_id: str, schedule: Schedule, now: datetime) -> None:
    """Have the volume, whose row is locked, run by `schedule` from `now` on."""
    run = session.get(ScheduleRun, volume_id, with_for_update=True)
    if run is None:
        run = ScheduleRun(volume_id=volume_id)
        session.add(run)
    run.schedule_id = schedule.id
    run.next_run = recurrence(schedule).after(now, volume_id)
    run.not_before = run.last_error = None
    session.flush()


def trouble(connection: Connection, now: datetime) -> tuple[int, int]:
    """How many volumes' runs are overdue, and how many volumes' last run gave no backup."""
    overdue = select(func.count()).where(
        ScheduleRun.schedule_id.is_not(None), ScheduleRun.next_run < now - OVERDUE
    )
    failing = (
        select(func.count())
        .select_from(ScheduleRun)
        .outerjoin(Backup, Backup.id == ScheduleRun.last_backup_id)
        .where(
            ScheduleRun.schedule_id.is_not(None),
            or_(ScheduleRun.last_error.is_not(None), Backup.status == BackupState.ERROR),
        )
    )
    return connection.scalar(overdue) or 0, connection.scalar(failing) or 0


def _due(now: datetime) -> Select[ScheduleRun]:
    return (
        select(ScheduleRun)
        .where(
            ScheduleRun.schedule_id.is_not(None),
            ScheduleRun.next_run <= now,
            or_(ScheduleRun.not_before.is_(None), ScheduleRun.not_before <= now),
        )
        .order_by(ScheduleRun.next_run, ScheduleRun.volume_id)
        .limit(1)
    )


def _unplanned() -> Select[str, str]:
    """Volumes and the schedule that is good for each, where the run is not reckoned by that."""
    own, kind = aliased(Schedule), aliased(Schedule)
    good = func.coalesce(own.id, kind.id)
    return (
        select(Volume.id, good)
        .outerjoin(own, own.volume_id == Volume.id)
        .outerjoin(kind, kind.volume_type_name == Volume.volume_type_name)
        .outerjoin(ScheduleRun, ScheduleRun.volume_id == Volume.id)
        .where(
            Volume.status.not_in((VolumeState.DELETING, VolumeState.DELETED)),
            good.is_not(None),
            or_(ScheduleRun.schedule_id.is_(None), ScheduleRun.schedule_id != good),
        )
        .order_by(Volume.id)
    )
