"""Disks under the volume group that can't give some bytes, take none, or do not answer at all."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lunr.common import errors
from lunr.storage import system
from lunr.storage.pools.base import DevicePool, Pool, Snapshot, SnapshotLost
from lunr.storage.pools.lvm import volume_group as volume_group_module
from lunr.storage.pools.lvm.pool import LvmPool
from lunr.storage.pools.thin.pool import ThinPool
from tests.support.faults.faulty_disk import FaultyDisk
from tests.support.initiator import sh
from tests.support.node_work import Work
from tests.support.volume_groups import volume_group
from tests.support.waiting import wait_until

# For a machine that has other things to do, too.
pytestmark = pytest.mark.timeout(300)

GROUP = "lunr-faulty"
MIB = 1 << 20
SECTOR = 512
SIZE = 12 * MIB


@pytest.fixture
def faulty(small_disk: Path) -> Iterator[FaultyDisk]:
    disk = FaultyDisk(small_disk, "faulty", 400 * MIB)
    yield disk
    disk.remove()


@pytest.fixture(params=["lvm", "thin"])
def pool(request: pytest.FixtureRequest, faulty: FaultyDisk) -> Iterator[DevicePool]:
    thin = "pool" if request.param == "thin" else None
    with volume_group(GROUP, faulty.path, thin_pool=thin):
        pool = ThinPool(GROUP, thin, 85) if thin else LvmPool(GROUP)
        pool.check()
        yield pool
        faulty.mend()  # or its group can't be removed
        pool.close()


@pytest.fixture
def work(pool: Pool, tmp_path: Path) -> Work:
    return Work(pool, tmp_path)


def write(path: Path, data: bytes, offset: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def test_a_disk_that_takes_no_writes_for_a_while(
    work: Work, pool: DevicePool, faulty: FaultyDisk
) -> None:
    """Whatever is asked for fails and says why; when the disk is well again it is done."""
    data = random.Random(3).randbytes(SIZE)
    for volume_id in ("v1", "doomed"):
        work.do("volume.create", volume_id, size_bytes=SIZE)
        write(pool.path(volume_id), data)
    pool.snapshot(old := Snapshot("v1", "s0"))
    with faulty.writes_failing():
        for attempt in (
            lambda: work.do("volume.create", "v2", size_bytes=SIZE),
            lambda: work.do("snapshot.create", "v1", snapshot_id="s1"),
            lambda: pool.delete("doomed"),
        ):
            with pytest.raises(errors.LunrError, match=r"Error writing|takes no writes"):
                attempt()
        with pytest.raises(OSError, match="Input/output"):
            write(pool.path("v1"), bytes(4096))
        assert pool.path("v1").read_bytes()[MIB:] == data[MIB:]
    if isinstance(pool, ThinPool):
        with pytest.raises(errors.LunrError, match=f"vgchange -an {GROUP}"):
            work.do("volume.create", "v2", size_bytes=SIZE)
        pool.close()
        sh("vgchange", "-qqan", GROUP)  # as the message says
        pool.check()
    pool.clean()
    assert pool.volumes() - {"doomed"} == {"v1"}
    assert pool.snapshots() == {old}
    if isinstance(pool, LvmPool):  # what was to be overwritten could not be copied first
        with pytest.raises(SnapshotLost):
            pool.check_snapshot(old)

    work.do("volume.create", "v2", size_bytes=SIZE)
    assert pool.path("v2").read_bytes() == bytes(SIZE)
    pool.delete("doomed")
    work.do("snapshot.delete", "v1", snapshot_id="s0")
    write(pool.path("v1"), after := random.Random(4).randbytes(MIB))
    work.do("snapshot.create", "v1", snapshot_id="s1")
    work.save("b1")
    assert work.saved("b1", SIZE) == after + data[MIB:]
    assert pool.volumes() == {"v1", "v2"}


@pytest.mark.parametrize("pool", ["lvm"], indirect=True)
def test_a_wipe_that_the_disk_does_not_take_is_not_forgotten(
    pool: LvmPool, work: Work, faulty: FaultyDisk
) -> None:
    """The volume is gone for its owner, and its bytes are for nobody until they are zeros."""
    pool.wiper.stop()
    work.do("volume.create", "v1", size_bytes=SIZE)
    write(pool.path("v1"), b"secret!!" * (SIZE // 8))
    (lv,) = pool.group.volumes()
    name = pool.wiper.retire(lv)
    with faulty.writes_failing(), pytest.raises(errors.LunrError, match="can't be overwritten"):
        pool.wiper.wipe(name, lambda _done, _total: None)
    assert not pool.volumes()
    assert [lv.name for lv in pool.group.volumes()] == [name]
    pool.delete("v1")
    assert pool.group.volumes() == []
    work.do("volume.create", "v2", size_bytes=SIZE)
    assert pool.path("v2").read_bytes() == bytes(SIZE)


@pytest.mark.parametrize("pool", ["lvm"], indirect=True)
def test_a_backup_whose_snapshot_overflows_fails_and_gives_no_bytes(
    pool: LvmPool, tmp_path: Path
) -> None:
    pool.areas.least = MIB
    work = Work(pool, tmp_path, limit=2 * MIB)
    work.do("volume.create", "v1", size_bytes=2 * SIZE)
    data = random.Random(5).randbytes(2 * SIZE)
    write(pool.path("v1"), data)

    def overwrite() -> None:
        wait_until(lambda: pool.snapshots(), what="the backup's snapshot", interval=0.1)
        write(pool.path("v1"), data[SIZE:], SIZE)

    writer = threading.Thread(target=overwrite)
    writer.start()
    try:
        with pytest.raises(SnapshotLost, match="ran out of room"):
            work.save("b1")
    finally:
        writer.join()
    assert not pool.snapshots()
    with pytest.raises(errors.LunrError, match="b1"):
        work.saved("b1", 2 * SIZE)
    assert pool.path("v1").read_bytes() == data
    Work(pool, tmp_path).save("b2")


def test_a_disk_that_hangs_fails_jobs_in_time_and_all_goes_on_after(
    work: Work, pool: Pool, faulty: FaultyDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    work.do("volume.create", "v1", size_bytes=SIZE)
    monkeypatch.setattr(volume_group_module, "TIMEOUT", 3.0)
    monkeypatch.setattr(system, "_KILL_WAIT", 1.0)
    faulty.hang()
    try:
        with pytest.raises(system.CommandTimeout) as caught:
            work.do("volume.create", "v2", size_bytes=SIZE)
        assert caught.value.retry
    finally:
        faulty.mend()
    monkeypatch.undo()
    work.do("volume.create", "v2", size_bytes=SIZE)
    assert pool.volumes() == {"v1", "v2"}
    write(pool.path("v2"), b"x" * MIB)
