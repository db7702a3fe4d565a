"""The limit of wiping; the wiping itself needs devices, and is tried in the VM."""

from __future__ import annotations

import threading

import pytest

from lunr.storage.pools.lvm import wipe
from lunr.storage.pools.lvm.logical_volumes import LogicalVolume
from lunr.storage.pools.lvm.volume_group import VolumeGroup
from lunr.storage.pools.lvm.wipe import Wiper
from tests.support.waiting import PATIENCE


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
