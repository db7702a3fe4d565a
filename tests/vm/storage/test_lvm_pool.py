"""The pool of thick logical volumes: the contract, and that no byte of anybody's is seen again."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lunr.backup import linux
from lunr.common import errors
from lunr.storage import system
from lunr.storage.pools import cow, wipe
from lunr.storage.pools.base import Extent, PoolFull, PoolUnusable, Purpose, Snapshot, SnapshotLost
from lunr.storage.pools.logical_volumes import LogicalVolume, Role
from lunr.storage.pools.lvm import LvmPool
from lunr.storage.pools.wipe import Wiper
from tests.support.initiator import sh
from tests.support.pool_contract import PoolContract, check_covers, write
from tests.support.services import CHECKOUT
from tests.support.waiting import wait_until
from tests.vm.conftest import DISK, PLAIN_DISK, SMALL_DISK

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
    wait_until(lambda: not pool.group.volumes(), 90, "all to be wiped", 0.5)


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


@pytest.fixture(scope="module")
def _discarding() -> Iterator[LvmPool]:
    make_group("lunr-thick", DISK)
    pool = LvmPool("lunr-thick")
    pool.check()
    yield pool
    pool.close()
    remove_group("lunr-thick", DISK)


@pytest.fixture
def pool(_discarding: LvmPool) -> Iterator[LvmPool]:
    yield _discarding
    start_again(_discarding, DISK)


@pytest.fixture(scope="module")
def _plain() -> Iterator[LvmPool]:
    make_group("lunr-plain", PLAIN_DISK)
    pool = LvmPool("lunr-plain", wipe_mib_per_second=0)
    pool.check()
    yield pool
    pool.close()
    remove_group("lunr-plain", PLAIN_DISK)


@pytest.fixture
def plain(_plain: LvmPool) -> Iterator[LvmPool]:
    """On a disk that can neither discard nor write zeros by itself."""
    yield _plain
    start_again(_plain, PLAIN_DISK)


@pytest.fixture
def small_areas(pool: LvmPool) -> Iterator[LvmPool]:
    """A pool whose snapshots begin with a tenth of their volume, however small that is."""
    pool.areas.least = MIB
    yield pool
    del pool.areas.least


class TestLvmPool(PoolContract):
    size = 2 * MIB
    unit = 64 << 10
    snapshots_outlive = False
    references_outlive_extend = False
    crowd = 3
    examples = 2
    steps = 10


def test_a_reference_tells_all_that_changed_and_hinders_nobody(pool: LvmPool) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    size = 4 * MIB
    pool.create("v1", size)
    shadow = bytearray(size)
    pool.snapshot(Snapshot("v1", "b0", Purpose.REFERENCE))
    for number in (1, 2):
        before = bytes(shadow)
        for _ in range(chance.randrange(1, 12)):
            data = chance.randbytes(chance.randrange(1, 3 * cow.CHUNK))
            start = chance.randrange(size - len(data))
            write(pool.path("v1"), start, data)
            shadow[start : start + len(data)] = data
        old = Snapshot("v1", f"b{number - 1}", Purpose.REFERENCE)
        new = Snapshot("v1", f"b{number}", Purpose.BACKUP)
        pool.snapshot(new)
        write(pool.path("v1"), 0, bytes(shadow[:1]))  # the old table knows of this too
        extents = pool.changed(old, new)
        assert extents is not None
        check_covers(extents, before, bytes(shadow))
        pool.check_snapshot(old)
        pool.repurpose(new, Purpose.REFERENCE)
        pool.delete_snapshot(old)
    assert pool.snapshots() == {Snapshot("v1", "b2", Purpose.REFERENCE)}
    with pool.path("v1").open("rb"):  # attached
        pool.extend("v1", 2 * size)
    assert not pool.snapshots()
    assert pool.path("v1").read_bytes() == shadow + bytes(size)


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


def cancel_at(bytes_done: int) -> Callable[[int, int], None]:
    def tick(done: int, _total: int) -> None:
        if done >= bytes_done:
            raise errors.Cancelled

    return tick


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
    wait_until(lambda: len(plain.group.volumes()) == 1, 90, "the rest to be wiped", 0.5)
    assert plain.path("v1").read_bytes()[:4] == b"new\0"


VICTIM = """
import sys
from lunr.storage.pools.lvm import LvmPool
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
        wait_until(when, 120, "the moment to kill", 0.2)
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
    wait_until(lambda: len(plain.group.volumes()) == 1, 90, "the half-made clone to go", 0.5)
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


# --- COW areas -------------------------------------------------------------------------


