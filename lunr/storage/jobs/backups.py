"""Jobs on backups."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from lunr.common import errors
from lunr.storage.job import Job, Stop
from lunr.storage.jobs.extents import coalesce
from lunr.storage.jobs.node import Node
from lunr.storage.pools.base import Extent, Pool, Purpose, Snapshot, SnapshotLost

_log = logging.getLogger(__name__)


def save(node: Node, job: Job) -> dict[str, Any]:
    """The bytes of a user's snapshot, or of the volume at one moment, in the store.

    The moment is that of the first attempt: the snapshot of one that was
    killed is used again.
    """
    pool = node.pool
    backup_id, repository = job.id_of("backup_id"), job.id_of("repository")
    parent_id = None if job.payload.get("parent_id") is None else job.id_of("parent_id")
    with _snapshot(pool, job) as snapshot, _intact(pool, snapshot):
        size = pool.size(snapshot)
        return node.engine.run(
            job,
            "save",
            repository=repository,
            source=str(pool.path(snapshot)),
            size_bytes=size,
            allocated=_allocated(pool, job, snapshot, size),
            backup_id=backup_id,
            volume_id=snapshot.volume_id,
            parent_id=parent_id,
            condemned=job.payload.get("condemned", []),
            created_at=job.payload.get("created_at"),
        )


@contextlib.contextmanager
def _snapshot(pool: Pool, job: Job) -> Iterator[Snapshot]:
    """What is to be saved; if it is taken here, it is gone after."""
    if job.payload.get("snapshot_id") is not None:
        yield Snapshot(job.volume_id, job.id_of("snapshot_id"))
        return
    snapshot = Snapshot(job.volume_id, job.id_of("backup_id"), Purpose.BACKUP)
    try:
        pool.snapshot(snapshot)
        yield snapshot
    except BaseException:
        # If the job was lost, another attempt may read the snapshot already.
        if job.stop_reason is not Stop.LOST:
            try:
                pool.delete_snapshot(snapshot)
            except errors.LunrError as error:  # what went wrong before it matters more
                _log.error("snapshot %s stays until the next start: %s", snapshot.id, error)
        raise
    pool.delete_snapshot(snapshot)


@contextlib.contextmanager
def _intact(pool: Pool, snapshot: Snapshot) -> Iterator[None]:
    """Let nothing pass that was read of a lost snapshot, and name it as the reason of failures.

    Raises:
        SnapshotLost
    """
    try:
        yield
    except errors.Cancelled:
        raise
    except errors.LunrError:
        try:
            pool.check_snapshot(snapshot)
        except SnapshotLost:
            raise
        except errors.LunrError as error:
            _log.warning("snapshot %s can't be checked: %s", snapshot.id, error)
        raise
    pool.check_snapshot(snapshot)


def _allocated(pool: Pool, job: Job, snapshot: Snapshot, size: int) -> list[Extent] | None:
    """What of `snapshot` is to be read; None: all of it."""

    def heeding_stops(extents: Iterator[Extent]) -> Iterator[Extent]:
        for extent in extents:
            job.tick(0, 0)
            yield extent

    try:
        extents = pool.allocated(snapshot)
        return None if extents is None else coalesce(heeding_stops(extents), size)
    except errors.Cancelled:
        raise
    except errors.LunrError as error:
        _log.warning("all of snapshot %s will be read: %s", snapshot.id, error)
        return None


def verify(node: Node, job: Job) -> dict[str, Any]:
    """Every byte of the backup, read and checked."""
    return node.engine.run(
        job, "verify", repository=job.id_of("repository"), backup_ids=[job.id_of("backup_id")]
    )


def delete(node: Node, job: Job) -> dict[str, Any]:
    """No backup; what only it needed is left for the collector."""
    return node.engine.run(
        job, "delete", repository=job.id_of("repository"), backup_id=job.id_of("backup_id")
    )
