"""What volumes and backups are made from: taken, and kept while something still needs it."""

from __future__ import annotations

from typing import Any, TypeVar

from sqlalchemy import ColumnElement, exists, select
from sqlalchemy.orm import Session

from lunr.common import errors
from lunr.common.states import Backup as State
from lunr.common.states import Volume as VolumeState
from lunr.db.models import Backup, Snapshot, Volume

Saved = TypeVar("Saved", Snapshot, Backup)


def lock(session: Session, account_id: str, model: type[Saved], id: str, action: str) -> Saved:
    """The AVAILABLE snapshot or backup, locked: nobody deletes it before something needs it.

    Raises:
        errors.NotFound: the account has none of that id.
        errors.WrongState: it is not AVAILABLE.
    """
    wanted = select(model).where(
        model.id == id, model.account_id == account_id, model.status != "DELETED"
    )
    if model is Backup:
        wanted = wanted.where(Backup.internal.is_(False))
    record = session.scalar(wanted.with_for_update(key_share=True))
    kind = model.__name__.lower()
    if record is None:
        raise errors.NotFound(kind=kind, id=id)
    if record.status != State.AVAILABLE:
        raise errors.WrongState(
            kind=kind,
            id=id,
            state=record.status,
            action=action,
            needed=State.AVAILABLE,
        )
    return record


def being_made(source: ColumnElement[bool]) -> Any:
    """Whether there are volumes still being made from `source` (a condition)."""
    return exists().where(source, being_filled())


def being_filled() -> ColumnElement[bool]:
    """Whether the volume of the row is still being made."""
    return Volume.status.in_((VolumeState.NEW, VolumeState.BUILDING, VolumeState.RESTORING))


def being_cloned(source: ColumnElement[bool]) -> Any:
    """As :func:`being_made`, without those that need only the internal backup of `source`."""
    return being_made(source & Volume.transfer_id.is_(None))


def being_saved(saved: ColumnElement[bool]) -> Any:
    """Whether backups of `saved` are to be made, or are being made (a condition)."""
    return exists().where(saved, Backup.status.in_((State.NEW, State.SAVING)))
