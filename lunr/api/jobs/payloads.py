"""What a node is told with a job, put together when it claims the job.

Not when the job is queued: by then a parent may have been deleted, a volume
extended, a collection condemned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.services.backups import dedup_candidates, gc, verification
from lunr.api.services.exports import service as exports
from lunr.api.services.volumes import lazy_restore
from lunr.common.states import Backup as BackupState
from lunr.common.states import Volume as VolumeState
from lunr.common.times import iso
from lunr.common.units import GIB
from lunr.db.models import Backup, Export, Job, Snapshot, Volume

Payload = dict[str, Any]

#: Backups that may be in the store; those that are AVAILABLE must be.
_KEPT = (BackupState.NEW, BackupState.SAVING, BackupState.DELETING, BackupState.ERROR)


def payload(session: Session, context: Context, job: Job) -> Payload:
    """The payload of a job that is being claimed (docs/api.md has them all)."""
    return _PAYLOADS[job.kind](session, context, job)


def _nothing(_session: Session, _context: Context, _job: Job) -> Payload:
    return {}


def _volume_create(session: Session, _context: Context, job: Job) -> Payload:
    return {"size_bytes": session.get_one(Volume, job.subject_id).size * GIB}


def _volume_clone(session: Session, _context: Context, job: Job) -> Payload:
    volume = session.get_one(Volume, job.subject_id)
    if volume.snapshot_id is not None:
        snapshot = session.get_one(Snapshot, volume.snapshot_id)
        source = {"kind": "snapshot", "id": snapshot.id, "volume_id": snapshot.volume_id}
    else:
        id = str(volume.source_volume_id)
        source = {"kind": "volume", "id": id, "volume_id": id}
    return {
        "size_bytes": volume.size * GIB,
        "source": source,
        "base_id": volume.base_id,
        "repository": job.account_id,
    }


def _volume_restore(session: Session, _context: Context, job: Job) -> Payload:
    volume = session.get_one(Volume, job.subject_id)
    return {
        "size_bytes": volume.size * GIB,
        "backup_id": volume.base_id,
        "repository": job.account_id,
    }


def _volume_fill(session: Session, _context: Context, job: Job) -> Payload:
    return lazy_restore.orders(session, job)


def _volume_extend(_session: Session, _context: Context, job: Job) -> Payload:
    return {"size_bytes": job.data["size"] * GIB}


def _snapshot(session: Session, _context: Context, job: Job) -> Payload:
    if job.kind == "snapshot.create":
        # An extend that was queued before may have failed or succeeded by now.
        snapshot = session.get_one(Snapshot, job.subject_id)
        snapshot.size = session.get_one(Volume, snapshot.volume_id).size
    return {"snapshot_id": job.subject_id}


def _export_create(session: Session, context: Context, job: Job) -> Payload:
    return exports.for_node(session, context.secret_box, Export.volume_id == job.subject_id)[0]


def _export_delete(session: Session, _context: Context, job: Job) -> Payload:
    return {
        "iqn": session.get_one(Export, job.subject_id).target_iqn,
        "force": job.data["force"],
    }


def _backup_save(session: Session, _context: Context, job: Job) -> Payload:
    # See collect: what is condemned is read under the same lock that a collect's end takes.
    gc.lock(session, job.account_id)
    backup = session.get_one(Backup, job.subject_id)
    saved: Volume | Snapshot
    if backup.snapshot_id is None:
        saved = session.get_one(Volume, backup.volume_id)
        backup.base_id = saved.base_id if saved.status == VolumeState.RESTORING else None
    else:
        saved = session.get_one(Snapshot, backup.snapshot_id)
        backup.base_id = saved.base_id
    backup.size = saved.size
    parent = None if backup.full else _parent(session, backup)
    backup.parent_id = None if parent is None else parent.id
    # Who asks for a full one wants the bytes stored again.
    like = [] if backup.full else dedup_candidates.of(session, backup)
    return {
        **_stored(session, _context, job),
        "snapshot_id": backup.snapshot_id,
        "base_id": backup.base_id,
        "parent_id": backup.parent_id,
        "like": like,
        "internal": backup.internal,
        "condemned": gc.condemned(session, job.account_id),
        "created_at": iso(backup.created_at),
    }


def _parent(session: Session, backup: Backup) -> Backup | None:
    """What a backup is to be built upon, locked: a delete of it sees that it is a parent now."""
    found = select(Backup).where(
        Backup.account_id == backup.account_id, Backup.status == BackupState.AVAILABLE
    )
    if backup.base_id is not None:
        # What is not there of what is saved is in that one.
        found = found.where(Backup.id == backup.base_id)
    else:
        found = found.where(
            Backup.volume_id == backup.volume_id,
            Backup.internal.is_(False),  # it may be deleted at any moment
        )
    newest = found.order_by(Backup.created_at.desc(), Backup.id.desc()).limit(1)
    return session.scalar(newest.with_for_update(key_share=True))


def _stored(_session: Session, _context: Context, job: Job) -> Payload:
    return {"backup_id": job.subject_id, "repository": job.account_id}


def _repository(session: Session, _context: Context, job: Job) -> Payload:
    def ids(*states: BackupState) -> list[str]:
        found = select(Backup.id).where(
            Backup.account_id == job.account_id, Backup.status.in_(states)
        )
        return sorted(session.scalars(found))

    required = ids(BackupState.AVAILABLE)
    return {"repository": job.account_id, "keep": ids(*_KEPT), "required": required, **job.data}


def _repository_verify(session: Session, _context: Context, job: Job) -> Payload:
    return {"repository": job.account_id, **verification.payload(session, job)}


_PAYLOADS: dict[str, Callable[[Session, Context, Job], Payload]] = {
    "volume.create": _volume_create,
    "volume.clone": _volume_clone,
    "volume.restore": _volume_restore,
    "volume.fill": _volume_fill,
    "volume.extend": _volume_extend,
    "volume.delete": _nothing,
    "snapshot.create": _snapshot,
    "snapshot.delete": _snapshot,
    "export.create": _export_create,
    "export.delete": _export_delete,
    "backup.save": _backup_save,
    "backup.delete": _stored,
    "backup.verify": _stored,
    "repository.collect": _repository,
    "repository.sweep": _repository,
    "repository.verify": _repository_verify,
}
