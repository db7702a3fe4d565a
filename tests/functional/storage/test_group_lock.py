"""A group is one agent's, and of the commands that a killed agent left running."""

from __future__ import annotations

import stat
import threading
import time
from pathlib import Path

import pytest

from lunr.storage import system
from lunr.storage.pools.base import PoolUnusable
from lunr.storage.pools.lvm import volume_group
from lunr.storage.pools.lvm.volume_group import VolumeGroup


@pytest.fixture(autouse=True)
def _locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume_group, "_LOCKS", tmp_path / "locks")


def test_a_second_agent_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = VolumeGroup("vg"), VolumeGroup("vg")
    monkeypatch.setattr(second, "patience", 0.3)
    first.lock()
    assert stat.S_IMODE(volume_group._LOCKS.stat().st_mode) == 0o700
    with pytest.raises(PoolUnusable, match="another process"):
        second.lock()
    first.unlock()
    second.lock()
    second.unlock()


def test_a_command_that_was_left_running_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "lvcreate"
    slow.write_text(f"#!/bin/sh\ntouch {tmp_path}/begun; sleep 1; touch {tmp_path}/ended\n")
    slow.chmod(0o700)
    monkeypatch.setattr(system, "_PATH", f"{tmp_path}:/usr/bin:/bin")
    killed, next_one = VolumeGroup("vg"), VolumeGroup("vg")
    killed.lock()
    running = threading.Thread(target=killed.run, args=(str(slow),))
    running.start()
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    killed.unlock()  # as its death would
    next_one.lock()
    assert (tmp_path / "ended").exists()
    next_one.unlock()
    running.join()
