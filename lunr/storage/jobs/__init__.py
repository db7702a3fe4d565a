"""What a node does: one handler for each kind of job (docs/api.md).

A handler can be run twice, or again after it was killed anywhere, with the
same end. It returns the job's result, and raises a LunrError when it can't.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from lunr.storage.jobs import backups, exports, repositories, snapshots, volumes
from lunr.storage.jobs.node_context import Handler
from lunr.storage.pools.base import Pool

#: Every kind of job.
HANDLERS: Mapping[str, Handler] = {
    "volume.create": volumes.create,
    "volume.clone": volumes.clone,
    "volume.restore": volumes.restore,
    "volume.fill": volumes.fill,
    "volume.extend": volumes.extend,
    "volume.delete": volumes.delete,
    "snapshot.create": snapshots.create,
    "snapshot.delete": snapshots.delete,
    "export.create": exports.create,
    "export.delete": exports.delete,
    "backup.save": backups.save,
    "backup.verify": backups.verify,
    "backup.delete": backups.delete,
    "repository.collect": repositories.collect,
    "repository.sweep": repositories.sweep,
    "repository.verify": repositories.verify,
}

#: Done by an engine worker, which takes its time.
_ENGINE = {kind for kind in HANDLERS if kind.startswith(("backup.", "repository."))}
#: Follows a worker that does it whether it is followed or not, for hours.
_FILL = {"volume.fill"}
#: Done in moments by some pools, and byte by byte by those that are slow.
_POOL = {"volume.clone", "volume.delete"}


class WorkerSlots(NamedTuple):
    """The kinds of jobs that are done in moments, those that move data, and those that fill."""

    quick: frozenset[str]
    data: frozenset[str]
    fill: frozenset[str]


def worker_slots(pool: Pool) -> WorkerSlots:
    """Which jobs have which slots on a node with `pool`."""
    data = frozenset(_ENGINE | _POOL if pool.slow else _ENGINE)
    return WorkerSlots(frozenset(HANDLERS) - data - _FILL, data, frozenset(_FILL))


__all__ = ["HANDLERS", "Handler", "WorkerSlots", "worker_slots"]
