"""Jobs on backups."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from lunr.backup.lazy_image.missing_extents import MissingExtents
from lunr.common import errors, ids, units
from lunr.common.extents import Extent, complement, cover
from lunr.storage.agent.job import ClaimedJob, Stop
from lunr.storage.jobs.consistent_snapshot import take
from lunr.storage.jobs.node_context import NodeContext
from lunr.storage.pools.base import Pool, Purpose, Snapshot, SnapshotLost

_log = logging.getLogger(__name__)

#: What the engine reads at once where it knows of no parent: to tell it more exactly of zeros
#: would save it nothing.
CHUNK = 4 * units.MIB
#: What it reads at least, where it knows what has changed since its parent.
BLOCK = 32 * units.KIB
#: At most so many extents, of either kind. Of zeros: a MiB of JSON or two, and a moment's work.
#: Of changes: 1 % of a TiB's blocks, anywhere in it, are 335 000. To tell them takes 10 MB of
#: JSON and 0.6 s in all, and to read twice as much in their place takes longer.
MOST_ALLOCATED = 1 << 16
MOST_CHANGED = 1 << 19


def save(node: NodeContext, job: ClaimedJob) -> dict[str, Any]:
    """The bytes of a user's snapshot, or of the volume at one moment, in the store.

    The moment is that of the first attempt: the snapshot of one that was killed is used
    again, but where the volume was being filled then. When it is in the store, the snapshot
    is kept for the volume's next backup, of which it tells what has changed since.
    """
    volume_id, backup_id = job.volume_id, job.id_of("backup_id")
    if job.payload.get("snapshot_id") is not None:
        # Which may be older than the baseline.
        snapshot = Snapshot(volume_id, job.id_of("snapshot_id"))
        gaps = None
        if job.payload.get("base_id") is not None:
            gaps = node.restores.snapshot_gaps.of(snapshot, job.id_of("base_id"))
        result = _save(node, job, snapshot, gaps, lambda size: _there(job, gaps, size))
        del result["written"]
        return result
    snapshot = Snapshot(volume_id, backup_id, Purpose.BACKUP)
    with _gone_on_failure(node.pool, job, snapshot):
        # There is one if an attempt was killed after all was done.
        node.baselines.give_up(volume_id, backup_id)
        if node.restores.get(volume_id) is not None:
            # What one of an earlier attempt lacks, nobody knows any more.
            node.pool.delete_snapshot(snapshot)
        gaps = take(node, snapshot)
        result = _save(
            node, job, snapshot, gaps, lambda size: _changed(node, job, snapshot, gaps, size)
        )
    # A backup that was there before may be of an earlier moment than this snapshot. And one that
    # will be deleted at once is nobody's parent. What a snapshot lacked tells nothing of changes.
    was_written = result.pop("written")
    if was_written and job.payload.get("internal") is not True and gaps is None:
        node.baselines.keep(snapshot)
    else:
        node.pool.delete_snapshot(snapshot)
    return result


def _save(
    node: NodeContext,
    job: ClaimedJob,
    snapshot: Snapshot,
    gaps: MissingExtents | None,
    changed: Callable[[int], list[Extent] | None],
) -> dict[str, Any]:
    pool = node.pool
    parent_id = None if job.payload.get("parent_id") is None else job.id_of("parent_id")
    with _intact(pool, snapshot):
        size = pool.size(snapshot)
        return node.engine.run(
            job,
            "save",
            repository=job.id_of("repository"),
            source=str(pool.path(snapshot)),
            size_bytes=size,
            allocated=_allocated(pool, job, snapshot, size),
            changed=None if parent_id is None else changed(size),
            absent=[] if gaps is None else gaps.extents,
            base_id=None if gaps is None else gaps.backup_id,
            backup_id=job.id_of("backup_id"),
            volume_id=snapshot.volume_id,
            parent_id=parent_id,
            like=[ids.check(one, "payload.like") for one in job.payload.get("like", [])],
            condemned=job.payload.get("condemned", []),
            created_at=job.payload.get("created_at"),
            internal=job.payload.get("internal") is True,
        )


@contextlib.contextmanager
def _gone_on_failure(pool: Pool, job: ClaimedJob, snapshot: Snapshot) -> Iterator[None]:
    """Leave no snapshot of a backup that did not come to be."""
    try:
        yield
    except BaseException:
        # If the job was lost, another attempt may read the snapshot already.
        if job.stop_reason is not Stop.LOST:
            try:
                pool.delete_snapshot(snapshot)
            except errors.LunrError as error:  # what went wrong before it matters more
                _log.error("snapshot %s stays until the next start: %s", snapshot.id, error)
        raise


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


def _allocated(pool: Pool, job: ClaimedJob, snapshot: Snapshot, size: int) -> list[Extent] | None:
    """What of `snapshot` is to be read; None: all of it."""
    try:
        extents = pool.allocated(snapshot)
        if extents is None:
            return None
        return cover(_heeding_stops(job, extents), MOST_ALLOCATED, size, CHUNK)
    except errors.Cancelled:
        raise
    except errors.LunrError as error:
        _log.warning("all of snapshot %s will be read: %s", snapshot.id, error)
        return None


def _changed(
    node: NodeContext, job: ClaimedJob, snapshot: Snapshot, gaps: MissingExtents | None, size: int
) -> list[Extent] | None:
    """What of `snapshot` may differ from the parent; None: all of it."""
    parent_id, volume_id = job.id_of("parent_id"), snapshot.volume_id
    if gaps is not None:
        return _there(job, gaps, size)
    why = "no snapshot of it is kept"
    with node.baselines.using(volume_id, parent_id) as baseline:
        if baseline is not None:
            try:
                extents = node.pool.changed(baseline, snapshot)
                if extents is not None:
                    short = cover(_heeding_stops(job, extents), MOST_CHANGED, size, BLOCK)
                    # What was overwritten after it was lost is in no table.
                    node.pool.check_snapshot(baseline)
                    told = units.human(sum(end - start for start, end in short))
                    _log.info("at most %s have changed since backup %s", told, parent_id)
                    return short
                why = "the pool does not know"
            except errors.Cancelled:
                raise
            except errors.LunrError as error:
                why = str(error)
    _log.info(
        "all of the volume is compared with backup %s; what has changed is not known: %s",
        *(parent_id, why),
    )
    return None


def _there(job: ClaimedJob, gaps: MissingExtents | None, size: int) -> list[Extent] | None:
    """What a snapshot has beside its `gaps`, if the parent has those; None: all may differ."""
    if gaps is None or job.payload.get("parent_id") != gaps.backup_id:
        return None
    return cover(complement(gaps.extents, size), MOST_CHANGED, size, BLOCK)


def _heeding_stops(job: ClaimedJob, extents: Iterator[Extent]) -> Iterator[Extent]:
    for extent in extents:
        job.heed(0, 0)
        yield extent


def verify(node: NodeContext, job: ClaimedJob) -> dict[str, Any]:
    """Every byte of the backup, read and checked."""
    return node.engine.run(
        job, "verify", repository=job.id_of("repository"), backup_ids=[job.id_of("backup_id")]
    )


def delete(node: NodeContext, job: ClaimedJob) -> dict[str, Any]:
    """No backup; what only it needed is left for the collector."""
    return node.engine.run(
        job, "delete", repository=job.id_of("repository"), backup_id=job.id_of("backup_id")
    )
