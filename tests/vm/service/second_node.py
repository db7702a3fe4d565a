"""A second node, for copies from the first one: a small thin pool in a group of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from lunr.common import files
from tests.support.volume_groups import volume_group
from tests.support.waiting import wait_until
from tests.vm.service.running import OTHER_GROUP, World, configure

NAME = "node2"


@contextlib.contextmanager
def second_node(world: World, disk: Path) -> Iterator[None]:
    """It is at work, with a pool on `disk`; nobody kills it."""
    service, nodes = world.service, world.client.admin.nodes
    token = service.root / "keys" / "node2.token"
    files.write(token, f"{nodes.create(NAME, volume_types=['default']).token}\n")
    config = service.root / "node2.conf"
    shutil.copy(service.config, config)
    options = {
        "node_id": NAME,
        "node_token_file": token,
        "node_pool": "thin",
        "node_overcommit": 8,
        "node_state_dir": service.root / "state2",
        "node_run_dir": service.root / "run2",
        "lvm_group": OTHER_GROUP,
        "lvm_thin_pool": "pool",
    }
    configure(config, options)
    (service.root / "run2").mkdir(mode=0o700)
    with volume_group(OTHER_GROUP, disk, thin_pool="pool"):
        log = world.node.folder / "storage2.log"
        pid = service.nursery.fork("storage", ["--config-file", str(config)], log)
        try:
            wait_until(
                lambda: nodes.get(NAME).status == "ACTIVE", what="the second node", interval=0.5
            )
            yield
        finally:
            os.kill(pid, signal.SIGTERM)
            service.nursery.wait(pid)
            nodes.delete(NAME, force=True)
