"""The pool of thick logical volumes, on disks that discard and on disks that don't."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lunr.storage.pools.lvm import LvmPool
from tests.support.initiator import sh
from tests.support.pool_contract import PoolContract
from tests.support.waiting import wait_until
from tests.vm.conftest import DISK

GROUP = "lunr-thick"
MIB = 1 << 20


@pytest.fixture(scope="module", params=[DISK])
def group(request: pytest.FixtureRequest) -> Iterator[str]:
    """A group with small extents, so that volumes can be small too."""
    disk: Path = request.param
    sh("wipefs", "-qa", disk)
    sh("blkdiscard", "-z", disk)
    sh("pvcreate", "-q", "--setphysicalvolumesize", "512m", disk)
    sh("vgcreate", "-q", "-s", "64k", GROUP, disk)
    sh("pvchange", "-q", "--addtag", "lunr.zeroed", disk)
    yield GROUP
    sh("vgremove", "-qff", "-y", GROUP)
    sh("pvremove", "-qff", "-y", disk)


@pytest.fixture(scope="module")
def checked(group: str) -> Iterator[LvmPool]:
    pool = LvmPool(group)
    pool.check()
    yield pool
    pool.close()


@pytest.fixture
def pool(checked: LvmPool) -> Iterator[LvmPool]:
    """An empty pool; in the end everything in it can be removed."""
    yield checked
    checked.clean()
    for snapshot in checked.snapshots():
        checked.delete_snapshot(snapshot)
    for volume_id in checked.volumes():
        checked.delete(volume_id)
    wait_until(lambda: not checked.group.volumes(), "all is wiped", 60)


class TestLvmPool(PoolContract):
    size = 4 * MIB
    unit = 64 << 10
    snapshots_outlive = False
    examples = 2
    steps = 12
