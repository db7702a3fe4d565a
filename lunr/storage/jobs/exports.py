"""Jobs on exports."""

from __future__ import annotations

from lunr.storage.agent.job import ClaimedJob
from lunr.storage.jobs.node_context import NodeContext


def create(node: NodeContext, job: ClaimedJob) -> None:
    """The volume is there for the initiator."""
    node.exports.attach(job.volume_id, job.payload)


def delete(node: NodeContext, job: ClaimedJob) -> None:
    """The volume is there for nobody; refused while one is logged in, unless forced."""
    node.exports.detach(job.volume_id, force=job.payload.get("force") is True)
