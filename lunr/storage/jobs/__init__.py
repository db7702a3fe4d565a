"""What a node does: one handler for each kind of job (docs/api.md).

A handler can be run twice, or again after it was killed anywhere, with the
same end. It returns the job's result, and raises a LunrError when it can't.
"""

from __future__ import annotations

from collections.abc import Mapping

from lunr.storage.jobs import backups, exports, repositories, snapshots, volumes
from lunr.storage.jobs.node import Handler, Node

#: Done in moments: what touches no data.
QUICK: Mapping[str, Handler] = {
    "volume.create": volumes.create,
    "volume.clone": volumes.clone,
    "volume.extend": volumes.extend,
    "volume.delete": volumes.delete,
    "snapshot.create": snapshots.create,
    "snapshot.delete": snapshots.delete,
    "export.create": exports.create,
    "export.delete": exports.delete,
}

#: Done by an engine worker: what moves data.
DATA: Mapping[str, Handler] = {
    "volume.restore": volumes.restore,
    "backup.save": backups.save,
    "backup.verify": backups.verify,
    "backup.delete": backups.delete,
    "repository.collect": repositories.collect,
    "repository.sweep": repositories.sweep,
}

__all__ = ["DATA", "QUICK", "Handler", "Node"]
