"""Backups."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.jobs import queue
from lunr.api.jobs.job_type import JobType
from lunr.api.services import dependencies, views
from lunr.api.services.accounts import service as accounts
from lunr.api.services.backups.job_types import DeleteBackup, SaveBackup, VerifyBackup
from lunr.api.services.pagination import Listing, Query
from lunr.api.services.volumes import service as volumes
from lunr.common import errors, ids
from lunr.common.states import Backup as State
from lunr.common.states import Volume as VolumeState
from lunr.db.models import STORED, Account, Backup, BackupGroup, Snapshot, Volume, columns
from lunr.db.transitions import move, wrong_state

EVERY = Listing(
    "backups",
    Backup,
    select(*columns(Backup)),
    views.backup,
    (Backup.created_at, Backup.id),
    Backup.id,
)
#: Those that are their account's own; what lunr makes for itself is not there for callers.
LISTING = replace(EVERY, statement=EVERY.statement.where(Backup.internal.is_(False)))


class BackupProtected(errors.Conflict):
    """The backup {id} is protected: set protected to false first."""

    code = "backup_protected"


class Backups:
    """What callers can do with backups."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def list(self, query: Query, internal: bool = False) -> Any:
        """A page of backups; with those that lunr made for itself only if `internal`."""
        listing = EVERY if internal else LISTING
        with self._context.db.read() as connection:
            return listing.page(connection, query, self._context.settings.page_limit)

    def get(self, account_id: str, id: str, volume_id: str | None = None) -> Any:
        """The backup (of the volume, if one is given).

        Raises:
            errors.NotFound: the account has none of that id.
        """
        statement = LISTING.statement.where(Backup.id == id, Backup.account_id == account_id)
        if volume_id is not None:
            statement = statement.where(Backup.volume_id == volume_id)
        with self._context.db.read() as connection:
            row = connection.execute(statement).one_or_none()
        if row is None:
            raise errors.NotFound(kind="backup", id=id)
        return views.backup(row)

    def create(
        self, account_id: str, volume_id: str, request: dict[str, Any], id: str | None = None
    ) -> tuple[Any, bool]:
        """Make a backup; the second of the answer is False if the same request made it before.

        Args:
            request: ``name``, ``metadata``, ``protected``, ``full``, ``snapshot`` (of the
                volume: save that instead of the volume as it is).
            id: the caller's id; the same request may then come again.

        Raises:
            errors.NotFound: the account has no such volume, or that no such snapshot.
            errors.WrongState, errors.InUse: it is not ACTIVE (the snapshot not AVAILABLE),
                or a job is at work on it.
            errors.IdInUse: there is another backup of that id.
            errors.QuotaExceeded: the account has all the backups it may have.
        """
        if id is not None:
            ids.check(id)
        return self._context.db.write(self._create, account_id, volume_id, request, id)

    def _create(
        self,
        session: Session,
        account_id: str,
        volume_id: str,
        request: dict[str, Any],
        id: str | None,
    ) -> tuple[Any, bool]:
        account = accounts.lock(session, account_id)
        request = {**request, "volume_id": volume_id}
        known = None if id is None else session.get(Backup, id)
        if id is not None and known is None:
            require_free(session, id)
        if known is not None and known.account_id == account_id:
            volumes.same_request("backup", known, account_id, request)
            return views.backup(known), False
        volume = volumes.lock(session, account_id, volume_id)
        if known is not None:
            volumes.same_request("backup", known, account_id, request)
        backup = start(session, self._context, account, volume, request, id)
        return views.backup(backup), True

    def update(self, account_id: str, id: str, changes: dict[str, Any]) -> Any:
        """Change ``name``, ``metadata`` (replaced as a whole) or ``protected``.

        Raises:
            errors.NotFound: the account has no such backup, or it is deleted.
            errors.InUse: it is being deleted.
        """
        return self._context.db.write(self._update, account_id, id, changes)

    def _update(self, session: Session, account_id: str, id: str, changes: dict[str, Any]) -> Any:
        backup = _lock(session, account_id, id, None)
        if backup.status == State.DELETING:
            raise errors.InUse(kind="backup", id=id, reason="it is being deleted")
        backup.name = changes.get("name", backup.name)
        backup.meta = changes.get("metadata", backup.meta)
        backup.protected = changes.get("protected", backup.protected)
        session.flush()
        return views.backup(backup)

    def delete(self, account_id: str, id: str, volume_id: str | None = None) -> Any:
        """Delete a backup; one that is being deleted is answered as it is.

        Raises:
            errors.NotFound: the account has no such backup, or it is deleted.
            errors.InUse: it is being saved, restored or verified, or is the parent
                of one that is being saved.
            BackupProtected: it is protected.
        """
        return self._context.db.write(self._delete, account_id, id, volume_id)

    def _delete(self, session: Session, account_id: str, id: str, volume_id: str | None) -> Any:
        backup = _lock(session, account_id, id, volume_id)
        if backup.status == State.DELETING:
            return views.backup(backup)
        discard(session, self._context, backup)
        return views.backup(backup)

    def restores(self, account_id: str, id: str) -> Any:
        """The volumes that are now being restored from the backup.

        Raises:
            errors.NotFound: the account has no such backup.
        """
        self.get(account_id, id)
        statement = volumes.LISTING.statement.where(
            Volume.base_id == id,
            Volume.account_id == account_id,
            Volume.status.in_((VolumeState.NEW, VolumeState.BUILDING, VolumeState.RESTORING)),
        )
        with self._context.db.read() as connection:
            rows = connection.execute(statement.order_by(Volume.created_at.desc())).all()
        return {"restores": [volumes.LISTING.view(row) for row in rows], "next": None}

    def verify(self, account_id: str, id: str) -> Any:
        """Have all of the backup read and checked; the answer is the job.

        Raises:
            errors.NotFound: the account has no such backup.
            errors.WrongState: it is not AVAILABLE.
            errors.InUse: it is being verified.
        """
        return self._context.db.write(self._verify, account_id, id)

    def _verify(self, session: Session, account_id: str, id: str) -> Any:
        backup = _lock(session, account_id, id, None)
        if backup.status != State.AVAILABLE:
            raise wrong_state(backup, "verify it", State.AVAILABLE)
        if backup.job_id is not None:
            raise errors.InUse(
                kind="backup", id=id, reason=f"the job {backup.job_id} is verifying it"
            )
        return views.job(_queue(session, self._context, VerifyBackup, backup))


