"""The types of jobs on backups, and on accounts' repositories as a whole."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.jobs import queue
from lunr.api.jobs.job_type import JobType, Payload, Result
from lunr.api.services.backups import dedup_candidates
from lunr.api.services.backups.collections import find_unswept, lock_account, read_collections
from lunr.api.services.backups.damage import (
    BackupDamaged,
    mark_damaged,
    mark_intact,
    read_damage,
)
from lunr.api.services.backups.parent import choose_parent
from lunr.api.services.dependencies import change_needs, release_if_unneeded
from lunr.common import errors, ids, times
from lunr.common.states import Backup as State
from lunr.common.states import Job as JobState
from lunr.common.states import Volume as VolumeState
from lunr.common.times import iso
from lunr.db.models import STORED, Account, Backup, BackupGroup, Collection, Job, Snapshot, Volume
from lunr.db.transitions import Model, try_move

#: What the result of a save counts.
BACKUP_COUNTS = ("bytes_read", "bytes_stored", "objects_stored")
#: Backups that may be in the store; those that are AVAILABLE must be.
_KEPT = (State.NEW, State.SAVING, State.DELETING, State.ERROR)


class SaveBackup(JobType):
    """Writes a backup of a volume, or of a snapshot, into the store."""

    name = "backup.save"
    model = Backup
    lock_key = "volume/{volume_id}"
    begins, done, failed = State.SAVING, State.AVAILABLE, State.ERROR
    reports_progress = True

    def on_claim(self, session: Session, context: Context, job: Job) -> None:
        """Decide what the backup builds on; that is not deleted while the backup is SAVING."""
        # What is condemned is read under the same lock that a collect's end takes.
        lock_account(session, job.account_id)
        backup = session.get_one(Backup, job.subject_id)
        source = _lock_saved(session, backup)
        is_whole = isinstance(source, Volume) and source.status != VolumeState.RESTORING
        base_id = None if is_whole else source.base_id
        backup.size = source.size
        parent_id = None if backup.full else choose_parent(session, backup, base_id)
        change_needs(session, context, backup, base_id=base_id, parent_id=parent_id)

    def payload(self, session: Session, context: Context, job: Job) -> Payload:
        backup = session.get_one(Backup, job.subject_id)
        # Who asks for a full one wants the bytes stored again.
        like = [] if backup.full else dedup_candidates.find_candidates(session, backup)
        return {
            "backup_id": backup.id,
            "repository": job.account_id,
            "snapshot_id": backup.snapshot_id,
            "base_id": backup.base_id,
            "parent_id": backup.parent_id,
            "like": like,
            "internal": backup.internal,
            "condemned": find_unswept(session, job.account_id),
            "created_at": iso(backup.created_at),
        }

    def check_result(self, job: Job, result: Result) -> errors.LunrError | None:
        for name in BACKUP_COUNTS:
            count = result.get(name, 0)
            if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count < 1 << 63:
                raise errors.InvalidField(
                    field=f"result.{name}", reason="it is a count of bytes or things"
                )
        if result.get("parent_id") is not None:
            ids.check(result["parent_id"], "result.parent_id")
        return None

    def on_done(self, session: Session, context: Context, job: Job, result: Result) -> None:
        backup = session.get_one(Backup, job.subject_id)
        for name in BACKUP_COUNTS:
            setattr(backup, name, result.get(name, 0))
        change_needs(session, context, backup, parent_id=result.get("parent_id"))
        release_if_unneeded(session, context, backup.id)

    def on_failed(self, session: Session, context: Context, job: Job, result: Result) -> None:
        # A release of a hidden one may have stopped the save, and waits for this.
        release_if_unneeded(session, context, job.subject_id)


class DeleteBackup(JobType):
    """Removes the root of a backup; what only it needed is left to garbage collection.

    The root of a backup group is removed by the same work of a node.
    """

    name = "backup.delete"
    model = Backup
    lock_key = "backup/{subject_id}"
    done, failed = State.DELETED, State.ERROR
    any_node = True

    def find_model(self, job: Job) -> Model | None:
        return BackupGroup if job.data.get("is_group") else Backup

    def payload(self, session: Session, context: Context, job: Job) -> Payload:
        return {"backup_id": job.subject_id, "repository": job.account_id}


class VerifyBackup(JobType):
    """Reads and checks all of a backup. A damaged backup fails the job."""

    name = "backup.verify"
    model = Backup
    lock_key = "backup/{subject_id}"
    any_node = True

    def payload(self, session: Session, context: Context, job: Job) -> Payload:
        return {"backup_id": job.subject_id, "repository": job.account_id}

    def check_result(self, job: Job, result: Result) -> errors.LunrError | None:
        for reason, backup_ids in read_damage(result).items():
            if job.subject_id in backup_ids:
                return BackupDamaged(id=job.subject_id, reason=reason)
        return None

    def on_done(self, session: Session, context: Context, job: Job, result: Result) -> None:
        mark_damaged(session, job.account_id, read_damage(result))
        mark_intact(session, job.account_id, job.subject_id)
        session.get_one(Backup, job.subject_id).verified_at = times.now()

    def on_failed(self, session: Session, context: Context, job: Job, result: Result) -> None:
        mark_damaged(session, job.account_id, read_damage(result))


class SaveGroup(JobType):
    """A client writes a backup group into the store.

    It holds back the sweeps of later collections, as the save of a node does
    (:mod:`lunr.api.services.backups.collections`).
    """

    name = "group.save"
    model = BackupGroup
    lock_key = "backup/{subject_id}"
    done, failed = State.AVAILABLE, State.ERROR
    reports_progress = True
    external_lease_seconds = 3600

    def on_failed(self, session: Session, context: Context, job: Job, result: Result) -> None:
        """The group is in ERROR: so are the backups of its disks."""
        members = select(Backup.id).where(
            Backup.group_id == job.subject_id, Backup.job_id == job.id
        )
        for id in session.scalars(members).all():
            try_move(session, Backup, id, State.ERROR, job_id=None, reason=job.reason)


class CollectGarbage(JobType):
    """Lists what nothing in an account's repository refers to any more."""

    name = "repository.collect"
    lock_key = "repository/{account_id}"
    any_node = True

    def payload(self, session: Session, context: Context, job: Job) -> Payload:
        return {"repository": job.account_id, **_describe_kept(session, job)}

    def check_result(self, job: Job, result: Result) -> errors.LunrError | None:
        read_collections(result)
        return None

    def on_done(self, session: Session, context: Context, job: Job, result: Result) -> None:
        collections = read_collections(result)
        if not collections:
            return
        lock_account(session, job.account_id)
        for id in collections:
            if session.get(Collection, id) is None:
                session.add(Collection(id=id, account_id=job.account_id))
                enqueue_sweep(session, context, job.account_id, id)


