"""What handlers work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lunr.storage.agent.job import ClaimedJob
from lunr.storage.baselines import Baselines
from lunr.storage.engine import Engine
from lunr.storage.exports import Exports
from lunr.storage.pools.base import Pool
from lunr.storage.restore.registry import RestoreRegistry


@dataclass(frozen=True)
class NodeContext:
    """The parts of a storage node."""

    pool: Pool
    exports: Exports
    engine: Engine
    restores: RestoreRegistry
    baselines: Baselines


Handler = Callable[[NodeContext, ClaimedJob], dict[str, Any] | None]
