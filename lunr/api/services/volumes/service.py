"""Volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, bindparam, exists, select
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.jobs import queue
from lunr.api.jobs.job_type import JobType
from lunr.api.services import dependencies, views
from lunr.api.services.accounts import service as accounts
from lunr.api.services.backups.damage import BackupDamaged
from lunr.api.services.pagination import Listing, Query
from lunr.api.services.volumes import cross_node_copy, lazy_restore, placement, types
from lunr.api.services.volumes.job_types import (
    CloneVolume,
    CreateVolume,
    DeleteVolume,
    ExtendVolume,
    RestoreVolume,
)
from lunr.common import errors, ids
from lunr.common.states import Export as ExportState
from lunr.common.states import Volume as State
from lunr.db.models import Backup, Export, Node, Snapshot, Volume, VolumeKind, VolumeType, columns
from lunr.db.transitions import move, wrong_state

_ROWS = select(*columns(Volume), Export.status.label("export_status")).outerjoin_from(
    Volume, Export, and_(Export.volume_id == Volume.id, Export.status != "DELETED")
)
_ONE = _ROWS.where(Volume.id == bindparam("id"), Volume.account_id == bindparam("account"))


def _view(row: Any) -> views.View:
    return views.volume(row, row.export_status)


LISTING = Listing("volumes", Volume, _ROWS, _view, (Volume.created_at, Volume.id), Volume.id)


@dataclass(frozen=True)
class _Source:
    """What a volume is made from.

    Attributes:
        size: GiB that the volume must have at least.
        job_type: of the job that makes the volume.
        volume: whose bytes, or whose snapshot's, they are; None: not a volume's on a node.
        snapshot_id: the snapshot.
        base_id: the backup that has what is not there of it, or all of it.
    """

    size: int
    job_type: type[JobType]
    volume: Volume | None = None
    snapshot_id: str | None = None
    base_id: str | None = None


class Volumes:
    """What callers can do with volumes."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def list(self, query: Query) -> Any:
        """A page of volumes."""
        with self._context.db.read() as connection:
            return LISTING.page(connection, query, self._context.settings.page_limit)

    def get(self, account_id: str, id: str) -> Any:
        """The volume.

        Raises:
            errors.NotFound: the account has none of that id.
        """
        with self._context.db.read() as connection:
            return fetch(connection, account_id, id)

    def create(
        self, account_id: str, request: dict[str, Any], id: str | None = None
    ) -> tuple[Any, bool]:
        """Make a volume; the second of the answer is False if the same request made it before.

        Args:
            request: as in docs/api.md, checked for its types; what is missing has its default.
            id: the caller's id; the same request may then come again.

        Raises:
            errors.InvalidField: the parameters exclude each other, or the type excludes the size.
            errors.NotFound: account, type, source or a volume of the affinity are not there.
            errors.IdInUse: there is another volume of that id.
            errors.WrongState: the source is not ready.
            errors.QuotaExceeded, errors.NoRoom: there is no room for it.
        """
        if id is not None:
            ids.check(id)
        return self._context.db.write(self._create, account_id, request, id)

    def _create(
        self, session: Session, account_id: str, request: dict[str, Any], id: str | None
    ) -> tuple[Any, bool]:
        account = accounts.lock(session, account_id)
        if id is not None and (known := session.get(Volume, id)) is not None:
            same_request("volume", known, account_id, request)
            return fetch(session, account_id, id), False
        source = _source(session, account_id, request)
        size = request.get("size") or source.size
        type_name = request.get("volume_type_name", "default")
        volume_type = _check_size(session, size, type_name, source)
        accounts.check_volume_quota(session, self._context, account, 1, size)
        avoid, avoid_groups = _affinity(session, account_id, request.get("affinity"))
        requested = placement.PlacementRequest(
            size,
            type_name,
            limits_io=bool(volume_type.read_iops or volume_type.write_iops),
            node_id=request.get("force_node"),
            source=None if source.volume is None else source.volume.node_id,
            away_from=avoid,
            away_from_groups=avoid_groups,
        )
        node_id = placement.place(session, self._context, requested)
        is_copied = source.volume is not None and source.volume.node_id != node_id
        job_type, base_id, copy = source.job_type, source.base_id, None
        if source.volume is not None and is_copied:
            copy = cross_node_copy.save_to_copy(
                session, self._context, source.volume, source.snapshot_id
            )
            job_type, base_id = RestoreVolume, copy.id
        volume = Volume(
            id=id or ids.new(),
            account_id=account_id,
            name=request.get("name", ""),
            size=size,
            reserved=size,
            volume_type_name=type_name,
            node_id=node_id,
            meta=request.get("metadata", {}),
            request=request,
            backup_id=request.get("backup"),
            snapshot_id=request.get("snapshot"),
            source_volume_id=request.get("source_volume"),
            transfer_id=None if copy is None else copy.id,
            base_id=base_id,
            **lazy_restore.fill_settings(request, base_id is not None),
        )
        session.add(volume)
        self._queue(session, job_type, volume, after=[] if copy is None else [str(copy.job_id)])
        return views.volume(volume, None), True

    def update(self, account_id: str, id: str, changes: dict[str, Any]) -> Any:
        """Change ``name``, ``metadata`` (replaced as a whole), ``fill`` or ``fill_limit``.

        Raises:
            errors.NotFound: the account has no such volume, or it is deleted.
            errors.WrongState: it is not being restored, and so not filled.
        """
        return self._context.db.write(self._update, account_id, id, changes)

    def _update(self, session: Session, account_id: str, id: str, changes: dict[str, Any]) -> Any:
        volume = lock(session, account_id, id)
        volume.name = changes.get("name", volume.name)
        volume.meta = changes.get("metadata", volume.meta)
        if changes.keys() & {"fill", "fill_limit"}:
            lazy_restore.change_fill(session, self._context, volume, changes)
        session.flush()
        return fetch(session, account_id, id)

    def extend(self, account_id: str, id: str, size: int) -> Any:
        """Make a volume larger: `size` GiB.

        Raises:
            errors.NotFound: the account has no such volume.
            errors.InvalidField: it is not larger then, or too large for its type.
            errors.WrongState: it is not ACTIVE.
            errors.InUse: a job is at work on it, or on its export.
            errors.QuotaExceeded, errors.NoRoom: there is no room for it.
        """
        return self._context.db.write(self._extend, account_id, id, size)

    def _extend(self, session: Session, account_id: str, id: str, size: int) -> Any:
        account = accounts.lock(session, account_id)
        volume = lock(session, account_id, id)
        require_idle(volume, "extend it")
        _refuse_if(
            session,
            id,
            "it is being attached or detached",
            exists().where(
                Export.volume_id == id,
                Export.status.in_((ExportState.ATTACHING, ExportState.DETACHING)),
            ),
        )
        if size <= volume.size:
            raise errors.InvalidField(field="size", reason=f"the volume has {volume.size} GiB now")
        _check_size(session, size, str(volume.volume_type_name), None)
        accounts.check_volume_quota(session, self._context, account, 0, size - volume.size)
        if not placement.reserve(session, str(volume.node_id), size - volume.size):
            raise errors.NoRoom(reason=f"its node has no {size - volume.size} GiB left")
        volume.reserved = size
        volume.reason = None
        self._queue(session, ExtendVolume, volume, {"size": size})
        return fetch(session, account_id, id)

    def delete(self, account_id: str, id: str) -> Any:
        """Delete a volume; one that is being deleted is answered as it is.

        Raises:
            errors.NotFound: the account has no such volume, or it is deleted.
            errors.InUse: it is exported, has snapshots, or is being built, filled,
                backed up or cloned.
        """
        return self._context.db.write(self._delete, account_id, id)

    def _delete(self, session: Session, account_id: str, id: str) -> Any:
        volume = lock(session, account_id, id)
        if volume.status == State.DELETING:
            return fetch(session, account_id, id)
        if volume.kind == VolumeKind.EXTERNAL:
            return self._forget(session, volume)
        if volume.status in (State.BUILDING, State.RESTORING) and not is_restored_lazily(volume):
            raise errors.InUse(
                kind="volume", id=id, reason=f"the job {volume.job_id} fills it; cancel that first"
            )
        if volume.status in (State.ACTIVE, State.RESTORING):
            require_usable(volume, "delete it")
        _refuse_if(session, id, "it is exported", _exported(id))
        _refuse_if(
            session,
            id,
            "it has snapshots",
            exists().where(Snapshot.volume_id == id, Snapshot.status != "DELETED"),
        )
        _refuse_if(
            session,
            id,
            "a backup of it is running",
            dependencies.is_being_saved(Backup.volume_id == id),
        )
        _refuse_if(
            session,
            id,
            "it is being cloned",
            dependencies.is_being_cloned(Volume.source_volume_id == id),
        )
        if volume.status == State.NEW and volume.job_id is not None:
            queue.cancel_queued(session, volume.job_id)
        after = lazy_restore.stop_fill(session, volume)
        move(
            session,
            Volume,
            id,
            State.DELETING,
            "delete it",
            reason=None,
            progress=0,
            fill=None,
            fill_job_id=None,
        )
        self._queue(session, DeleteVolume, volume, after=after)
        return fetch(session, account_id, id)

    def _forget(self, session: Session, volume: Volume) -> Any:
        """Drop the record of an external volume; its backups stay."""
        _refuse_if(
            session,
            volume.id,
            "a backup of it is running",
            dependencies.is_being_saved(Backup.volume_id == volume.id),
        )
        session.delete(volume)
        return {**views.volume(volume, None), "status": State.DELETED}

    def _queue(
        self,
        session: Session,
        job_type: type[JobType],
        volume: Volume,
        data: dict[str, Any] | None = None,
        after: Sequence[str] = (),
    ) -> None:
        job = queue.enqueue(
            session,
            self._context,
            job_type,
            account_id=volume.account_id,
            subject_id=volume.id,
            volume_id=volume.id,
            node_id=volume.node_id,
            data=data,
            after=after,
        )
        volume.job_id = job.id
        session.flush()


