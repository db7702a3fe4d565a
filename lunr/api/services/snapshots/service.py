"""Snapshots."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.jobs import queue
from lunr.api.jobs.job_type import JobType
from lunr.api.services import dependencies, views
from lunr.api.services.accounts import service as accounts
from lunr.api.services.pagination import Listing, Query
from lunr.api.services.snapshots.job_types import CreateSnapshot, DeleteSnapshot
from lunr.api.services.volumes import service as volumes
from lunr.common import errors, ids
from lunr.common.states import Snapshot as State
from lunr.db.models import Backup, Snapshot, Volume, columns
from lunr.db.transitions import move

LISTING = Listing(
    "snapshots",
    Snapshot,
    select(*columns(Snapshot)),
    views.snapshot,
    (Snapshot.created_at, Snapshot.id),
    Snapshot.id,
)


class Snapshots:
    """What callers can do with snapshots."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def list(self, query: Query) -> Any:
        """A page of snapshots."""
        with self._context.db.read() as connection:
            return LISTING.page(connection, query, self._context.settings.page_limit)

    def get(self, account_id: str, id: str) -> Any:
        """The snapshot.

        Raises:
            errors.NotFound: the account has none of that id.
        """
        with self._context.db.read() as connection:
            row = connection.execute(
                LISTING.statement.where(Snapshot.id == id, Snapshot.account_id == account_id)
            ).one_or_none()
        if row is None:
            raise errors.NotFound(kind="snapshot", id=id)
        return views.snapshot(row)

    def create(
        self,
        account_id: str,
        volume_id: str,
        name: str = "",
        metadata: dict[str, str] | None = None,
    ) -> Any:
        """Make a snapshot of a volume.

        Raises:
            errors.NotFound: the account has no such volume.
            errors.WrongState, errors.InUse: it can't be used, or a job is at work on it.
            errors.QuotaExceeded: the account has all the snapshots it may have.
        """
        return self._context.db.write(self._create, account_id, volume_id, name, metadata or {})

    def _create(
        self, session: Session, account_id: str, volume_id: str, name: str, meta: dict[str, str]
    ) -> Any:
        account = accounts.lock(session, account_id)
        volume = volumes.lock(session, account_id, volume_id)
        volumes.require_usable(volume, "make a snapshot of it")
        accounts.check_quota(session, self._context, account, Snapshot)
        snapshot = Snapshot(
            id=ids.new(),
            account_id=account_id,
            volume_id=volume_id,
            name=name,
            size=volume.size,
            node_id=volume.node_id,
            base_id=volumes.base_of(volume),
            meta=meta,
        )
        session.add(snapshot)
        self._queue(session, CreateSnapshot, snapshot)
        return views.snapshot(snapshot)

    def delete(self, account_id: str, id: str) -> Any:
        """Delete a snapshot; one that is being deleted is answered as it is.

        Raises:
            errors.NotFound: the account has no such snapshot, or it is deleted.
            errors.InUse: it is being made or backed up, or a volume is being made from it.
        """
        return self._context.db.write(self._delete, account_id, id)

    def _delete(self, session: Session, account_id: str, id: str) -> Any:
        snapshot = session.scalar(
            select(Snapshot)
            .where(
                Snapshot.id == id, Snapshot.account_id == account_id, Snapshot.status != "DELETED"
            )
            .with_for_update(key_share=True)
        )
        if snapshot is None:
            raise errors.NotFound(kind="snapshot", id=id)
        if snapshot.status == State.DELETING:
            return views.snapshot(snapshot)
        if snapshot.status == State.SAVING:
            raise errors.InUse(
                kind="snapshot",
                id=id,
                reason=f"the job {snapshot.job_id} makes it; cancel that first",
            )
        if session.scalar(select(dependencies.is_being_cloned(Volume.snapshot_id == id))):
            raise errors.InUse(kind="snapshot", id=id, reason="a volume is being made from it")
        if session.scalar(select(dependencies.is_being_saved(Backup.snapshot_id == id))):
            raise errors.InUse(kind="snapshot", id=id, reason="a backup of it is running")
        if snapshot.status == State.NEW and snapshot.job_id is not None:
            queue.cancel_queued(session, snapshot.job_id)
        move(session, Snapshot, id, State.DELETING, "delete it", reason=None)
        self._queue(session, DeleteSnapshot, snapshot)
        return views.snapshot(snapshot)

    def _queue(self, session: Session, job_type: type[JobType], snapshot: Snapshot) -> None:
        job = queue.enqueue(
            session,
            self._context,
            job_type,
            account_id=snapshot.account_id,
            subject_id=snapshot.id,
            volume_id=snapshot.volume_id,
            node_id=snapshot.node_id,
        )
        snapshot.job_id = job.id
        session.flush()
