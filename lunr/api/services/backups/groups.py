"""Backup groups: backups of a machine's disks at one instant, made by live clients.

A client that backs up a running machine (lunr/live) writes to the store itself, as a
node does. It *announces* the group before: the records are then there, so that a collection
keeps what it writes; it learns which collections it must heed; and a job of its own (the type
``SaveGroup``, which no node is given) holds back the sweeps of later ones, exactly as the
save of a node does (:mod:`lunr.api.services.backups.collections`). It renews the job's lease
until it says that the group is complete. Then all of it is AVAILABLE, in one transaction.

In the store a group has a root too, of its id: that names the backups. So a collection keeps
it, a verify checks it, and the record can be made again from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.jobs import completion, queue
from lunr.api.jobs.leases import lease_end
from lunr.api.services import views
from lunr.api.services.accounts import service as accounts
from lunr.api.services.backups import service as backups
from lunr.api.services.backups.collections import find_unswept
from lunr.api.services.backups.job_types import BACKUP_COUNTS, DeleteBackup, SaveGroup
from lunr.api.services.pagination import Listing, Query
from lunr.common import errors, ids, times
from lunr.common.states import Backup as State
from lunr.common.states import Job as JobState
from lunr.common.states import Volume as VolumeState
from lunr.common.units import GIB
from lunr.db.models import Account, Backup, BackupGroup, Job, Volume, VolumeKind, columns
from lunr.db.transitions import move, wrong_state

LISTING = Listing(
    "groups",
    BackupGroup,
    select(*columns(BackupGroup)),
    lambda row: views.group(row, []),
    (BackupGroup.created_at, BackupGroup.id),
    BackupGroup.id,
)
_OVER = (State.DELETING, State.DELETED)


@dataclass(frozen=True)
class MemberReport:
    """What a client tells of the backup of one disk; counts are 0 until it is saved."""

    id: str
    disk: str
    volume_id: str
    size_bytes: int
    parent_id: str | None = None
    bytes_read: int = 0
    bytes_stored: int = 0
    objects_stored: int = 0
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """GiB that a volume needs to hold it."""
        return max(1, -(-self.size_bytes // GIB))

    @property
    def values(self) -> dict[str, Any]:
        """What goes into the record of the backup, by column."""
        counts = {name: getattr(self, name) for name in BACKUP_COUNTS}
        return {**counts, "size": self.size, "parent_id": self.parent_id, "meta": self.metadata}


@dataclass(frozen=True)
class GroupReport:
    """What a client tells of a group.

    Attributes:
        machine: what the machine is called.
        created_at: the instant, naive and in UTC.
        status: SAVING or AVAILABLE.
        backups: of its disks.
        progress: 0 to 100.
        metadata: notes.
    """

    machine: str
    created_at: datetime
    status: str
    backups: Sequence[MemberReport]
    progress: int = 0
    metadata: dict[str, str] = field(default_factory=dict)


class Groups:
    """What callers can do with groups."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def list(self, query: Query) -> Any:
        """A page of groups, each with its backups."""
        with self._context.db.read() as connection:
            page = LISTING.page(connection, query, self._context.settings.page_limit)
            found = {group["id"]: group for group in page["groups"]}
            for backup in _members(connection, list(found)):
                found[backup["group"]]["backups"].append(backup)
        return page

    def get(self, account_id: str, id: str) -> Any:
        """The group.

        Raises:
            errors.NotFound: the account has none of that id.
        """
        with self._context.db.read() as connection:
            return _fetch(connection, account_id, id)

    def put(self, account_id: str, id: str, report: GroupReport) -> Any:
        """Announce the group, show that it is still being saved, or make it AVAILABLE.

        The same may be told again. A group that is complete need not have been announced. What
        is AVAILABLE stays so; one that was given up for lost becomes AVAILABLE by being told so.

        Returns:
            The group, with ``condemned``: ids of the collections that a writer must heed; and
            ``cancel``: whether it is to stop.

        Raises:
            errors.InvalidField: two of its backups have the same id.
            errors.IdInUse: there is another group, backup or volume of such an id.
            errors.WrongState: it was deleted, or is being deleted.
            errors.QuotaExceeded: the account has all the backups or volumes it may have.
        """
        ids.check(id)
        return self._context.db.write(self._put, account_id, id, report)

    def _put(self, session: Session, account_id: str, id: str, report: GroupReport) -> Any:
        # The same lock as a collect's end takes: see collect.
        account = accounts.lock(session, account_id)
        group = _lock(session, id)
        if group is None:
            group = self._begin(session, account, id, report)
        else:
            _check_same(session, group, account_id, report)
        job = _job(session, group)
        if report.status == State.AVAILABLE and group.status != State.AVAILABLE:
            self._complete(session, account, group, job, report)
        elif group.status == State.SAVING and job is not None:
            job.lease_until = _lease()
            job.progress = group.progress = report.progress
            session.flush()
        return {
            **_fetch(session, account_id, id),
            "condemned": find_unswept(session, account_id),
            "cancel": job is not None and job.cancel,
        }

    def _begin(
        self, session: Session, account: Account, id: str, report: GroupReport
    ) -> BackupGroup:
        names = [id, *(member.id for member in report.backups)]
        if len(set(names)) < len(names) or not report.backups:
            raise errors.InvalidField(
                field="backups", reason="there are some, each with its own id"
            )
        backups.require_free(session, id, "group")
        group = BackupGroup(
            id=id,
            account_id=account.id,
            machine=report.machine,
            meta=report.metadata,
            created_at=report.created_at,
        )
        session.add(group)
        session.flush()
        job_id = None
        if report.status == State.SAVING:
            job_id = self._start_job(session, account.id, id)
        for member in report.backups:
            backups.require_free(session, member.id)
            accounts.check_quota(session, self._context, account, Backup)
            session.add(
                Backup(
                    id=member.id,
                    account_id=account.id,
                    volume_id=member.volume_id,
                    group_id=id,
                    name=member.disk,
                    created_at=report.created_at,
                    **member.values,
                )
            )
            self._know_volume(session, account, report.machine, member)
            session.flush()
            move(session, Backup, member.id, State.SAVING, "save it", job_id=job_id)
        move(session, BackupGroup, id, State.SAVING, "save it", job_id=job_id)
        session.refresh(group)
        return group

    def _start_job(self, session: Session, account_id: str, id: str) -> str:
        job = queue.enqueue(session, self._context, SaveGroup, account_id=account_id, subject_id=id)
        job.attempt, job.lease = 1, ids.new()
        job.started_at, job.lease_until = times.now(), _lease()
        session.flush()
        move(session, Job, job.id, JobState.RUNNING, "begin it")
        return job.id

    def _know_volume(
        self, session: Session, account: Account, machine: str, report: MemberReport
    ) -> None:
        """Have a record of the disk: one of lunr's volumes, or an external one."""
        volume = session.get(Volume, report.volume_id)
        if volume is None:
            accounts.check_volume_quota(session, self._context, account, 1, 0)
            session.add(
                Volume(
                    id=report.volume_id,
                    account_id=account.id,
                    name=f"{machine}-{report.disk}",
                    size=report.size,
                    reserved=0,
                    progress=100,
                    kind=VolumeKind.EXTERNAL,
                    meta={"machine": machine, "disk": report.disk},
                )
            )
            session.flush()
            move(session, Volume, report.volume_id, VolumeState.EXTERNAL, "record it")
        elif volume.account_id != account.id:
            raise errors.IdInUse(kind="volume", id=report.volume_id, differs="choose another id")
        elif volume.kind == VolumeKind.EXTERNAL:
            volume.size = report.size

    def _complete(
        self,
        session: Session,
        account: Account,
        group: BackupGroup,
        job: Job | None,
        report: GroupReport,
    ) -> None:
        done: dict[str, Any] = {"progress": 100, "job_id": None, "reason": None}
        for member in report.backups:
            values = member.values | done
            move(session, Backup, member.id, State.AVAILABLE, "complete it", **values)
            self._know_volume(session, account, report.machine, member)
        group.meta = report.metadata
        session.flush()
        if job is not None:
            completion.complete(session, self._context, job, JobState.DONE)
        else:
            move(session, BackupGroup, group.id, State.AVAILABLE, "complete it", **done)

    def delete(self, account_id: str, id: str) -> Any:
        """Delete a group with all its backups; one that is being saved is given up.

        Raises:
            errors.NotFound: the account has no such group, or it is deleted.
            errors.InUse: a backup of it is being restored or verified, or is the parent of one
                that is being saved. Nothing is deleted then.
            BackupProtected: one of them is protected.
        """
        return self._context.db.write(self._delete, account_id, id)

    def _delete(self, session: Session, account_id: str, id: str) -> Any:
        group = _lock(session, id)
        if group is None or group.account_id != account_id or group.status == State.DELETED:
            raise errors.NotFound(kind="group", id=id)
        if group.status == State.DELETING:
            return _fetch(session, account_id, id)
        if (job := _job(session, group)) is not None:
            completion.complete(
                session, self._context, job, JobState.CANCELLED, errors.Cancelled().as_dict()
            )
        # First: its backups are not deleted while it is to stay.
        move(session, BackupGroup, id, State.DELETING, "delete it", reason=None)
        query = select(Backup).where(Backup.group_id == id, Backup.status.not_in(_OVER))
        locked = query.order_by(Backup.id).with_for_update(key_share=True)
        members = session.scalars(locked.execution_options(populate_existing=True)).all()
        for backup in members:
            backups.discard(session, self._context, backup)
        # Last, so that a group that is DELETED has nothing left.
        job = queue.enqueue(
            session,
            self._context,
            DeleteBackup,
            account_id=account_id,
            subject_id=id,
            data={"is_group": True},
            after=[str(backup.job_id) for backup in members],
        )
        group.job_id = job.id
        session.flush()
        return _fetch(session, account_id, id)


