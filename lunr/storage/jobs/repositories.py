"""Jobs on a whole repository: garbage collection in two steps, and the daily verify."""

from __future__ import annotations

from typing import Any

from lunr.storage.agent.job import ClaimedJob
from lunr.storage.jobs.node_context import NodeContext


def collect(node: NodeContext, job: ClaimedJob) -> dict[str, Any]:
    """List what no backup needs: it is pending deletion then."""
    return node.engine.run(
        job,
        "collect",
        repository=job.id_of("repository"),
        keep=job.payload["keep"],
        required=job.payload["required"],
    )


def sweep(node: NodeContext, job: ClaimedJob) -> dict[str, Any]:
    """Delete what a list of pending deletions names and no backup needs."""
    return node.engine.run(
        job,
        "sweep",
        repository=job.id_of("repository"),
        keep=job.payload["keep"],
        required=job.payload["required"],
        collection=job.id_of("collection"),
    )


def verify(node: NodeContext, job: ClaimedJob) -> dict[str, Any]:
    """A share of all objects that the backups need, read and checked."""
    return node.engine.run(
        job,
        "verify",
        repository=job.id_of("repository"),
        backup_ids=job.payload["backup_ids"],
        share=job.payload["share"],
    )
