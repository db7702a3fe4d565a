"""Jobs on users' snapshots."""

from __future__ import annotations

from typing import Any

from lunr.backup.lazy_image.missing_extents import MissingExtents
from lunr.storage.agent.job import ClaimedJob, Stop
from lunr.storage.jobs.consistent_snapshot import drop, take
from lunr.storage.jobs.node_context import NodeContext
from lunr.storage.pools.base import Snapshot


def create(node: NodeContext, job: ClaimedJob) -> dict[str, Any]:
    """The volume's bytes of this moment, kept, or those that are there if it is being filled.

    What it lacks is kept before it is taken, and here forgotten after it is gone: one of which
    nothing is kept is whole.
    """
    snapshot = Snapshot(job.volume_id, job.id_of("snapshot_id"))
    snapshot_gaps = node.restores.snapshot_gaps

    def keep(gaps: MissingExtents) -> None:
        job.heed(0, 0)  # another attempt may have ended while this one waited
        if gaps.extents:
            snapshot_gaps.keep(snapshot, gaps)

    if snapshot_gaps.has(snapshot):  # by an attempt that was killed: perhaps before it stood still
        node.pool.delete_snapshot(snapshot)
        snapshot_gaps.forget(snapshot)
    try:
        gaps = take(node, snapshot, keep)
    except BaseException:
        if job.stop_reason is not Stop.LOST and snapshot_gaps.has(snapshot):
            node.pool.delete_snapshot(snapshot)
            snapshot_gaps.forget(snapshot)
        raise
    return {"base_id": None if gaps is None else gaps.backup_id}


def delete(node: NodeContext, job: ClaimedJob) -> None:
    """No snapshot."""
    drop(node, Snapshot(job.volume_id, job.id_of("snapshot_id")))