def fetch(reader: Session | Connection, account_id: str, id: str) -> Any:
    """The volume as the API shows it.

    Raises:
        errors.NotFound: the account has none of that id.
    """
    row = reader.execute(_ONE, {"id": id, "account": account_id}).one_or_none()
    if row is None:
        raise errors.NotFound(kind="volume", id=id)
    return _view(row)


def lock(session: Session, account_id: str, id: str) -> Volume:
    """The volume, locked until the end of the transaction.

    Raises:
        errors.NotFound: the account has none of that id, or it is deleted.
    """
    volume = session.scalar(
        select(Volume)
        .where(Volume.id == id, Volume.account_id == account_id, Volume.status != "DELETED")
        .with_for_update(key_share=True)
    )
    if volume is None:
        raise errors.NotFound(kind="volume", id=id)
    return volume


def require_idle(volume: Volume, action: str) -> None:
    """Make sure that the volume is ACTIVE and no job is at work on it.

    Raises:
        errors.WrongState, errors.InUse: it is not, or one is.
    """
    if is_restored_lazily(volume):
        raise lazy_restore.StillRestoring(id=volume.id, progress=volume.progress, action=action)
    require_usable(volume, action)


def is_restored_lazily(volume: Volume) -> bool:
    """Whether it is being restored, and can be used."""
    return volume.status == State.RESTORING and volume.usable


