"""Does one job's handler and is killed, with SIGKILL, after a given step of it.

``python victim.py PLACE JOB STEP``: PLACE and JOB in JSON; the steps are the
calls to pool, target and engine, and within the pool whatever waits for the
disk.
Prints nothing; ends with exit code 0 if the handler ended in fewer steps.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lunr.common import concurrency, errors
from lunr.storage.agent.job import ClaimedJob
from lunr.storage.baselines import Baselines
from lunr.storage.exports import Exports
from lunr.storage.jobs import HANDLERS
from lunr.storage.jobs.node_context import NodeContext
from tests.system.storage.nodes import Place, make_restores


class Doomed:
    """Stands before a part of the node, and kills the process at the given step."""

    left = 0

    def __init__(self, part: Any) -> None:
        self._part = part

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._part, name)
        return doomed(value) if callable(value) else value


def doomed(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        finally:
            step()

    return call


def step() -> None:
    Doomed.left -= 1
    if not Doomed.left:
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    where, claimed = json.loads(sys.argv[1]), json.loads(sys.argv[2])
    place = Place(Path(where["pool"]), Path(where["store"]), Path(where["socket"]), where["portal"])
    pool, target, engine = place.parts()
    pool.check()
    parts: list[Any] = [Doomed(part) for part in (pool, target, engine)]
    restores = make_restores(pool, engine)
    restores.load(pool.volumes(), restores.known(), [])
    baselines = Baselines(parts[0], keep=True, days=1)
    node = NodeContext(parts[0], Exports(restores, parts[1]), parts[2], restores, baselines)
    concurrency.blocking = lambda function, *args: doomed(function)(*args)
    Doomed.left = int(sys.argv[3])
    try:
        HANDLERS[claimed["kind"]](node, ClaimedJob(claimed))
    except errors.LunrError as error:
        sys.exit(f"{claimed['kind']} failed: {error}")


main()
