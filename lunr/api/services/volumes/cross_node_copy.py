"""Copies of volumes and snapshots to other nodes, by way of the store.

A clone that can't be on its source's node is restored, on the node where it can
be, from a backup of the source that lunr makes for this alone (an *internal*
one). So only what is not in the store yet travels, and it arrives deduplicated,
encrypted and checked from end to end.

The restore's job waits for the save's (JobAfter) and fails when that one fails
(:mod:`lunr.api.jobs.completion`). The internal backup is needed until the
volume is full and no snapshot lacks anything of it: every transaction that can end that
need calls :func:`let_go`. Should a delete of one fail, the housekeeper has it tried again.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import exists, or_, select
from sqlalchemy.orm import Session, aliased

from lunr.api.context import Context
from lunr.api.jobs import queue
from lunr.api.services import dependencies
from lunr.common import ids
from lunr.common.states import Backup as State
from lunr.common.states import Job as JobState
from lunr.db.models import Backup, Job, Volume
from lunr.db.transitions import move

_OVER = (State.DELETING, State.DELETED)
#: Made for this alone; what ties a group is internal too.
_TRANSFER = Backup.internal & Backup.group_id.is_(None)
_CHILD = aliased(Backup)
#: Whether something has not all of the internal backup of the row yet, or what had not is just
#: backed up.
_NEEDED = or_(
    *(user.is_not(None) for user in dependencies.lacking(Backup.id)),
    exists().where(_CHILD.parent_id == Backup.id, _CHILD.status == State.SAVING),
)


def begin(session: Session, context: Context, volume: Volume, snapshot_id: str | None) -> Backup:
    """Have `volume`, or a snapshot of it, saved to be copied; the job is the backup's.

    What is saved is locked: it is not deleted while its backup is not saved.
    """
    backup = Backup(
        id=ids.new(),
        account_id=volume.account_id,
        volume_id=volume.id,
        snapshot_id=snapshot_id,
        internal=True,
        size=volume.size,
    )
    job = _queue(session, context, "backup.save", backup, volume.node_id)
    backup.job_id = job.id
    session.add(backup)
    return backup


def let_go(session: Session, context: Context, id: str) -> None:
    """Delete the internal backup `id` if no volume needs it any more; stop a save of it first.

    Its row is the lock: of a save and a restore that end at once, the later sees the other's end.
    """
    backup = session.scalar(
        select(Backup)
        .where(Backup.id == id, _TRANSFER, Backup.status.not_in(_OVER))
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
    if backup is None or session.scalar(select(_NEEDED).where(Backup.id == id)):
        return
    job = session.scalar(
        select(Job)
        .where(Job.id == backup.job_id, Job.status.in_(queue.LIVE))
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    if job is not None and job.status == JobState.RUNNING:
        job.cancel = True  # its end comes here again
        return
    if job is not None:
        queue.drop(session, job.id)
    node_id = session.scalar(select(Volume.node_id).where(Volume.id == backup.volume_id))
    job = _queue(session, context, "backup.delete", backup, node_id)
    move(session, Backup, id, State.DELETING, "delete it", job_id=job.id)


def unneeded(session: Session, before: datetime) -> list[str]:
    """The internal backups that no volume needs, that nobody deletes, unchanged since `before`."""
    return list(
        session.scalars(
            select(Backup.id)
            .where(
                _TRANSFER,
                Backup.status.not_in(_OVER),
                Backup.updated_at < before,
                ~_NEEDED,
            )
            .order_by(Backup.id)
        )
    )


def _queue(session: Session, context: Context, kind: str, backup: Backup, node_id: Any) -> Job:
    return queue.add(
        session,
        context,
        kind,
        account_id=backup.account_id,
        subject_id=backup.id,
        volume_id=backup.volume_id,
        node_id=node_id,
    )
