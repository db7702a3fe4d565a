"""Which other backups of an account likely have what a new one is to store.

Only their chunk objects are of use, so they need not be kept from being deleted: whatever
happens to them, a save refers to nothing that is collected (docs/format.md).
"""

from __future__ import annotations

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from lunr.common.states import Backup as State
from lunr.db.models import Backup, Snapshot, Volume

#: How many a save is told: it reads no more than so many roots.
MOST = 32
#: How many of the account's newest backups are looked through for those of other volumes.
_LOOKED_THROUGH = 1000


def find_candidates(session: Session, backup: Backup) -> list[str]:
    """The ids of backups like `backup`, at most `MOST`.

    First that which its volume was restored from and the newest of the volumes it was copied
    from, then the newest of every other volume of the account, the newest first.
    """
    backups, volumes = _origins(session, backup)
    usable = _usable(backup)
    chosen = list(session.scalars(usable.where(Backup.id.in_(backups)))) if backups else []
    found = [usable.where(Backup.volume_id == id).limit(1) for id in volumes]
    found.append(usable.limit(_LOOKED_THROUGH))
    seen = {backup.volume_id}
    for id, volume_id in (row for one in found for row in session.execute(one)):
        if volume_id not in seen:
            seen.add(volume_id)
            chosen.append(id)
    return [id for id in dict.fromkeys(chosen) if id != backup.parent_id][:MOST]


def _usable(backup: Backup) -> Select[str, str]:
    """Id and volume of the account's backups that may be built upon, the newest first."""
    return (
        select(Backup.id, Backup.volume_id)
        .where(
            Backup.account_id == backup.account_id,
            Backup.status == State.AVAILABLE,
            Backup.damaged.is_(None),
            Backup.internal.is_(False),
        )
        .order_by(Backup.created_at.desc(), Backup.id.desc())
    )


def _origins(session: Session, backup: Backup) -> tuple[set[str], set[str]]:
    """The backups and the volumes that the volume of `backup` was made from."""
    made = session.execute(
        select(Volume.backup_id, Volume.base_id, Volume.source_volume_id, Snapshot.volume_id)
        .outerjoin(Snapshot, Snapshot.id == Volume.snapshot_id)
        .where(Volume.id == backup.volume_id)
    ).one_or_none()
    if made is None:  # its volume is gone, a snapshot is saved
        return set(), set()
    return {id for id in made[:2] if id is not None}, {id for id in made[2:] if id is not None}
