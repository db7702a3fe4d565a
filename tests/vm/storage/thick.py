"""Groups of thick volumes on the VM's disks, and what was written to them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

from lunr.common import errors
from lunr.storage.pools.base import Purpose, Snapshot
from lunr.storage.pools.lvm.pool import LvmPool
from tests.support.initiator import sh
from tests.support.waiting import wait_until
from tests.vm.conftest import DISK

MIB = 1 << 20
POOL = 320 * MIB
SNAPSHOT = Snapshot("v1", "s1")
BACKUP = Snapshot("v1", "b1", Purpose.BACKUP)


def make_group(name: str, disk: Path) -> None:
    """A group with small extents on the first part of the disk, so that little is much of it."""
    sh("wipefs", "-qa", disk)
    sh("blkdiscard", "-z", "-l", str(POOL + MIB), disk)
    sh("pvcreate", "-q", "--setphysicalvolumesize", f"{POOL + MIB}b", disk)
    sh("vgcreate", "-q", "-s", "64k", name, disk)
    sh("pvchange", "-q", "--addtag", "lunr.zeroed", disk)


def remove_group(name: str, disk: Path) -> None:
    sh("vgremove", "-qff", "-y", name)
    sh("pvremove", "-qff", "-y", disk)


def start_again(pool: LvmPool, disk: Path) -> None:
    """An empty pool full of zeros, by fewer and so quicker commands than the pool's own."""
    if not pool.group.volumes():
        return
    pool.wiper.stop()
    sh("lvremove", "-qq", "-f", "-y", pool.group.name)
    sh(
        "fallocate",
        "--punch-hole" if disk == DISK else "--zero-range",
        "-o",
        str(MIB),
        "-l",
        str(POOL),
        disk,
    )
    pool.areas.changed()
    pool.wiper.start()


def empty(pool: LvmPool) -> None:
    """Remove all that is in the pool."""
    for snapshot in pool.snapshots():
        pool.delete_snapshot(snapshot)
    for volume_id in pool.volumes():
        pool.delete(volume_id)
    all_wiped(pool)


def all_wiped(pool: LvmPool) -> None:
    wait_until(lambda: not pool.group.volumes(), what="all to be wiped", interval=0.5)


def first_written(path: Path) -> int | None:
    """Where the first MiB begins that is other than zeros; None: all are zeros."""
    zeros = bytes(MIB)
    with path.open("rb", buffering=0) as file:
        for offset in itertools.count(0, MIB):
            piece = file.read(MIB)
            if piece != zeros[: len(piece)]:
                return offset
            if not piece:
                return None
    return None


def is_zeros(path: Path) -> bool:
    return first_written(path) is None


def check_free(pool: LvmPool) -> None:
    """One volume in all extents that are free reads as zeros."""
    sh("lvcreate", "-qq", "-y", "-Wn", "-Zn", "-l", "100%FREE", "-n", "look", pool.group.name)
    try:
        assert first_written(pool.group.path("look")) is None
    finally:
        sh("lvremove", "-qq", "-f", "-y", f"{pool.group.name}/look")


def fill(path: Path, size: int, offset: int = 0) -> None:
    """Write what no volume of another may ever show."""
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        file.write(b"secret!!" * (size // 8))
        os.fsync(file.fileno())


def cancel_at(bytes_done: int) -> Callable[[int, int], None]:
    """What cancels work when it has done so much."""

    def tick(done: int, _total: int) -> None:
        if done >= bytes_done:
            raise errors.Cancelled

    return tick
