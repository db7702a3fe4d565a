"""The thick pool: what it does not ask LVM for."""

from __future__ import annotations

import time

import pytest

from lunr.storage import system
from lunr.storage.pools.lvm.logical_volumes import PhysicalVolume
from lunr.storage.pools.lvm.pool import ZEROED, LvmPool
from lunr.storage.pools.lvm.volume_group import VolumeGroup

GIB = 1 << 30


def test_the_disks_are_looked_at_when_something_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The agent wants to know each second; `pvs` reads all disks of the machine."""
    looks = 0
    free = 4 * GIB

    def disks(_self: VolumeGroup) -> list[PhysicalVolume]:
        nonlocal looks
        looks += 1
        tags = frozenset([ZEROED])
        return [PhysicalVolume("/dev/vda", 4 * GIB, free, 4 * GIB - free, tags, True, False)]

    monkeypatch.setattr(VolumeGroup, "disks", disks)
    monkeypatch.setattr(system, "run", lambda *_args, **_more: system.Result(0, "", ""))
    clock = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    pool = LvmPool("lunr", reserve_percent=0)
    monkeypatch.setattr(pool.areas, "look", lambda: None)
    for _ in range(5):
        pool.watch()
        assert pool.capacity().free_bytes == 4 * GIB
    assert looks == 1
    free = 3 * GIB
    pool.group.run("lvcreate")
    assert pool.capacity().free_bytes == 3 * GIB
    pool.watch()
    assert looks == 3
    pool.watch()
    free = 2 * GIB  # somebody else's work
    assert pool.capacity().free_bytes == 3 * GIB
    clock += 11
    pool.watch()
    assert pool.capacity().free_bytes == 2 * GIB
