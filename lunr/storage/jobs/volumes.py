"""Jobs on volumes."""

from __future__ import annotations

from typing import Any

from lunr.common import errors, ids
from lunr.storage.job import Job, Stop
from lunr.storage.jobs.node import Node
from lunr.storage.pools.base import Snapshot


def create(node: Node, job: Job) -> None:
    """An empty volume."""
    node.pool.create(job.volume_id, job.size())


def clone(node: Node, job: Job) -> None:
    """A volume with the bytes of a snapshot or of another volume."""
    source = job.payload.get("source") or {}
    source_id = ids.check(source.get("id"), "payload.source.id")
    origin: str | Snapshot
    match source.get("kind"):
        case "volume":
            origin = source_id
        case "snapshot":
            volume_id = ids.check(source.get("volume_id"), "payload.source.volume_id")
            origin = Snapshot(volume_id, source_id)
        case _:
            raise errors.InvalidField(field="payload.source.kind", reason="snapshot or volume")
    node.pool.clone(job.volume_id, origin, job.size(), job.tick)


def restore(node: Node, job: Job) -> dict[str, Any]:
    """A volume with the bytes of a backup; none at all if it can't be had whole."""
    volume_id, size = job.volume_id, job.size()
    backup_id, repository = job.id_of("backup_id"), job.id_of("repository")
    # An attempt that was killed left some bytes; the engine writes only what is not zero.
    node.pool.delete(volume_id, job.heed)
    node.pool.create(volume_id, size)
    try:
        return node.engine.run(
            job,
            "restore",
            repository=repository,
            backup_id=backup_id,
            target=str(node.pool.path(volume_id)),
            size_bytes=size,
            target_is_zero=True,
        )
    except BaseException:
        # If the job was lost, another attempt may be at it already.
        if job.stop_reason is not Stop.LOST:
            # A slow pool, told at once that it is cancelled, wipes on in the background.
            node.pool.delete(volume_id, job.heed)
        raise


def extend(node: Node, job: Job) -> None:
    """A larger volume; initiators that use it see it so, too."""
    node.pool.extend(job.volume_id, job.size())
    node.exports.resize(job.volume_id)


def delete(node: Node, job: Job) -> None:
    """No volume, and no export of it.

    The API refuses to delete a volume that is exported; should an initiator be
    logged in all the same, nothing is done to it.
    """
    node.exports.detach(job.volume_id)
    node.pool.delete(job.volume_id, job.tick)
