"""Jobs on backups."""

from __future__ import annotations

from typing import Any

from lunr.storage.job import Job, Stop
from lunr.storage.jobs.node import Node
from lunr.storage.pools.base import Purpose, Snapshot


def save(node: Node, job: Job) -> dict[str, Any]:
    """The volume's bytes of one moment, in the store.

    The moment is that of the first attempt: the snapshot of one that was
    killed is used again.
    """
    snapshot = Snapshot(job.volume_id, job.id_of("backup_id"), Purpose.BACKUP)
    repository = job.id_of("repository")
    parent_id = None if job.payload.get("parent_id") is None else job.id_of("parent_id")
    try:
        node.pool.snapshot(snapshot)
        return node.engine.run(
            job,
            "save",
            repository=repository,
            source=str(node.pool.path(snapshot)),
            size_bytes=node.pool.size(snapshot),
            backup_id=snapshot.id,
            volume_id=snapshot.volume_id,
            parent_id=parent_id,
            condemned=job.payload.get("condemned", []),
            created_at=job.payload.get("created_at"),
        )
    finally:
        # If the job was lost, another attempt may read the snapshot already.
        if job.stop_reason is not Stop.LOST:
            node.pool.delete_snapshot(snapshot)


def verify(node: Node, job: Job) -> dict[str, Any]:
    """Every byte of the backup, read and checked."""
    return _on_backup(node, job, "verify")


def delete(node: Node, job: Job) -> dict[str, Any]:
    """No backup; what only it needed is left for the collector."""
    return _on_backup(node, job, "delete")


def _on_backup(node: Node, job: Job, task: str) -> dict[str, Any]:
    return node.engine.run(
        job, task, repository=job.id_of("repository"), backup_id=job.id_of("backup_id")
    )
