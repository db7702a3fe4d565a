"""What handlers work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lunr.storage.agent.job import Job
from lunr.storage.baselines import References
from lunr.storage.engine import Engine
from lunr.storage.exports import Exports
from lunr.storage.pools.base import Pool
from lunr.storage.restore.registry import Fillings


@dataclass(frozen=True)
class Node:
    """The parts of a storage node."""

    pool: Pool
    exports: Exports
    engine: Engine
    fillings: Fillings
    references: References


Handler = Callable[[Node, Job], dict[str, Any] | None]