def test_an_area_that_fills_up_is_enlarged(small_areas: LvmPool) -> None:
    pool = small_areas
    size = 64 * MIB
    pool.create("v1", size)
    fill(pool.path("v1"), size)
    pool.snapshot(SNAPSHOT)
    before = pool.group.volumes()[0]
    assert before.snapshot == SNAPSHOT
    for offset in range(0, 40 * MIB, 4 * MIB):  # six times what it began with
        write(pool.path("v1"), offset, random.Random(offset).randbytes(4 * MIB))
        pool.watch()
    pool.check_snapshot(SNAPSHOT)
    capacity = pool.capacity()
    assert capacity.full == ""
    assert not capacity.tight
    assert 0 < capacity.used["snapshots"] < 0.9
    with pool.path(SNAPSHOT).open("rb") as file:
        assert file.read(size) == b"secret!!" * (size // 8)
    assert list(pool.changed(SNAPSHOT, "v1") or ()) == [Extent(0, 40 * MIB)]


def test_no_room_to_grow_is_told(
    small_areas: LvmPool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, real = small_areas, time.monotonic
    pool.create("v1", 32 * MIB)
    pool.snapshot(SNAPSHOT)
    rest = pool._disks()[0].free
    pool.create("rest", rest)
    fill(pool.path("v1"), 2 * MIB + MIB // 2)
    for _ in range(2):
        pool.watch()
    assert "can't be enlarged" in pool.capacity().full
    assert pool.capacity().tight
    assert len([r for r in caplog.records if "can't be enlarged" in r.message]) == 1
    pool.delete("rest")
    pool.watch()  # too early
    assert "can't be enlarged" in pool.capacity().full
    monkeypatch.setattr(time, "monotonic", lambda: real() + 11)
    pool.watch()
    assert pool.capacity().full == ""
    pool.check_snapshot(SNAPSHOT)


def test_an_area_that_can_not_grow_keeps_no_other_from_growing(
    small_areas: LvmPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = small_areas
    extend = pool.group.extend
    for volume_id, id_ in (("v1", "s1"), ("v2", "s2")):
        pool.create(volume_id, 32 * MIB)
        pool.snapshot(Snapshot(volume_id, id_))

    def stuck(name: str, *args: Any) -> None:
        if name == "snap-s1":
            raise PoolFull(place=pool.group, free="nothing")
        extend(name, *args)

    monkeypatch.setattr(pool.group, "extend", stuck)
    for volume_id in ("v1", "v2"):
        fill(pool.path(volume_id), 2 * MIB + MIB // 2)
        pool.watch()
    sizes = {lv.name: lv.size for lv in pool.group.volumes()}
    assert sizes["snap-s2"] > sizes["snap-s1"]
    assert "snap-s1 fills up" in pool.capacity().full


def test_an_area_as_large_as_it_can_need_never_overflows(pool: LvmPool) -> None:
    pool.create("v1", 8 * MIB)
    pool.snapshot(SNAPSHOT)
    for _ in range(2):
        fill(pool.path("v1"), 8 * MIB)
        pool.watch()
    pool.check_snapshot(SNAPSHOT)
    assert is_zeros(pool.path(SNAPSHOT))
    area = next(lv.size for lv in pool.group.volumes() if lv.snapshot)
    assert area <= pool.group.rounded(cow.room_for(8 * MIB))


def test_a_snapshot_of_a_volume_in_use_is_of_one_moment(pool: LvmPool) -> None:
    """A writer counts up in two places, the second after the first: never is it ahead."""
    pool.create("v1", 4 * MIB)
    stop = threading.Event()

    def count() -> None:
        file = os.open(pool.path("v1"), os.O_RDWR | os.O_DSYNC)
        number = 0
        while not stop.is_set():
            number += 1
            for place in (0, 3 * MIB):
                os.pwrite(file, number.to_bytes(8, "big"), place)
        os.close(file)

    writer = threading.Thread(target=count)
    writer.start()
    try:
        for id_ in ("s1", "s2"):
            pool.snapshot(Snapshot("v1", id_))
    finally:
        stop.set()
        writer.join()
    for id_ in ("s1", "s2"):
        content = pool.path(Snapshot("v1", id_)).read_bytes()
        first = int.from_bytes(content[:8], "big")
        second = int.from_bytes(content[3 * MIB : 3 * MIB + 8], "big")
        assert first - 1 <= second <= first


# --- the group -------------------------------------------------------------------------


def test_a_full_group_is_a_clear_error_and_a_safe_state(pool: LvmPool) -> None:
    pool.create("v1", 64 * MIB)
    with pytest.raises(PoolFull, match="lunr-thick"):
        pool.create("v2", 64 << 30)
    with pytest.raises(PoolFull):
        pool.extend("v1", 64 << 30)
    pool.create("rest", pool._disks()[0].free)
    assert pool.capacity().free_bytes == 0
    assert pool.capacity().tight
    with pytest.raises(PoolFull):
        pool.snapshot(SNAPSHOT)
    with pytest.raises(PoolFull):
        pool.clone("v2", "v1", 64 * MIB)
    assert pool.volumes() == {"v1", "rest"}
    assert not pool.snapshots()
    assert pool.size("v1") == 64 * MIB


def test_what_snapshots_have_is_promised_to_nobody(
    pool: LvmPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or volumes would be placed here for which there is no room."""
    monkeypatch.setattr(pool, "_reserve", 0.0)
    all_of_it = pool.capacity().capacity_bytes
    pool.create("v1", 64 * MIB)
    assert pool.capacity().capacity_bytes == all_of_it
    pool.snapshot(SNAPSHOT)
    area = next(lv.size for lv in pool.group.volumes() if lv.snapshot)
    assert pool.capacity().capacity_bytes == all_of_it - area
    room = pool.capacity().capacity_bytes - 64 * MIB
    with pytest.raises(PoolFull):
        pool.create("v2", room + (64 << 10))
    pool.create("v2", room)
    pool.wiper.stop()
    pool.wiper.retire(next(lv for lv in pool.group.volumes() if lv.id == "v2"))
    assert pool.capacity().capacity_bytes == all_of_it - area  # until its record is DELETED
    pool.wiper.start()


def test_a_clone_that_fails_leaves_no_second_thing_because_of_the_first(
    pool: LvmPool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pool.create("v1", 4 * MIB)
    drop = pool._drop
    failed: list[str] = []

    def once(lv: LogicalVolume) -> None:
        if not failed:
            failed.append(lv.name)
            raise PoolUnusable(place=pool.group, reason="it burns")
        drop(lv)

    monkeypatch.setattr(pool, "_drop", once)
    with pytest.raises(errors.Cancelled):
        pool.clone("v2", "v1", 4 * MIB, cancel_at(0))
    assert f"{failed[0]} stays for now" in caplog.text
    assert [lv.name for lv in pool.group.volumes() if lv.role is Role.BUILDING] == failed
    pool.clone("v2", "v1", 4 * MIB)
    assert not [lv for lv in pool.group.volumes() if lv.role is Role.BUILDING]
    assert pool.volumes() == {"v1", "v2"}


def test_what_is_open_stays(pool: LvmPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "open_grace", 1.0)
    pool.create("v1", 4 * MIB)
    with pool.path("v1").open("r+b") as file:
        pool.extend("v1", 8 * MIB)
        assert file.seek(0, os.SEEK_END) == 8 * MIB
        pool.snapshot(SNAPSHOT)
        with pytest.raises(errors.InUse, match="detach it, or delete its snapshots"):
            pool.extend("v1", 12 * MIB)
    pool.extend("v1", 12 * MIB)
    assert (pool.size("v1"), pool.size(SNAPSHOT)) == (12 * MIB, 8 * MIB)
    assert list(pool.changed(SNAPSHOT, "v1") or ()) == [Extent(8 * MIB, 12 * MIB)]
    with pool.path(SNAPSHOT).open("rb"), pytest.raises(errors.InUse, match="s1"):
        pool.delete_snapshot(SNAPSHOT)
    pool.delete_snapshot(SNAPSHOT)
    with pool.path("v1").open("rb"), pytest.raises(errors.InUse, match="v1"):
        pool.delete("v1")
    assert pool.volumes() == {"v1"}
    monkeypatch.setattr(pool, "open_grace", 10.0)
    looker = pool.path("v1").open("rb")  # as udev does
    closing = threading.Timer(1.0, looker.close)
    closing.start()
    pool.delete("v1")
    closing.join()


def test_a_volume_that_a_killed_lvm_left_suspended_goes_on(pool: LvmPool) -> None:
    pool.create("v1", 4 * MIB)
    pool.snapshot(Snapshot("v1", "s1"))
    device = pool.group.dm_name(pool.path("v1").name)
    sh("dmsetup", "suspend", device)
    pool.close()
    pool.check()
    assert "SUSPENDED" not in sh("dmsetup", "info", device)
    write(pool.path("v1"), 0, b"goes on")


def test_what_a_killed_lvm_left_half_done_is_finished_by_the_next_attempt(
    pool: LvmPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.create("v1", 4 * MIB)
    device = pool.group.dm_name(pool.path("v1").name)
    sh("lvchange", "-qq", "-y", "-an", f"{pool.group.name}/volume-v1")
    pool.create("v1", 4 * MIB)
    pool.snapshot(SNAPSHOT)
    sh("dmsetup", "suspend", device)
    pool.snapshot(SNAPSHOT)
    assert "SUSPENDED" not in sh("dmsetup", "info", device)
    write(pool.path("v1"), 0, b"goes on")
    # Nor does anybody wait until then: whoever kills LVM sees to it.
    slow = tmp_path / "lvcreate"
    slow.write_text(f"#!/bin/sh\ndmsetup suspend {device}\nsleep 100\n")
    slow.chmod(0o700)
    monkeypatch.setattr(system, "_PATH", f"{tmp_path}:{system._PATH}")
    with pytest.raises(system.CommandTimeout):
        pool.group.run("lvcreate", timeout=2.0)
    assert "SUSPENDED" not in sh("dmsetup", "info", device)


def test_a_volume_that_can_not_be_extended_has_its_device_again(
    pool: LvmPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.create("v1", 4 * MIB)
    pool.snapshot(SNAPSHOT)
    deactivate = pool.group.deactivate

    def late(name: str) -> None:
        deactivate(name)
        raise system.CommandTimeout(command="lvchange", timeout=1.0)

    monkeypatch.setattr(pool.group, "deactivate", late)
    with pytest.raises(system.CommandTimeout):
        pool.extend("v1", 8 * MIB)
    write(pool.path("v1"), 0, b"goes on")
    assert is_zeros(pool.path(SNAPSHOT))


def test_a_reboot_loses_nothing_and_strangers_are_left_alone(
    pool: LvmPool, caplog: pytest.LogCaptureFixture
) -> None:
    name = pool.group.name
    sh("lvcreate", "-qq", "-y", "-Wn", "-Zn", "-L", "1m", "-n", "stranger", name)
    write(pool.group.path("stranger"), 0, b"not yours")
    pool.create("v_1", 4 * MIB)  # an id that LVM does not take as a name
    snapshot = Snapshot("v_1", "s" * 64)
    pool.snapshot(snapshot)
    write(pool.path("v_1"), MIB, b"changed")
    sh("lvcreate", "-qq", "-y", "-s", "-L", "1m", "-n", "stranger2", str(pool.path("v_1")))
    pool.close()
    sh("vgchange", "-qq", "-an", name)
    again = LvmPool(name)
    again.check()
    again.clean()
    try:
        assert "stranger" in caplog.text
        assert again.volumes() == {"v_1"}
        assert again.snapshots() == {snapshot}
        assert again.path("v_1").read_bytes()[MIB : MIB + 7] == b"changed"
        assert is_zeros(again.path(snapshot))
        assert list(again.changed(snapshot, "v_1") or ()) == [Extent(MIB, MIB + cow.CHUNK)]
        again.delete_snapshot(snapshot)
        with pytest.raises(errors.InUse):  # LVM would remove the stranger's snapshot with it
            again.delete("v_1")
        pool.group.patience = 0
        with pytest.raises(PoolUnusable, match="another process"):
            pool.check()
        sh("lvchange", "-qq", "-y", "-ay", f"{name}/stranger")
        assert pool.group.path("stranger").read_bytes()[:9] == b"not yours"
    finally:
        again.close()
        fill(pool.group.path("stranger"), 0)
        sh("lvremove", "-qq", "-y", "-f", f"{name}/stranger2")
        sh("blkdiscard", "-z", pool.group.path("stranger"))
        sh("lvremove", "-qq", "-y", "-f", f"{name}/stranger")
        pool.check()


def test_what_is_missing_is_said_with_the_commands_that_mend_it() -> None:
    lost = LvmPool("lunr-none")
    with pytest.raises(PoolUnusable, match=r"vgcreate lunr-none DISK; pvchange --addtag lunr.zer"):
        lost.check()
    with pytest.raises(PoolUnusable, match="not checked"):
        lost.volumes()
    sh("pvcreate", "-q", SMALL_DISK)
    sh("vgcreate", "-q", "lunr-none", SMALL_DISK)
    try:
        with pytest.raises(PoolUnusable, match=r"blkdiscard -z DISK; .*vgextend lunr-none DISK"):
            lost.check()
        sh("pvchange", "-q", "--addtag", "lunr.zeroed", SMALL_DISK)
        lost.check()
        lost.close()
    finally:
        remove_group("lunr-none", SMALL_DISK)
