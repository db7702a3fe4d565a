"""Records of backups, made from what is in the store, or carried from one lunr to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.services.backups.service import require_free
from lunr.common import errors, ids
from lunr.common.states import Backup as State
from lunr.common.times import iso
from lunr.db.models import STORED, Backup, BackupGroup
from lunr.db.transitions import move, wrong_state


@dataclass(frozen=True)
class StoredBackup:
    """A backup that is in the store.

    Attributes:
        id, account_id, volume_id, parent_id: ids.
        size: of the volume, GiB.
        created_at: naive, UTC.
        bytes_read, bytes_stored, objects_stored: what its save did.
        name, metadata, protected, schedule_id: as in the record, where they are known.
        group_id: its backup group; with the id of its own it is the root of a group itself, and
            `volume_id` the machine.
        internal: lunr made it for itself: it is deleted unless a volume needs it.
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
        """The ids of the AVAILABLE backups and groups of each account that has some."""
        found: dict[str, list[str]] = {}
        with self._context.db.read() as connection:
            for model in STORED:
                query = select(model.account_id, model.id).where(model.status == State.AVAILABLE)
                for account_id, id in connection.execute(query):
                    found.setdefault(account_id, []).append(id)
        return found

    def export(self, id: str) -> dict[str, Any]:
        """What another lunr with the same store and master key needs to know of a backup.

        Raises:
            errors.NotFound: there is no such backup.
            errors.WrongState: it is not AVAILABLE.
        """
        return self._context.db.write(self._export, id)

    def _export(self, session: Session, id: str) -> dict[str, Any]:
        backup = session.get(Backup, id)
        if backup is None or backup.internal:
            raise errors.NotFound(kind="backup", id=id)
        if backup.status != State.AVAILABLE:
            raise wrong_state(backup, "export it", State.AVAILABLE)
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

        A group's comes before those of its backups. A backup that was recorded without it gets
        into the group when it is put again.

        Raises:
            errors.IdInUse: there is another backup of that id.
            errors.WrongState: it was deleted, or is being deleted: only its objects are left.
        """
        ids.check(stored.id)
        ids.check(stored.volume_id, "volume_id")
        return self._context.db.write(self._put, stored)

    def _put(self, session: Session, stored: StoredBackup) -> bool:
        record: Any = _make_record(session, stored)
        model = type(record)
        existing = session.get(model, stored.id)
        if existing is not None:
            _check_same(existing, record)
            if isinstance(existing, Backup) and existing.group_id is None:
                existing.group_id = record.group_id
            return False
        require_free(session, stored.id)
        session.add(record)
        session.flush()
        for state in (State.SAVING, State.AVAILABLE):
            move(session, model, stored.id, state, "record it")
        return True


def _make_record(session: Session, stored: StoredBackup) -> Backup | BackupGroup:
    if stored.group_id == stored.id:
        return BackupGroup(
            id=stored.id,
            account_id=stored.account_id,
            machine=stored.volume_id,
            progress=100,
            created_at=stored.created_at,
        )
    group = select(BackupGroup.id).where(
        BackupGroup.id == stored.group_id, BackupGroup.account_id == stored.account_id
    )
    return Backup(
        id=stored.id,
        account_id=stored.account_id,
        volume_id=stored.volume_id,
        name=stored.name,
        meta=dict(stored.metadata),
        protected=stored.protected,
        schedule_id=stored.schedule_id,
        group_id=session.scalar(group),
        internal=stored.internal,
        size=stored.size,
        parent_id=stored.parent_id,
        bytes_read=stored.bytes_read,
        bytes_stored=stored.bytes_stored,
        objects_stored=stored.objects_stored,
        progress=100,
        created_at=stored.created_at,
    )


def _check_same(existing: Any, record: Backup | BackupGroup) -> None:
    names = ("volume_id", "size") if isinstance(record, Backup) else ("machine",)
    differs = [
        name for name in ("account_id", *names) if getattr(existing, name) != getattr(record, name)
    ]
    if differs:
        raise errors.IdInUse(kind="backup", id=record.id, differs=", ".join(differs))
    if existing.status in (State.DELETING, State.DELETED):
        raise wrong_state(existing, "record it again", "unknown or AVAILABLE")
