"""Consistency groups: backups of a machine's disks at one instant, made by live clients.

A client that backs up a running machine (lunr/live) writes to the store itself, as a
node does. It *announces* the group before: the records are then there, so that a collection
keeps what it writes; it learns which collections it must heed; and a job of its own (the type
``SaveGroup``, which no node is given) holds back the sweeps of later ones, exactly as the
save of a node does (:mod:`lunr.api.services.backups.collections`). It renews the job's lease
until it says that the group is complete. Then all of it is AVAILABLE, in one transaction.

A group has no table: it is the backup that ties the others in the store, whose id is
theirs (``group_id``) and which is internal. So it is kept, verified and deleted as they are, and
the records can be made again from the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
from lunr.api.services.backups.job_types import SaveGroup
from lunr.api.services.pagination import Query
from lunr.common import errors, ids, times
from lunr.common.states import Backup as State
from lunr.common.states import Job as JobState
from lunr.common.states import Volume as VolumeState
from lunr.common.units import GIB
from lunr.db.models import Account, Backup, Job, Volume, VolumeKind, columns
from lunr.db.transitions import move

_IS_TIE = Backup.group_id == Backup.id
LISTING = replace(
    backups.EVERY,
    name="groups",
    statement=backups.EVERY.statement.where(_IS_TIE),
    view=lambda row: views.group(row, []),
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

    def put(self, account_id: str, id: str, told: GroupReport) -> Any:
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
        return self._context.db.write(self._put, account_id, id, told)

    def _put(self, session: Session, account_id: str, id: str, told: GroupReport) -> Any:
        # The same lock as a collect's end takes: see collect.
        account = accounts.lock(session, account_id)
        tie = _lock(session, id)
        if tie is None:
            tie = self._begin(session, account, id, told)
        else:
            _check_same(session, tie, account_id, told)
        job = _job(session, tie)
        if told.status == State.AVAILABLE and tie.status != State.AVAILABLE:
            self._complete(session, account, tie, job, told)
        elif tie.status == State.SAVING and job is not None:
            job.lease_until = _lease()
            job.progress = tie.progress = told.progress
            session.flush()
        return {
            **_fetch(session, account_id, id),
            "condemned": find_unswept(session, account_id),
            "cancel": job is not None and job.cancel,
        }

    def _begin(self, session: Session, account: Account, id: str, told: GroupReport) -> Backup:
        names = [id, *(one.id for one in told.backups)]
        if len(set(names)) < len(names) or not told.backups:
            raise errors.InvalidField(
                field="backups", reason="there are some, each with its own id"
            )
        tie = Backup(
            id=id,
            account_id=account.id,
            volume_id=told.machine,
            group_id=id,
            internal=True,
            name=told.machine,
            size=0,
            meta=told.metadata,
            created_at=told.created_at,
        )
        job_id = None
        if told.status == State.SAVING:
            job_id = self._start_job(session, account.id, id)
        for one in told.backups:
            if session.get(Backup, one.id) is not None:
                raise errors.IdInUse(kind="backup", id=one.id, differs="choose another id")
            accounts.check_quota(session, self._context, account, Backup)
            session.add(
                Backup(
                    id=one.id,
                    account_id=account.id,
                    volume_id=one.volume_id,
                    group_id=id,
                    name=one.disk,
                    size=one.size,
                    parent_id=one.parent_id,
                    meta=one.metadata,
                    created_at=told.created_at,
                )
            )
            self._know_volume(session, account, told.machine, one)
        session.add(tie)
        session.flush()
        for name in names:
            move(session, Backup, name, State.SAVING, "save it", job_id=job_id)
        session.refresh(tie)
        return tie

    def _start_job(self, session: Session, account_id: str, id: str) -> str:
        job = queue.enqueue(
            session,
            self._context,
            SaveGroup,
            account_id=account_id,
            subject_id=id,
            volume_id=None,
            node_id=None,
        )
        session.flush()
        begun: dict[str, Any] = {
            "lease": ids.new(),
            "lease_until": _lease(),
            "started_at": times.now(),
        }
        move(session, Job, job.id, JobState.RUNNING, "begin it", attempt=1, **begun)
        return job.id

    def _know_volume(
        self, session: Session, account: Account, machine: str, told: MemberReport
    ) -> None:
        """Have a record of the disk: one of lunr's volumes, or an external one."""
        volume = session.get(Volume, told.volume_id)
        if volume is None:
            accounts.check_volume_quota(session, self._context, account, 1, 0)
            session.add(
                Volume(
                    id=told.volume_id,
                    account_id=account.id,
                    name=f"{machine}-{told.disk}",
                    size=told.size,
                    reserved=0,
                    progress=100,
                    kind=VolumeKind.EXTERNAL,
                    meta={"machine": machine, "disk": told.disk},
                )
            )
            session.flush()
            move(session, Volume, told.volume_id, VolumeState.EXTERNAL, "record it")
        elif volume.account_id != account.id:
            raise errors.IdInUse(kind="volume", id=told.volume_id, differs="choose another id")
        elif volume.kind == VolumeKind.EXTERNAL:
            volume.size = told.size

    def _complete(
        self, session: Session, account: Account, tie: Backup, job: Job | None, told: GroupReport
    ) -> None:
        done: dict[str, Any] = {"progress": 100, "job_id": None, "reason": None}
        for one in told.backups:
            saved: dict[str, Any] = {
                "size": one.size,
                "parent_id": one.parent_id,
                "bytes_read": one.bytes_read,
                "bytes_stored": one.bytes_stored,
                "objects_stored": one.objects_stored,
                "meta": one.metadata,
            }
            move(session, Backup, one.id, State.AVAILABLE, "complete it", **saved, **done)
            self._know_volume(session, account, told.machine, one)
        tie.meta = told.metadata
        session.flush()
        if job is not None:
            completion.complete(session, self._context, job, JobState.DONE)
        else:
            move(session, Backup, tie.id, State.AVAILABLE, "complete it", **done)

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
        tie = _lock(session, id)
        if tie is None or not _is_group(tie, account_id) or tie.status == State.DELETED:
            raise errors.NotFound(kind="group", id=id)
        if tie.status == State.DELETING:
            return _fetch(session, account_id, id)
        if (job := _job(session, tie)) is not None:
            completion.complete(
                session, self._context, job, JobState.CANCELLED, errors.Cancelled().as_dict()
            )
        found = select(Backup).where(Backup.group_id == id, Backup.status.not_in(_OVER))
        locked = found.order_by(Backup.id).with_for_update(key_share=True)
        jobs = []
        for backup in session.scalars(locked.execution_options(populate_existing=True)).all():
            if backup is not tie:
                backups.discard(session, self._context, backup, with_group=True)
                jobs.append(str(backup.job_id))
        # Last, so that a group that is DELETED has nothing left.
        backups.discard(session, self._context, tie, with_group=True, after=jobs)
        return _fetch(session, account_id, id)