def base_of(volume: Volume) -> str | None:
    """The backup that has what the volume lacks; None: it lacks nothing."""
    return volume.base_id if volume.status == State.RESTORING else None


def require_usable(volume: Volume, action: str) -> None:
    """As `require_idle`, but a volume that is still being filled will do.

    Raises:
        errors.WrongState, errors.InUse: it can't be used, or a job is at work on it.
    """
    if volume.status != State.ACTIVE and not is_restored_lazily(volume):
        raise wrong_state(volume, action, State.ACTIVE)
    if volume.job_id is not None:
        raise errors.InUse(
            kind="volume", id=volume.id, reason=f"the job {volume.job_id} is at work on it"
        )


def same_request(kind: str, known: Any, account_id: str, request: dict[str, Any]) -> None:
    """Make sure that a PUT of an id that is taken is the PUT that made the record.

    Raises:
        errors.IdInUse: it is not. What another account's record is like is not told.
    """
    if known.account_id != account_id:
        raise errors.IdInUse(kind=kind, id=known.id, differs="choose another id")
    if known.status == "DELETED":
        raise errors.IdInUse(kind=kind, id=known.id, differs="it is deleted")
    names = request.keys() | known.request.keys()
    differs = sorted(name for name in names if request.get(name) != known.request.get(name))
    if differs:
        raise errors.IdInUse(kind=kind, id=known.id, differs=", ".join(differs))


