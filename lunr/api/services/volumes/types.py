"""Volume types."""

from __future__ import annotations

from typing import Any

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.services import views
from lunr.common import errors, ids
from lunr.db.models import Volume, VolumeType, columns

_ALL = select(*columns(VolumeType)).order_by(VolumeType.name)


class VolumeTypes:
    """What kinds of volumes there are."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def list(self) -> Any:
        """All of them, by name: they are few."""
        with self._context.db.read() as connection:
            rows = connection.execute(_ALL).all()
        return {"volume_types": [views.volume_type(row) for row in rows], "next": None}

    def get(self, name: str) -> Any:
        """The type.

        Raises:
            errors.NotFound: there is none of that name.
        """
        with self._context.db.read() as connection:
            row = connection.execute(_ALL.where(VolumeType.name == name)).one_or_none()
        if row is None:
            raise errors.NotFound(kind="volume type", id=name)
        return views.volume_type(row)

    def create(self, name: str, **limits: Any) -> Any:
        """Make a type.

        Args:
            limits: ``min_size``, ``max_size``, ``read_iops``, ``write_iops``, and ``retention``:
                the rules for the volumes that have none of their own.

        Raises:
            errors.IdInUse: there is one of that name.
            errors.InvalidField: the sizes exclude each other.
        """
        return self._context.db.write(self._create, ids.check(name, "name"), limits)

    def _create(self, session: Session, name: str, limits: dict[str, Any]) -> Any:
        if session.get(VolumeType, name) is not None:
            raise errors.IdInUse(kind="volume type", id=name, differs="it is taken")
        return self._save(session, VolumeType(name=name, **limits))

    def update(self, name: str, **limits: Any) -> Any:
        """Change some limits; volumes that are there keep their size.

        Raises:
            errors.NotFound: there is none of that name.
            errors.InvalidField: the sizes exclude each other.
        """
        return self._context.db.write(self._update, name, limits)

    def _update(self, session: Session, name: str, limits: dict[str, Any]) -> Any:
        kind = require(session, name)
        for limit, value in limits.items():
            setattr(kind, limit, value)
        return self._save(session, kind)

    def _save(self, session: Session, kind: VolumeType) -> Any:
        session.add(kind)
        session.flush()
        if kind.min_size > kind.max_size:
            raise errors.InvalidField(
                field="max_size", reason=f"it is less than min_size ({kind.min_size})"
            )
        return views.volume_type(kind)

    def delete(self, name: str) -> None:
        """Delete a type.

        Raises:
            errors.NotFound: there is none of that name.
            errors.InUse: there are volumes of it.
        """
        self._context.db.write(self._delete, name)

    def _delete(self, session: Session, name: str) -> None:
        kind = require(session, name)
        used = exists().where(Volume.volume_type_name == name, Volume.status != "DELETED")
        if session.scalar(select(used)):
            raise errors.InUse(kind="volume type", id=name, reason="there are volumes of it")
        session.delete(kind)


def require(session: Session, name: str) -> VolumeType:
    """The type of that name, locked against being changed meanwhile.

    Raises:
        errors.NotFound: there is none.
    """
    kind = session.scalar(
        select(VolumeType).where(VolumeType.name == name).with_for_update(read=True)
    )
    if kind is None:
        raise errors.NotFound(kind="volume type", id=name)
    return kind
