"""Jobs on a pool, done as the agent does them, without an API."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from lunr.backup import worker
from lunr.storage.agent.job import ClaimedJob
from lunr.storage.baselines import Baselines
from lunr.storage.engine import Engine
from lunr.storage.exports import Exports
from lunr.storage.jobs import HANDLERS
from lunr.storage.jobs.node_context import NodeContext
from lunr.storage.pools.base import Pool
from lunr.storage.targets.tgt.target import TgtTarget
from tests.system.storage.nodes import KEY, make_restores


class Work:
    """A node on `pool` that keeps baselines, with a store and all else in `folder`.

    Args:
        pool: was checked.
        folder: of the test's own.
        limit: bytes a second that a backup moves; 0: as many as it can.
    """

    def __init__(self, pool: Pool, folder: Path, limit: int = 0) -> None:
        self.pool = pool
        self.engine = Engine(url=f"files:{folder}/store", options={}, key=KEY, limit=limit)
        self._folder = folder
        restores = make_restores(pool, self.engine)
        exports = Exports(restores, TgtTarget(folder / "no-socket", folder))
        baselines = Baselines(pool, keep=True, days=1)
        self._node = NodeContext(pool, exports, self.engine, restores, baselines)

    def do(self, kind: str, volume_id: str, **payload: Any) -> Any:
        """Do a job; returns its result."""
        claimed = {"id": "j", "kind": kind, "lease": "l", "lease_seconds": 600, "attempt": 1}
        job = ClaimedJob({**claimed, "volume_id": volume_id, "payload": payload})
        return HANDLERS[kind](self._node, job)

    def save(self, backup_id: str, parent_id: str | None = None, **others: Any) -> Any:
        """A backup of the volume v1."""
        fields = {"backup_id": backup_id, "repository": "account", "parent_id": parent_id}
        return self.do("backup.save", "v1", **fields, created_at="2026-11-23T12:00:00Z", **others)

    def saved(self, backup_id: str, size: int) -> bytes:
        """The bytes of a backup, read without another process: each takes long to start in a VM."""
        file = self._folder / backup_id
        with file.open("wb") as target:
            target.truncate(size)
        task = {
            "task": "restore",
            **self.engine.access(),
            "repository": "account",
            "backup_id": backup_id,
            "target": str(file),
        }
        worker.run(task, lambda _done, _total: None, threading.Event())
        content = file.read_bytes()
        file.unlink()
        return content
