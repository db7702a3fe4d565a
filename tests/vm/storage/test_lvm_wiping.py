"""Thick volumes are wiped: no byte of anybody's is seen again."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from lunr.common import errors, linux
from lunr.storage.pools.base import SnapshotLost
from lunr.storage.pools.lvm import wipe
from lunr.storage.pools.lvm.logical_volumes import Role
from lunr.storage.pools.lvm.pool import LvmPool
from lunr.storage.pools.lvm.wipe import Wiper
from tests.support.pool_contract import write
from tests.support.services import CHECKOUT
from tests.support.waiting import wait_until
from tests.vm.storage.thick import (
    BACKUP,
    MIB,
    SNAPSHOT,
    all_wiped,
    cancel_at,
    check_free,
    empty,
    fill,
)

# --- nothing is seen again -------------------------------------------------------------


@pytest.mark.parametrize("which", ["pool", "plain"])
def test_no_byte_of_a_volume_or_snapshot_is_seen_again(
    which: str, request: pytest.FixtureRequest
) -> None:
    pool: LvmPool = request.getfixturevalue(which)
    size = 24 * MIB
    pool.create("v1", size)
    fill(pool.path("v1"), size)
    pool.snapshot(SNAPSHOT)
    pool.snapshot(BACKUP)
    fill(pool.path("v1"), size // 2)  # the first secret goes to two COW areas
    pool.clone("v2", SNAPSHOT, size)
    with pytest.raises(errors.Cancelled):
        pool.clone("v3", "v1", size, cancel_at(size // 2))
    pool.delete_snapshot(SNAPSHOT)
    pool.delete_snapshot(BACKUP)
    pool.extend("v1", 2 * size)
    fill(pool.path("v1"), size, offset=size)
    pool.delete("v1")
    pool.delete("v2")
    all_wiped(pool)
    check_free(pool)


def test_the_copies_of_a_lost_snapshot_are_not_seen_again(small_areas: LvmPool) -> None:
    pool = small_areas
    pool.create("v1", 32 * MIB)
    fill(pool.path("v1"), 32 * MIB)
    pool.snapshot(SNAPSHOT)
    pool.snapshot(BACKUP)
    fill(pool.path("v1"), 16 * MIB)
    for snapshot in (SNAPSHOT, BACKUP):
        with pytest.raises(SnapshotLost, match="ran out of room"):
            pool.check_snapshot(snapshot)
        assert pool.changed(snapshot, "v1") is None
    pool.watch()
    assert pool.lost_snapshots() == {SNAPSHOT, BACKUP}
    with pytest.raises(OSError, match="Input/output"):
        pool.path(SNAPSHOT).read_bytes()
    pool.snapshot(SNAPSHOT)  # again: a user's stays lost, and is not another moment
    pool.snapshot(BACKUP)  # a backup's is taken anew
    pool.check_snapshot(BACKUP)
    with pytest.raises(SnapshotLost):
        pool.check_snapshot(SNAPSHOT)
    write(pool.path("v1"), 0, b"goes on")  # the volume does not mind
    pool.watch()
    assert pool.lost_snapshots() == {SNAPSHOT}
    empty(pool)
    check_free(pool)


def test_only_what_was_used_of_an_area_is_wiped(pool: LvmPool) -> None:
    size = 150 * MIB
    pool.wiper.stop()
    pool.create("v1", size)
    fill(pool.path("v1"), 4 * MIB)
    pool.snapshot(SNAPSHOT)
    fill(pool.path("v1"), 4 * MIB)  # the secret goes to the area
    pool.delete_snapshot(SNAPSHOT)
    area = next(lv for lv in pool.group.volumes() if lv.role is Role.WIPING_COW)
    totals: set[int] = set()
    pool.wiper.wipe(area.name, lambda _done, total: totals.add(total))
    (wiped,) = totals
    assert 4 * MIB < wiped < area.size
    pool.wiper.start()
    check_free(pool)


# --- wiping ----------------------------------------------------------------------------


def test_a_wipe_goes_on_where_it_was_cancelled(plain: LvmPool) -> None:
    size = 64 * MIB
    plain.wiper.stop()  # or it would go on by itself
    plain.create("v1", size)
    fill(plain.path("v1"), size)
    with pytest.raises(errors.Cancelled):
        plain.delete("v1", cancel_at(size // 2))
    assert not plain.volumes()
    (left,) = plain.group.volumes()
    assert (left.role, left.id, left.size) == (Role.WIPING, "v1", size // 2)
    check_free(plain)
    plain.create("v1", size)  # the id is free again; the new one is not wiped
    write(plain.path("v1"), 0, b"new")
    plain.wiper.start()
    wait_until(lambda: len(plain.group.volumes()) == 1, what="the rest to be wiped", interval=0.5)
    assert plain.path("v1").read_bytes()[:4] == b"new\0"


VICTIM = """
import sys
from lunr.storage.pools.lvm.pool import LvmPool
pool = LvmPool("lunr-plain", wipe_mib_per_second=32)
pool.wiper.keep_every = 0.5
pool.check()
pool.clean()
{work}
"""


def kill_in(work: str, when: Callable[[], bool]) -> None:
    """Kill a process that does `work` on the plain pool as soon as `when` is true."""
    victim = subprocess.Popen([sys.executable, "-c", VICTIM.format(work=work)], cwd=CHECKOUT)
    try:
        wait_until(when, what="the moment to kill", interval=0.2)
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


@pytest.mark.timeout(400)  # two processes that import lunr
def test_what_was_killed_is_wiped_and_nothing_else(plain: LvmPool) -> None:
    size = 96 * MIB
    plain.create("v1", size)
    plain.create("v2", MIB)
    fill(plain.path("v1"), size)
    write(plain.path("v2"), 0, b"kept")
    plain.close()

    def begun() -> bool:
        # Not the half-made clone, which is wiped beside it.
        wiping = [lv for lv in plain.group.volumes() if lv.role is Role.WIPING and lv.id == "v1"]
        return any(lv.size < size for lv in wiping)

    def building() -> bool:
        return sum(lv.role is Role.BUILDING for lv in plain.group.volumes()) == 2

    slow_copy = "import time; pool.clone('v3', 'v1', 96 << 20, lambda *_: time.sleep(1))"
    kill_in(slow_copy, building)
    kill_in("pool.delete('v1')", begun)
    plain.check()
    plain.clean()
    assert plain.volumes() == {"v2"}
    totals: list[int] = []
    plain.delete("v1", lambda _done, total: totals.append(total))
    assert max(totals, default=0) < size  # not from the start
    wait_until(
        lambda: len(plain.group.volumes()) == 1, what="the half-made clone to go", interval=0.5
    )
    assert plain.path("v2").read_bytes()[:5] == b"kept\0"
    check_free(plain)


def wipe_speed(pool: LvmPool, size: int, limit: int) -> float:
    """Bytes a second with that limit."""
    pool.create("v1", size)
    (lv,) = pool.group.volumes()
    wiper = Wiper(pool.group, limit)
    name = wiper.retire(lv)
    begun: list[float] = []
    wiper.wipe(name, lambda _done, _total: begun.append(time.monotonic()))
    return size / (begun[-1] - begun[0])


def test_the_limit_is_kept_where_zeros_are_written(plain: LvmPool) -> None:
    plain.wiper.stop()
    slow, fast = (wipe_speed(plain, 96 * MIB, limit) for limit in (32 * MIB, 96 * MIB))
    plain.wiper.start()
    assert slow < 34 * MIB
    assert 1.5 < fast / slow < 3.5


def test_where_the_disk_only_forgets_there_is_no_limit(
    pool: LvmPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.wiper.stop()
    # What is forgotten at once is so on any machine but this emulated one.
    monkeypatch.setattr(wipe, "_UNWRITTEN", 64 * MIB)
    assert wipe_speed(pool, 96 * MIB, 8 * MIB) > 64 * MIB
    pool.wiper.start()


def test_a_disk_that_writes_when_it_is_to_discard_is_not_hurried(
    pool: LvmPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    punch = linux.punch_hole

    def written(file: int, start: int, length: int) -> None:
        time.sleep(length / (2 << 30))  # at 2 GiB/s
        punch(file, start, length)

    monkeypatch.setattr(linux, "punch_hole", written)
    pool.wiper.stop()
    assert wipe_speed(pool, 96 * MIB, 48 * MIB) < 52 * MIB
    pool.wiper.start()