def _lease() -> datetime:
    return lease_end(SaveGroup.external_lease_seconds)


def _lock(session: Session, id: str) -> Backup | None:
    """The backup `id`, whosever it is, locked."""
    return session.scalar(
        select(Backup)
        .where(Backup.id == id)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )


def _job(session: Session, tie: Backup) -> Job | None:
    """The job of the client that saves the group, locked; None: nobody does."""
    return session.scalar(
        select(Job)
        .where(Job.id == tie.job_id, Job.kind == SaveGroup.name, Job.status == JobState.RUNNING)
        .with_for_update()
        .execution_options(populate_existing=True)
    )


def _is_group(backup: Backup, account_id: str) -> bool:
    return backup.account_id == account_id and backup.group_id == backup.id


def _check_same(session: Session, tie: Backup, account_id: str, told: GroupReport) -> None:
    """Make sure that what is told is of the group that is there.

    Raises:
        errors.IdInUse: it is not.
        errors.WrongState: the group is deleted.
    """
    if not _is_group(tie, account_id):
        raise errors.IdInUse(kind="group", id=tie.id, differs="choose another id")
    members = session.execute(
        select(Backup.id, Backup.volume_id).where(Backup.group_id == tie.id, Backup.id != tie.id)
    )
    is_same = {
        "machine": told.machine == tie.volume_id,
        "created_at": told.created_at == tie.created_at,
        "backups": {(one.id, one.volume_id) for one in told.backups} == {*map(tuple, members)},
    }
    if differs := [name for name, same in is_same.items() if not same]:
        raise errors.IdInUse(kind="group", id=tie.id, differs=", ".join(differs))
    if tie.status in _OVER:
        raise errors.WrongState(
            kind="group",
            id=tie.id,
            state=tie.status,
            action="go on with it",
            needed="unknown, SAVING, AVAILABLE or ERROR",
        )


def _fetch(reader: Session | Connection, account_id: str, id: str) -> Any:
    """The group as the API shows it.

    Raises:
        errors.NotFound: the account has none of that id.
    """
    statement = LISTING.statement.where(Backup.id == id, Backup.account_id == account_id)
    row = reader.execute(statement).one_or_none()
    if row is None:
        raise errors.NotFound(kind="group", id=id)
    return views.group(row, _members(reader, [id]))


def _members(reader: Session | Connection, group_ids: Sequence[str]) -> list[Any]:
    """The backups of these groups as the API shows them, without what ties them."""
    rows = reader.execute(
        select(*columns(Backup))
        .where(Backup.group_id.in_(group_ids), ~_IS_TIE)
        .order_by(Backup.group_id, Backup.name, Backup.id)
    )
    return [views.backup(row) for row in rows]
