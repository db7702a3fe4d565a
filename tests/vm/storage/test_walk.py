"""What LVM's pools tell to have changed covers the truth; every backup is the volume's copy.

On files, with more steps, it is in tests/system/storage/test_walk.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from lunr.storage.pools.lvm.pool import LvmPool
from lunr.storage.pools.thin.pool import ThinPool
from tests.support.node_work import Work
from tests.support.random_walk import MIB, Walk
from tests.support.volume_groups import volume_group


@pytest.mark.parametrize("kind", ["lvm", "thin"])
def test_a_walk_on_lvm(kind: str, small_disk: Path, tmp_path: Path) -> None:
    thin = "pool" if kind == "thin" else None
    with volume_group("lunr-walk", small_disk, thin_pool=thin):
        pool = ThinPool("lunr-walk", thin, 85) if thin else LvmPool("lunr-walk")
        pool.check()
        try:
            walk = Walk(Work(pool, tmp_path), 4 * MIB)
            walk.go(3)
            for _ in range(8):  # how often it is told is up to chance
                if not walk.told:
                    walk.go(1)
            assert walk.told
        finally:
            pool.close()
