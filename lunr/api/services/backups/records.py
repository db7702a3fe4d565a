"""Records of backups, made from what is in the store, or carried from one lunr to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.common import errors, ids
from lunr.common.states import Backup as State
from lunr.common.times import iso
from lunr.db.models import Backup
from lunr.db.transitions import move


@dataclass(frozen=True)
class StoredBackup:
    """A backup that is in the store.

    Attributes:
        id, account_id, volume_id, parent_id: ids.
        size: of the volume, GiB.
        created_at: naive, UTC.
        bytes_read, bytes_stored, objects_stored: what its save did.
        name, metadata, protected, schedule_id: as in the record, where they are known.
        group_id: what those share that were taken at one instant.
        internal: lunr made it for itself: it is deleted unless a volume needs it, or it ties
            a group.
    """

    id: str
    account_id: str
    volume_id: str
    parent_id: str | None
    size: int
    created_at: datetime
    bytes_read: int
    bytes_stored: int
    objects_stored: int
    name: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    protected: bool = False
    schedule_id: str | None = None
    group_id: str | None = None
    internal: bool = False


class Records:
    """Exports and imports records."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def known(self) -> dict[str, list[str]]:
        """The ids of the AVAILABLE backups of each account that has some."""
        found: dict[str, list[str]] = {}
        statement = select(Backup.account_id, Backup.id).where(Backup.status == State.AVAILABLE)
        with self._context.db.read() as connection:
            for account_id, id in connection.execute(statement):
                found.setdefault(account_id, []).append(id)
        return found

    def export(self, id: str) -> dict[str, Any]:
        """What another lunr with the same store and master key needs to know of a backup.

        Raises:
            errors.NotFound: there is no such backup.
            errors.WrongState: it is not AVAILABLE.
        """
        statement = select(Backup).where(Backup.id == id, Backup.internal.is_(False))
        return self._context.db.write(self._export, statement, id)

    def _export(self, session: Session, statement: Any, id: str) -> dict[str, Any]:
        backup = session.scalar(statement)
        if backup is None:
            raise errors.NotFound(kind="backup", id=id)
        if backup.status != State.AVAILABLE:
            raise errors.WrongState(
                kind="backup",
                id=id,
                state=backup.status,
                action="export it",
                needed=State.AVAILABLE,
            )
        return {
            "id": backup.id,
            "account_id": backup.account_id,
            "volume_id": backup.volume_id,
            "size": backup.size,
            "created_at": iso(backup.created_at),
            "name": backup.name,
            "metadata": backup.meta,
            "protected": backup.protected,
            "schedule_id": backup.schedule_id,
        }

    def put(self, stored: StoredBackup) -> bool:
        """Make a record of a backup that is in the store; whether there was none.

        Raises:
            errors.IdInUse: there is another backup of that id.
            errors.WrongState: it was deleted, or is being deleted: only its objects are left.
        """
        ids.check(stored.id)
        ids.check(stored.volume_id, "volume_id")
        return self._context.db.write(self._put, stored)

    def _put(self, session: Session, stored: StoredBackup) -> bool:
        there = session.get(Backup, stored.id)
        if there is not None:
            _check_same(there, stored)
            return False
        session.add(
            Backup(
                id=stored.id,
                account_id=stored.account_id,
                volume_id=stored.volume_id,
                name=stored.name,
                meta=dict(stored.metadata),
                protected=stored.protected,
                schedule_id=stored.schedule_id,
                group_id=stored.group_id,
                internal=stored.internal or stored.group_id == stored.id,
                size=stored.size,
                parent_id=stored.parent_id,
                bytes_read=stored.bytes_read,
                bytes_stored=stored.bytes_stored,
                objects_stored=stored.objects_stored,
                progress=100,
                created_at=stored.created_at,
            )
        )
        session.flush()
        for state in (State.SAVING, State.AVAILABLE):
            move(session, Backup, stored.id, state, "record it")
        return True


def _check_same(there: Backup, stored: StoredBackup) -> None:
    names = ["account_id", "volume_id"]
    if stored.group_id != stored.id:
        # What ties a group has no size; where earlier code made its record from the store, it has.
        names.append("size")
    differs = [name for name in names if getattr(there, name) != getattr(stored, name)]
    if differs:
        raise errors.IdInUse(kind="backup", id=stored.id, differs=", ".join(differs))
    if there.status in (State.DELETING, State.DELETED):
        raise errors.WrongState(
            kind="backup",
            id=stored.id,
            state=there.status,
            action="record it again",
            needed="unknown or AVAILABLE",
        )