def _exported(id: str) -> Any:
    return exists().where(Export.volume_id == id, Export.status != "DELETED")


def _refuse_if(session: Session, id: str, reason: str, condition: Any) -> None:
    if session.scalar(select(condition)):
        raise errors.InUse(kind="volume", id=id, reason=reason)


def _source(session: Session, account_id: str, request: dict[str, Any]) -> _Source:
    given = [name for name in ("backup", "snapshot", "source_volume") if request.get(name)]
    if len(given) > 1:
        raise errors.InvalidField(
            field=given[1], reason=f"a volume is made from one thing, and {given[0]} is given too"
        )
    if not given:
        if request.get("size") is None:
            raise errors.InvalidField(field="size", reason="it is needed")
        return _Source(0, CreateVolume)
    id = request[given[0]]
    if given[0] == "source_volume":
        volume = lock(session, account_id, id)
        require_usable(volume, "clone it")
        return _Source(volume.size, CloneVolume, volume, base_id=base_of(volume))
    if given[0] == "snapshot":
        snapshot = dependencies.lock_source(
            session, account_id, Snapshot, id, "make a volume from it"
        )
        volume = session.get_one(Volume, snapshot.volume_id)
        return _Source(snapshot.size, CloneVolume, volume, snapshot.id, snapshot.base_id)
    backup = dependencies.lock_source(session, account_id, Backup, id, "make a volume from it")
    if backup.damaged is not None:
        raise BackupDamaged(id=id, reason=backup.damaged)
    return _Source(backup.size, RestoreVolume, base_id=id)


def _check_size(session: Session, size: int, type_name: str, source: _Source | None) -> VolumeType:
    kind = types.require(session, type_name)
    if source is not None and size < source.size:
        raise errors.InvalidField(
            field="size", reason=f"what it is made from has {source.size} GiB"
        )
    if not kind.min_size <= size <= kind.max_size:
        raise errors.InvalidField(
            field="size",
            reason=f"volumes of the type {type_name} have {kind.min_size} to {kind.max_size} GiB",
        )
    return kind


def _affinity(session: Session, account_id: str, affinity: str | None) -> tuple[set[str], set[str]]:
    """The nodes and the groups to stay away from."""
    if not affinity:
        return set(), set()
    word, _, names = affinity.partition(":")
    if word not in ("different_node", "different_group"):
        raise errors.InvalidField(
            field="affinity", reason="it is different_node:ID[,ID] or different_group:ID[,ID]"
        )
    wanted = {ids.check(name, "affinity") for name in names.split(",")}
    found = {
        row.id: row.node_id
        for row in session.execute(
            select(Volume.id, Volume.node_id).where(
                Volume.id.in_(wanted), Volume.account_id == account_id
            )
        )
    }
    if missing := wanted - found.keys():
        raise errors.NotFound(kind="volume", id=sorted(missing)[0])
    nodes = set(found.values())
    if word == "different_node":
        return nodes, set()
    groups = session.scalars(select(Node.group).where(Node.id.in_(nodes), Node.group != ""))
    # A node without a group is a group of its own.
    return nodes, set(groups)
