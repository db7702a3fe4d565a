"""What still needs a source or a backup, and the end of hidden backups that nothing needs.

A hidden backup is made for one cross-node copy. It is needed until no volume and no snapshot
lacks anything of it, and no save that builds on it is running. Needs end in two ways, and each is
followed here:

- a record moves to a state in which it needs nothing (:func:`follow_moves`), whoever moves it;
- a record is written down to need other backups (:func:`change_needs`).

Then :func:`release_if_unneeded` decides, and has the backup deleted. Should that delete fail, the
housekeeper has it tried again.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import ColumnElement, ScalarSelect, exists, or_, select
from sqlalchemy.orm import Session, aliased

from lunr.api.context import Context
from lunr.api.jobs import queue
from lunr.common import errors
from lunr.common.states import Backup as State
from lunr.common.states import Job as JobState
from lunr.common.states import Snapshot as SnapshotState
from lunr.common.states import Volume as VolumeState
from lunr.db.models import Backup, Job, Snapshot, Volume
from lunr.db.transitions import move, wrong_state

Source = TypeVar("Source", Snapshot, Backup)

_GONE = (State.DELETING, State.DELETED)


def lock_source(
    session: Session, account_id: str, model: type[Source], id: str, action: str
) -> Source:
    """The AVAILABLE snapshot or backup, locked: nobody deletes it before something needs it.

    Raises:
        errors.NotFound: the account has none of that id.
        errors.WrongState: it is not AVAILABLE.
    """
    query = select(model).where(
        model.id == id, model.account_id == account_id, model.status != "DELETED"
    )
    if model is Backup:
        query = query.where(Backup.internal.is_(False))
    record = session.scalar(query.with_for_update(key_share=True))
    if record is None:
        raise errors.NotFound(kind=model.__name__.lower(), id=id)
    if record.status != State.AVAILABLE:
        raise wrong_state(record, action, State.AVAILABLE)
    return record


def is_being_cloned(source: ColumnElement[bool]) -> Any:
    """Whether volumes are still to be made from `source` on its node (a condition)."""
    unmade = Volume.status.in_((VolumeState.NEW, VolumeState.BUILDING))
    return exists().where(source, unmade, Volume.transfer_id.is_(None))


def is_being_saved(source: ColumnElement[bool]) -> Any:
    """Whether backups of `source` are to be made, or are being made (a condition)."""
    return exists().where(source, Backup.status.in_((State.NEW, State.SAVING)))


class Dependents(NamedTuple):
    """What needs a backup: the id of one of each kind, None where there is none.

    Attributes:
        volume: lacks some of it yet.
        snapshot: lacks some of it, as its volume did.
        save: the backup that is being saved of something that lacks some of it.
        child: the backup that is being saved with it as its parent.
    """

    volume: str | None
    snapshot: str | None
    save: str | None
    child: str | None


#: What may need backups: the columns that name them, and the states in which it does.
_NEEDS: tuple[tuple[Any, tuple[str, ...], tuple[StrEnum, ...]], ...] = (
    (Volume, ("base_id",), (VolumeState.NEW, VolumeState.BUILDING, VolumeState.RESTORING)),
    (
        Snapshot,
        ("base_id",),
        (SnapshotState.NEW, SnapshotState.SAVING, SnapshotState.AVAILABLE),
    ),
    (Backup, ("base_id", "parent_id"), (State.SAVING,)),
)


def _dependents(backup: Any) -> list[ScalarSelect[Any]]:
    """The ids of the :class:`Dependents` of `backup`.

    One of these may be made from another that is gone then: to see all that there are, ask for
    them by one statement.
    """
    selected = []
    for model, names, states in _NEEDS:
        for name in names:
            user = aliased(model)
            query = select(user.id).where(getattr(user, name) == backup, user.status.in_(states))
            selected.append(query.limit(1).scalar_subquery())
    return selected


_IS_NEEDED = or_(*(dependent.is_not(None) for dependent in _dependents(Backup.id)))


def find_dependents(session: Session, backup_id: str) -> Dependents:
    """What needs the backup."""
    return Dependents(*session.execute(select(*_dependents(backup_id))).one())


def follow_moves(context: Context) -> None:
    """From now on, follow the moves of records to states in which they need no backup."""
    for model, names, states in _NEEDS:
        for state in type(states[0]):
            if state not in states:
                follow_up = partial(_release_needs, context, model, names)
                context.db.follow_ups[model, state.value] = follow_up


def _release_needs(
    context: Context, model: Any, names: tuple[str, ...], session: Session, id: str
) -> None:
    """The record needs no backup any more."""
    columns = [getattr(model, name) for name in names]
    _release(session, context, {*session.execute(select(*columns).where(model.id == id)).one()})


def change_needs(
    session: Session, context: Context, record: Snapshot | Backup, **needs: str | None
) -> None:
    """Write down which backups the `record` needs from now on: ``base_id``, ``parent_id``.

    Nothing else changes these columns of a record that needs something.
    """
    formerly = {getattr(record, name) for name in needs}
    for name, backup_id in needs.items():
        setattr(record, name, backup_id)
    session.flush()
    _release(session, context, formerly - {*needs.values()})


def _release(session: Session, context: Context, backup_ids: set[str | None]) -> None:
    for id in sorted(id for id in backup_ids if id is not None):
        release_if_unneeded(session, context, id)


def release_if_unneeded(session: Session, context: Context, backup_id: str) -> None:
    """Delete the backup if it is a hidden one that nothing needs; stop its save first.

    Its row is the lock: of a save and a restore that end at once, the later sees the other's end.
    """
    backup = session.scalar(
        select(Backup)
        .where(Backup.id == backup_id, Backup.internal, Backup.status.not_in(_GONE))
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
    if backup is None or session.scalar(select(_IS_NEEDED).where(Backup.id == backup_id)):
        return
    save = session.scalar(
        select(Job)
        .where(Job.id == backup.job_id, Job.status.in_(queue.LIVE))
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    if save is not None and save.status == JobState.RUNNING:
        save.cancel = True  # when it is over, its type comes here again
        return
    if save is not None:
        queue.cancel_queued(session, save.id)
    node_id = session.scalar(select(Volume.node_id).where(Volume.id == backup.volume_id))
    job = queue.enqueue(
        session,
        context,
        context.job_types.that_deletes(Backup),
        account_id=backup.account_id,
        subject_id=backup.id,
        volume_id=backup.volume_id,
        node_id=node_id,
    )
    move(session, Backup, backup_id, State.DELETING, "delete it", job_id=job.id)


def release_unneeded(session: Session, context: Context, before: datetime) -> list[str]:
    """Delete again the hidden backups that nothing needs, unchanged since `before`; their ids."""
    query = select(Backup.id).where(
        Backup.internal, Backup.status.not_in(_GONE), Backup.updated_at < before, ~_IS_NEEDED
    )
    unneeded = list(session.scalars(query.order_by(Backup.id)))
    for id in unneeded:
        release_if_unneeded(session, context, id)
    return unneeded
