"""What volumes and backups are made from: taken, and kept while something still needs it."""

from __future__ import annotations

from typing import Any, TypeVar

from sqlalchemy import ColumnElement, ScalarSelect, exists, select
from sqlalchemy.orm import Session, aliased

from lunr.common import errors
from lunr.common.states import Backup as State
from lunr.common.states import Snapshot as SnapshotState
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


def being_cloned(source: ColumnElement[bool]) -> Any:
    """Whether volumes are still to be made from `source` on its node (a condition)."""
    unmade = Volume.status.in_((VolumeState.NEW, VolumeState.BUILDING))
    return exists().where(source, unmade, Volume.transfer_id.is_(None))


def lacking(backup: Any) -> tuple[ScalarSelect[Any], ...]:
    """The id of a volume, of a snapshot and of a running backup that have not all of `backup` yet.

    One of these may be made from another that is gone then: to see all that there are, ask for
    them by one statement.
    """
    users: tuple[tuple[Any, tuple[str, ...]], ...] = (
        (Volume, (VolumeState.NEW, VolumeState.BUILDING, VolumeState.RESTORING)),
        (Snapshot, (SnapshotState.NEW, SnapshotState.SAVING, SnapshotState.AVAILABLE)),
        (aliased(Backup), (State.SAVING,)),
    )
    return tuple(
        select(user.id)
        .where(user.base_id == backup, user.status.in_(states))
        .limit(1)
        .scalar_subquery()
        for user, states in users
    )


def being_saved(saved: ColumnElement[bool]) -> Any:
    """Whether backups of `saved` are to be made, or are being made (a condition)."""
    return exists().where(saved, Backup.status.in_((State.NEW, State.SAVING)))