def start(
    session: Session,
    context: Context,
    account: Account,
    volume: Volume,
    request: dict[str, Any],
    id: str | None = None,
    schedule_id: str | None = None,
) -> Backup:
    """Have the `volume` backed up; it and its `account` are locked.

    Args:
        request: as for :meth:`Backups.create`.
        schedule_id: the schedule that asks for it.

    Raises:
        errors.NotFound: the volume has no such snapshot.
        errors.WrongState, errors.InUse: the volume is not ACTIVE (the snapshot not
            AVAILABLE), or a job is at work on it.
        errors.QuotaExceeded: the account has all the backups it may have.
    """
    volumes.require_usable(volume, "back it up")
    saved: Volume | Snapshot = volume
    if "snapshot" in request:
        saved = dependencies.lock_source(
            session, account.id, Snapshot, request["snapshot"], "back it up"
        )
        if saved.volume_id != volume.id:
            raise errors.NotFound(kind=f"snapshot of volume {volume.id} with the id", id=saved.id)
    accounts.check_quota(session, context, account, Backup)
    backup = Backup(
        id=id or ids.new(),
        account_id=account.id,
        volume_id=volume.id,
        name=request.get("name", ""),
        snapshot_id=request.get("snapshot"),
        size=saved.size,
        full=request.get("full", False),
        protected=request.get("protected", False),
        schedule_id=schedule_id,
        meta=request.get("metadata", {}),
        request=request,
    )
    session.add(backup)
    _queue(session, context, SaveBackup, backup)
    return backup


def require_free(session: Session, id: str, kind: str = "backup") -> None:
    """Make sure that no backup and no backup group has the `id`: both are roots in the store.

    Raises:
        errors.IdInUse: one has.
    """
    if any(session.get(model, id) for model in STORED):
        raise errors.IdInUse(kind=kind, id=id, differs="choose another id")


def discard(session: Session, context: Context, backup: Backup) -> None:
    """Begin to delete the `backup`, whose row is locked.

    Raises:
        errors.InUse: something is at work on it, or needs it, or its group is to stay.
        BackupProtected: it is protected.
    """
    id = backup.id
    if backup.protected:
        raise BackupProtected(id=id)
    if _is_in_group(session, backup):
        raise errors.InUse(
            kind="backup", id=id, reason=f"it belongs to the group {backup.group_id}: delete that"
        )
    if backup.job_id is not None and backup.status != State.NEW:
        raise errors.InUse(
            kind="backup",
            id=id,
            reason=f"the job {backup.job_id} is at work on it; cancel that first",
        )
    needed_by = dependencies.find_dependents(session, id)
    snapshot = needed_by.snapshot
    if needed_by.volume is not None:
        raise errors.InUse(
            kind="backup", id=id, reason=f"the volume {needed_by.volume} is being restored from it"
        )
    if snapshot is not None:
        raise errors.InUse(
            kind="backup",
            id=id,
            reason=f"the snapshot {snapshot} lacks what it has: its volume was being restored then",
        )
    if needed_by.child is not None:
        raise errors.InUse(kind="backup", id=id, reason="it is the parent of a running backup")
    if needed_by.save is not None:
        raise errors.InUse(
            kind="backup", id=id, reason=f"the running backup {needed_by.save} needs it"
        )
    if backup.status == State.NEW and backup.job_id is not None:
        queue.cancel_queued(session, backup.job_id)
    move(session, Backup, id, State.DELETING, "delete it", reason=None)
    _queue(session, context, DeleteBackup, backup)


def _is_in_group(session: Session, backup: Backup) -> bool:
    """Whether the backup belongs to a group that is there, and is to stay."""
    status = session.scalar(select(BackupGroup.status).where(BackupGroup.id == backup.group_id))
    return status is not None and status not in (State.DELETING, State.DELETED)


def _queue(session: Session, context: Context, job_type: type[JobType], backup: Backup) -> Any:
    node_id = session.scalar(select(Volume.node_id).where(Volume.id == backup.volume_id))
    job = queue.enqueue(
        session,
        context,
        job_type,
        account_id=backup.account_id,
        subject_id=backup.id,
        volume_id=backup.volume_id,
        node_id=node_id,
    )
    backup.job_id = job.id
    session.flush()
    return job


def _lock(session: Session, account_id: str, id: str, volume_id: str | None) -> Backup:
    statement = select(Backup).where(
        Backup.id == id,
        Backup.account_id == account_id,
        Backup.status != "DELETED",
        Backup.internal.is_(False),
    )
    if volume_id is not None:
        statement = statement.where(Backup.volume_id == volume_id)
    backup = session.scalar(statement.with_for_update(key_share=True))
    if backup is None:
        raise errors.NotFound(kind="backup", id=id)
    return backup