def _lease() -> datetime:
    return lease_end(SaveGroup.external_lease_seconds)


def _lock(session: Session, id: str) -> BackupGroup | None:
    """The group `id`, whosever it is, locked."""
    return session.scalar(
        select(BackupGroup)
        .where(BackupGroup.id == id)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )


def _job(session: Session, group: BackupGroup) -> Job | None:
    """The job of the client that saves the group, locked; None: nobody does."""
    return session.scalar(
        select(Job)
        .where(Job.id == group.job_id, Job.kind == SaveGroup.name, Job.status == JobState.RUNNING)
        .with_for_update()
        .execution_options(populate_existing=True)
    )


def _check_same(session: Session, group: BackupGroup, account_id: str, report: GroupReport) -> None:
    """Make sure that the report is of the `group` that is there.

    Raises:
        errors.IdInUse: it is not.
        errors.WrongState: the group is deleted.
    """
    if group.account_id != account_id:
        raise errors.IdInUse(kind="group", id=group.id, differs="choose another id")
    members = select(Backup.id, Backup.volume_id).where(Backup.group_id == group.id)
    existing = session.execute(members)
    is_same = {
        "machine": report.machine == group.machine,
        "created_at": report.created_at == group.created_at,
        "backups": {(one.id, one.volume_id) for one in report.backups} == {*map(tuple, existing)},
    }
    if differs := [name for name, same in is_same.items() if not same]:
        raise errors.IdInUse(kind="group", id=group.id, differs=", ".join(differs))
    if group.status in _OVER:
        raise wrong_state(group, "go on with it", "unknown, SAVING, AVAILABLE or ERROR")


def _fetch(reader: Session | Connection, account_id: str, id: str) -> Any:
    """The group as the API shows it.

    Raises:
        errors.NotFound: the account has none of that id.
    """
    statement = LISTING.statement.where(BackupGroup.id == id, BackupGroup.account_id == account_id)
    row = reader.execute(statement).one_or_none()
    if row is None:
        raise errors.NotFound(kind="group", id=id)
    return views.group(row, _members(reader, [id]))


def _members(reader: Session | Connection, group_ids: Sequence[str]) -> list[Any]:
    """The backups of these groups as the API shows them."""
    rows = reader.execute(
        select(*columns(Backup))
        .where(Backup.group_id.in_(group_ids))
        .order_by(Backup.group_id, Backup.name, Backup.id)
    )
    return [views.backup(row) for row in rows]
