"""Copies of volumes and snapshots to other nodes, by way of the store.

A clone that can't be on its source's node is restored, on the node where it can
be, from a backup of the source that lunr makes for this alone (a hidden one).
So only what is not in the store yet travels, and it arrives deduplicated,
encrypted and checked from end to end.

The restore's job waits for the save's (JobAfter) and fails when that one fails. The hidden
backup is deleted when nothing needs it any more (:mod:`lunr.api.services.dependencies`).
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.jobs import queue
from lunr.api.services.backups.job_types import SaveBackup
from lunr.common import ids
from lunr.db.models import Backup, Volume


def save_to_copy(
    session: Session, context: Context, volume: Volume, snapshot_id: str | None
) -> Backup:
    """Have `volume`, or a snapshot of it, saved to be copied; the job is the backup's.

    What is saved is locked: it is not deleted while its backup is not saved.
    """
    backup = Backup(
        id=ids.new(),
        account_id=volume.account_id,
        volume_id=volume.id,
        snapshot_id=snapshot_id,
        internal=True,
        size=volume.size,
    )
    job = queue.enqueue(
        session,
        context,
        SaveBackup,
        account_id=backup.account_id,
        subject_id=backup.id,
        volume_id=backup.volume_id,
        node_id=volume.node_id,
    )
    backup.job_id = job.id
    session.add(backup)
    return backup
