"""The one place that changes the status of a record."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from typing import Any

from sqlalchemy import CursorResult, select, update
from sqlalchemy.orm import Session

from lunr.common import errors, states, times
from lunr.db.models import Backup, BackupGroup, Export, Job, Node, Snapshot, Volume

Model = type[Volume | Snapshot | Backup | BackupGroup | Export | Node | Job]

#: The key of each model's records.
KEYS: dict[Model, Any] = {
    Volume: Volume.id,
    Snapshot: Snapshot.id,
    Backup: Backup.id,
    BackupGroup: BackupGroup.id,
    Export: Export.volume_id,
    Node: Node.id,
    Job: Job.id,
}


def try_move(
    session: Session,
    model: Model,
    id: str,
    target: StrEnum,
    only: Collection[str] | None = None,
    **values: Any,
) -> bool:
    """Move the record `id` to `target` and set `values`, if its state allows it.

    The follow-up of that move (:attr:`lunr.db.session.Database.follow_ups`) is called at once, in
    the same transaction.

    Args:
        only: the states it may come from, if fewer than
            :func:`lunr.common.states.sources` allows.
        values: further columns to set in the same UPDATE.

    Returns:
        Whether it moved; of two racing moves one returns False.
    """
    allowed = states.sources(target)
    if only is not None:
        allowed = allowed & frozenset(only)
    if "deleted_at" in model.__table__.columns and target == "DELETED":
        values["deleted_at"] = times.now()
    statement = (
        update(model)
        .where(KEYS[model] == id, model.status.in_(sorted(allowed)))
        .values(status=target.value, **values)
    )
    result = session.execute(statement, execution_options={"synchronize_session": "fetch"})
    assert isinstance(result, CursorResult)
    if not result.rowcount:
        return False
    follow_up = session.info.get("follow_ups", {}).get((model, target.value))
    if follow_up is not None:
        follow_up(session, id)
    return True


def move(
    session: Session,
    model: Model,
    id: str,
    target: StrEnum,
    action: str,
    only: Collection[str] | None = None,
    **values: Any,
) -> None:
    """Like :func:`try_move`, with an error if the record does not move.

    Args:
        action: the requested action, as a verb phrase for the message.

    Raises:
        errors.NotFound: there is no such record.
        errors.WrongState: its state does not allow the move.
    """
    if try_move(session, model, id, target, only, **values):
        return
    state = session.scalar(select(model.status).where(KEYS[model] == id))
    kind = _kind_of(model)
    if state is None:
        raise errors.NotFound(kind=kind, id=id)
    needed = states.sources(target) if only is None else states.sources(target) & frozenset(only)
    raise errors.WrongState(
        kind=kind, id=id, state=state, action=action, needed=" or ".join(sorted(needed))
    )


def wrong_state(record: Any, action: str, needed: str) -> errors.WrongState:
    """The error that `record` must be `needed` to `action` (a verb phrase)."""
    kind, state = _kind_of(type(record)), record.status
    return errors.WrongState(kind=kind, id=record.id, state=state, action=action, needed=needed)


def _kind_of(model: Model) -> str:
    return model.__tablename__.removesuffix("s").replace("_", " ")
