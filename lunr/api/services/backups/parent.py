"""Which backup a new one is compared with."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from lunr.common.states import Backup as State
from lunr.db.models import Backup


def choose_parent(session: Session, backup: Backup, base_id: str | None) -> str | None:
    """The id of the backup that `backup` is compared with, or None: everything is read and stored.

    It is the newest AVAILABLE backup of the volume; where the volume or snapshot lacks blocks,
    the backup `base_id` that has them. The row is locked, so that a delete of it sees that it is
    a parent now. The engine checks it once more, and does without one that it can't read
    (lunr/backup/save/parent.py).
    """
    query = select(Backup.id).where(
        Backup.account_id == backup.account_id, Backup.status == State.AVAILABLE
    )
    if base_id is not None:
        # What is not there of what is saved is in that one.
        query = query.where(Backup.id == base_id)
    else:
        query = query.where(
            Backup.volume_id == backup.volume_id,
            Backup.internal.is_(False),  # it may be deleted at any moment
        )
    newest = query.order_by(Backup.created_at.desc(), Backup.id.desc()).limit(1)
    return session.scalar(newest.with_for_update(key_share=True))