class SweepGarbage(JobType):
    """Removes the garbage that a collection lists, if nothing refers to it still."""

    name = "repository.sweep"
    lock_key = "repository/{account_id}"
    any_node = True

    def payload(self, session: Session, context: Context, job: Job) -> Payload:
        return {
            "repository": job.account_id,
            "collection": job.data["collection"],
            **_describe_kept(session, job),
        }

    def on_done(self, session: Session, context: Context, job: Job, result: Result) -> None:
        collection = session.get(Collection, job.data["collection"])
        if collection is not None:
            session.delete(collection)


class VerifyRepository(JobType):
    """Reads and checks a share of an account's objects.

    It has a lock key of its own: it reads for hours, and no collection need wait for it.
    """

    name = "repository.verify"
    lock_key = "repository.verify/{account_id}"
    any_node = True

    def payload(self, session: Session, context: Context, job: Job) -> Payload:
        number = session.get_one(Account, job.account_id).shares_verified
        return {
            "repository": job.account_id,
            "backup_ids": _find_roots(session, job.account_id, (State.AVAILABLE,)),
            "share": [number, job.data["shares"]],
        }

    def check_result(self, job: Job, result: Result) -> errors.LunrError | None:
        read_damage(result)
        return None

    def on_done(self, session: Session, context: Context, job: Job, result: Result) -> None:
        mark_damaged(session, job.account_id, read_damage(result))
        session.get_one(Account, job.account_id).shares_verified += 1


JOB_TYPES = (
    SaveBackup,
    DeleteBackup,
    VerifyBackup,
    SaveGroup,
    CollectGarbage,
    SweepGarbage,
    VerifyRepository,
)


def enqueue_sweep(session: Session, context: Context, account_id: str, collection: str) -> None:
    """Have the garbage of the `collection` removed when the saves that run now are over."""
    # A save that waits for another attempt counts: what is left of the attempt
    # before may still be at work on a node that was cut off.
    begun = session.scalars(
        select(Job.id).where(
            Job.account_id == account_id,
            Job.kind.in_((SaveBackup.name, SaveGroup.name)),
            or_(
                Job.status == JobState.RUNNING,
                and_(Job.status == JobState.QUEUED, Job.attempt > 0),
            ),
        )
    ).all()
    queue.enqueue(
        session,
        context,
        SweepGarbage,
        account_id=account_id,
        subject_id=account_id,
        data={"collection": collection},
        after=begun,
    )


def _lock_saved(session: Session, backup: Backup) -> Volume | Snapshot:
    """The volume or snapshot that the backup is of, locked.

    Else the last of what it lacks could arrive in a transaction that does not see yet what the
    backup builds on.
    """
    statement: Any = (
        select(Volume).where(Volume.id == backup.volume_id)
        if backup.snapshot_id is None
        else select(Snapshot).where(Snapshot.id == backup.snapshot_id)
    )
    saved: Volume | Snapshot = session.scalars(
        statement.with_for_update(key_share=True).execution_options(populate_existing=True)
    ).one()
    return saved


def _describe_kept(session: Session, job: Job) -> Payload:
    return {
        "keep": _find_roots(session, job.account_id, _KEPT),
        "required": _find_roots(session, job.account_id, (State.AVAILABLE,)),
    }


def _find_roots(session: Session, account_id: str, states: Iterable[State]) -> list[str]:
    """The ids of the account's backups and backup groups in these states."""
    queries = (
        select(model.id).where(model.account_id == account_id, model.status.in_(states))
        for model in STORED
    )
    return sorted(id for query in queries for id in session.scalars(query))
