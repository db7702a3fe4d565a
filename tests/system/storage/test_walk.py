"""What a pool of files tells to have changed covers the truth; every backup is the volume's copy.

The same walk on LVM is in tests/vm/storage/test_walk.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from lunr.storage.pools.files.pool import FilesPool
from tests.support.node_work import Work
from tests.support.random_walk import MIB, Walk


@pytest.mark.timeout(300)
def test_a_walk_on_files(xfs_mount: Path, tmp_path: Path) -> None:
    pool = FilesPool(xfs_mount, image_gib=1)
    pool.check()
    try:
        walk = Walk(Work(pool, tmp_path), 4 * MIB)
        walk.go(30)
        assert walk.told > 10
    finally:
        pool.close()
