"""A storage node of a test's own, on real parts."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lunr.backup.lazy_image import mount
from lunr.storage.agent.agent import Agent
from lunr.storage.agent.api_client import ApiClient
from lunr.storage.baselines import Baselines
from lunr.storage.engine import WORKER, Engine
from lunr.storage.exports import Exports
from lunr.storage.jobs.node_context import NodeContext
from lunr.storage.metrics import Metrics
from lunr.storage.pools.base import Pool
from lunr.storage.pools.files.pool import FilesPool
from lunr.storage.restore.process import take_lock
from lunr.storage.restore.registry import RestoreRegistry
from lunr.storage.targets.base import Target
from lunr.storage.targets.tgt.target import TgtTarget
from tests.system.storage.contract_api import NODE, TOKEN

KEY = "5a" * 32

#: A worker that does as its task's `backup_id` says, for what the real one can't be made to do.
ODD_WORKER = (sys.executable, str(Path(__file__).with_name("odd_worker.py")))


@dataclass
class Place:
    """Where a node has its things."""

    pool: Path
    store: Path
    socket: Path
    portal: str

    def parts(self, worker: Sequence[str] = WORKER) -> tuple[FilesPool, TgtTarget, Engine]:
        pool = FilesPool(self.pool, image_gib=1)
        engine = self.engine(worker)
        filling = RestoreRegistry.folder_in(own_folder(engine) / "run")
        return pool, TgtTarget(self.socket, self.pool, filling), engine

    def engine(self, worker: Sequence[str] = WORKER) -> Engine:
        return Engine(url=f"files:{self.store}", options={}, key=KEY, command=worker)

    def agent(self, url: str, worker: Sequence[str] = WORKER, **options: Any) -> Agent:
        pool, target, engine = self.parts(worker)
        return make_agent(pool, target, engine, url, self.portal, **options)


def own_folder(engine: Engine) -> Path:
    """Where the node has its state: beside the store."""
    return Path(f"{engine.url.removeprefix('files:')}-node")


def make_restores(pool: Pool, engine: Engine) -> RestoreRegistry:
    folder = own_folder(engine)
    return RestoreRegistry(pool, engine, folder / "state", folder / "run")


def end_restores(run: Path) -> None:
    """End the processes that an agent which was killed left to serve filling volumes."""
    for folder in RestoreRegistry.folder_in(run).glob("*"):
        for entry in Path("/proc").glob("[0-9]*/cwd"):
            with contextlib.suppress(OSError):
                if entry.readlink() == folder:
                    os.kill(int(entry.parent.name), signal.SIGKILL)
        while (lock := take_lock(folder)) is None:
            time.sleep(0.02)
        os.close(lock)
        mount.unmount(folder / "mnt", lazy=True)


def make_agent(
    pool: Pool,
    target: Target,
    engine: Engine,
    url: str,
    portal: str,
    **options: Any,
) -> Agent:
    restores = make_restores(pool, engine)
    exports = Exports(restores, target)
    baselines = Baselines(pool, keep=options.pop("keep", True), days=1)
    metrics = Metrics()
    return Agent(
        NodeContext(pool, exports, engine, restores, baselines),
        target,
        ApiClient(url, NODE, options.pop("token", TOKEN)),
        portal,
        heartbeat=1,
        quick_workers=2,
        data_workers=2,
        concurrent_fills=1,
        metrics=metrics,
    )
