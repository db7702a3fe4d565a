"""What the housekeeper does to the records themselves."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import CursorResult, Delete, delete, exists, or_, select
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.jobs.queue import LIVE
from lunr.api.services.dependencies import release_unneeded
from lunr.common import errors, states
from lunr.db.models import (
    STORED,
    Account,
    Backup,
    BackupGroup,
    Collection,
    Export,
    Job,
    Snapshot,
    Token,
    Volume,
)
from lunr.db.transitions import KEYS, try_move

log = logging.getLogger(__name__)

#: Seconds before a hidden backup whose delete failed is deleted again.
DELETE_AGAIN = 600

#: Records, the state they are given up to, and the states that only a job can end.
_PASSING: tuple[tuple[Any, StrEnum, tuple[str, ...]], ...] = (
    (Volume, states.Volume.ERROR, ("NEW", "BUILDING", "RESTORING", "DELETING")),
    (Snapshot, states.Snapshot.ERROR, ("NEW", "SAVING", "DELETING")),
    (Backup, states.Backup.ERROR, ("NEW", "SAVING", "DELETING")),
    (BackupGroup, states.Backup.ERROR, ("NEW", "SAVING", "DELETING")),
    (Export, states.Export.ERROR, ("ATTACHING", "DETACHING")),
)


class Orphaned(errors.LunrError):
    """The job that was at work on it is gone."""

    code = "orphaned"


class Maintenance:
    """Purges old records and repairs what can't be."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def repair(self) -> list[str]:
        """Move records that wait for a job that is not there to ERROR; their ids.

        There are none unless somebody changed the database by hand or lunr has a
        defect: each is logged.
        """
        return self._context.db.write(self._repair)

    def _repair(self, session: Session) -> list[str]:
        repaired = []
        for model, error, passing in _PASSING:
            at_work = exists().where(Job.id == model.job_id, Job.status.in_(LIVE))
            for id in session.scalars(
                select(KEYS[model]).where(
                    model.status.in_(passing),
                    or_(model.job_id.is_(None), ~at_work),
                    # Its node serves it, and it may stay as it is for ever.
                    *([Volume.usable.is_(False)] if model is Volume else []),
                )
            ).all():
                if try_move(session, model, id, error, job_id=None, reason=str(Orphaned())):
                    log.error("%s %s had lost its job and is ERROR now", model.__name__, id)
                    repaired.append(id)
        return repaired

    def release_unneeded(self, now: datetime) -> list[str]:
        """Delete the hidden backups that nothing needs and whose delete failed; their ids."""
        before = now - timedelta(seconds=DELETE_AGAIN)
        return self._context.db.write(release_unneeded, self._context, before)

    def purge(self, now: datetime, keep_records: int) -> int:
        """Forget what was deleted, and jobs that ended, more than `keep_records` seconds ago.

        Returns:
            How many records.
        """
        before = now - timedelta(seconds=keep_records)
        return sum(
            self._context.db.write(_run, statement)
            for statement in (
                delete(Job).where(
                    Job.ended_at < before,
                    Job.status.not_in(LIVE),
                ),
                delete(Export).where(_old(Export, before)),
                delete(Snapshot).where(_old(Snapshot, before)),
                delete(Volume).where(
                    _old(Volume, before),
                    ~exists().where(Export.volume_id == Volume.id),
                    ~exists().where(Snapshot.volume_id == Volume.id),
                ),
                delete(Backup).where(_old(Backup, before), _is_collected(Backup)),
                delete(BackupGroup).where(
                    _old(BackupGroup, before),
                    _is_collected(BackupGroup),
                    ~exists().where(Backup.group_id == BackupGroup.id),
                ),
                delete(Account).where(
                    Account.deleted_at < before,
                    *(
                        ~exists().where(model.account_id == Account.id)
                        for model in (Volume, Snapshot, *STORED, Export, Job, Token, Collection)
                    ),
                ),
            )
        )


def _old(model: Any, before: datetime) -> Any:
    return (model.status == "DELETED") & (model.deleted_at < before)


def _is_collected(model: Any) -> Any:
    """Whether a collection began after the deletion: until then there are garbage objects of it.

    The record is what makes the account due for one.
    """
    return exists().where(Account.id == model.account_id, Account.collected_at > model.deleted_at)


def _run(session: Session, statement: Delete) -> int:
    result = session.execute(statement, execution_options={"synchronize_session": False})
    assert isinstance(result, CursorResult)
    return result.rowcount
