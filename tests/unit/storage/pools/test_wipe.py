"""The limit of wiping; the wiping itself needs devices, and is tried in the VM."""

from __future__ import annotations

import threading
import time

import pytest

from lunr.storage.pools.lvm import wipe
from lunr.storage.pools.lvm.logical_volumes import LogicalVolume
from lunr.storage.pools.lvm.volume_group import VolumeGroup
from lunr.storage.pools.lvm.wipe import Pace, Wiper
from tests.support.waiting import PATIENCE, SOON

MIB = 1 << 20


def test_threads_share_one_limit() -> None:
    pace = Pace(20 * MIB)
    threads = [threading.Thread(target=pace.spend, args=(2 * MIB,)) for _ in range(3)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - started >= 0.3


def test_a_rest_saves_nothing_up() -> None:
    pace = Pace(20 * MIB)
    pace.spend(MIB)
    time.sleep(0.2)
    started = time.monotonic()
    pace.spend(2 * MIB)
    assert time.monotonic() - started >= 0.1


def test_zero_is_no_limit() -> None:
    started = time.monotonic()
    Pace(0).spend(1 << 50)
    assert time.monotonic() - started < SOON


def test_a_defect_does_not_end_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wipe, "_LOOK_EVERY", 0.01)
    group, again = VolumeGroup("vg"), threading.Event()
    looks = 0

    def volumes() -> list[LogicalVolume]:
        nonlocal looks
        looks += 1
        if looks < 3:
            raise ValueError("a defect")
        again.set()
        return []

    monkeypatch.setattr(group, "volumes", volumes)
    wiper = Wiper(group, 0)
    wiper.start()
    assert again.wait(PATIENCE)
    wiper.stop()
