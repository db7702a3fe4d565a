"""Jobs on users' snapshots."""

from __future__ import annotations

from lunr.storage.job import Job
from lunr.storage.jobs.node import Node
from lunr.storage.pools.base import Snapshot


def create(node: Node, job: Job) -> None:
    """The volume's bytes of this moment, kept."""
    node.pool.snapshot(Snapshot(job.volume_id, job.id_of("snapshot_id")))


def delete(node: Node, job: Job) -> None:
    """No snapshot."""
    node.pool.delete_snapshot(Snapshot(job.volume_id, job.id_of("snapshot_id")))
