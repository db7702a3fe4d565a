"""The pool of thick logical volumes: the contract, and that no byte of anybody's is seen again."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lunr.common import errors
from lunr.common.extents import Extent
from lunr.storage import system
from lunr.storage.pools.base import PoolFull, PoolUnusable, Purpose, Snapshot
from lunr.storage.pools.lvm import cow
from lunr.storage.pools.lvm.logical_volumes import LogicalVolume, Role
from lunr.storage.pools.lvm.pool import LvmPool
from tests.support.initiator import sh
from tests.support.pool_contract import PoolContract, check_covers, write
from tests.vm.conftest import SMALL_DISK
from tests.vm.storage.thick import MIB, SNAPSHOT, cancel_at, fill, is_zeros, remove_group


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
    pool.snapshot(Snapshot("v1", "b0", Purpose.BASELINE))
    for number in (1, 2):
        before = bytes(shadow)
        for _ in range(chance.randrange(1, 12)):
            data = chance.randbytes(chance.randrange(1, 3 * cow.CHUNK))
            start = chance.randrange(size - len(data))
            write(pool.path("v1"), start, data)
            shadow[start : start + len(data)] = data
        old = Snapshot("v1", f"b{number - 1}", Purpose.BASELINE)
        new = Snapshot("v1", f"b{number}", Purpose.BACKUP)
        pool.snapshot(new)
        write(pool.path("v1"), 0, bytes(shadow[:1]))  # the old table knows of this too
        extents = pool.changed(old, new)
        assert extents is not None
        check_covers(extents, before, bytes(shadow))
        pool.check_snapshot(old)
        pool.repurpose(new, Purpose.BASELINE)
        pool.delete_snapshot(old)
    assert pool.snapshots() == {Snapshot("v1", "b2", Purpose.BASELINE)}
    with pool.path("v1").open("rb"):  # attached
        pool.extend("v1", 2 * size)
    assert not pool.snapshots()
    assert pool.path("v1").read_bytes() == shadow + bytes(size)


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
