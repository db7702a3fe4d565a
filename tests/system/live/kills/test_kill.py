"""Killed before and after anything that it says to QEMU: the guest runs, nothing is lost.

See :mod:`tests.system.live.steps` for which steps.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from lunr.live.qemu.qmp import Monitor
from tests.support.waiting import PATIENCE
from tests.system.live.conftest import Vault
from tests.system.live.machines import Machine
from tests.system.live.steps import SEED, TRIED, drawn, patient
from tests.system.live.test_backup import kept, ways
from tools.virtual.writer.guest import Guest

#: A backup of two disks takes at least so many steps.
STEPS = 240
#: The first of them that leaves something behind: before it is only asked.
FIRST = 20

VICTIM = Path(__file__).with_name("victim.py")


def killed(machine: Machine | Guest, vault: Vault, step: int | str, *more: str) -> bool:
    argv = [sys.executable, str(VICTIM), str(machine.qmp), vault.url, str(step), *more]
    top = str(VICTIM.parents[3])
    done = subprocess.run(argv, env={**os.environ, "PYTHONPATH": top}, stderr=subprocess.DEVNULL)
    assert done.returncode in (0, -9, 3)
    return done.returncode != 0


@patient
@pytest.mark.parametrize("first", [True, False], ids=["full", "incremental"])
def test_the_guard_leaves_the_machine_as_it_was(
    machine: Machine, vault: Vault, first: bool
) -> None:
    draw = random.Random(SEED)
    machine.write_some(draw, 20)
    if not first:
        vault.backup(machine)
    for step in drawn(FIRST, STEPS):
        machine.write_some(draw, 3)
        if not killed(machine, vault, step):
            assert TRIED == "all"
            first = False  # this backup took fewer steps
            break
        # QEMU serves the next one when the guard is done.
        Monitor.open(machine.qmp, PATIENCE).close()
        machine.assert_untouched()
        machine.write_some(draw, 3)
    group = vault.backup(machine)
    if not first:
        assert set(ways(group).values()) == {"incremental"}
    assert vault.restored(group) == machine.contents()
    assert machine.bitmaps() == dict.fromkeys(("alpha", "beta"), kept(group))


@patient
def test_the_next_backup_does_it_when_the_guard_was_killed_too(
    machine: Machine, vault: Vault
) -> None:
    draw = random.Random(SEED)
    machine.write_some(draw, 20)
    vault.backup(machine)
    for step in drawn(FIRST, STEPS):
        machine.write_some(draw, 3)
        machine.guest.close()  # QEMU forgets some things when nobody is connected
        ended = not killed(machine, vault, step, "alone")
        machine.connect()
        if ended:
            assert TRIED == "all"
            break
        machine.write_some(draw, 3)
        group = vault.backup(machine)
        machine.assert_untouched()
        assert set(ways(group).values()) == {"incremental"}, step
        assert vault.restored(group) == machine.contents(), step


@patient
def test_qemu_is_killed(machine: Machine, vault: Vault) -> None:
    draw = random.Random(SEED)
    machine.write_some(draw, 20)
    for step in drawn(FIRST, STEPS):
        vault.backup(machine)
        machine.write_some(draw, 3)
        for disk in machine.disks:  # a guest that writes without a flush may lose it
            machine.io(disk, "flush")
        assert machine.process is not None
        machine.guest.close()
        done = killed(machine, vault, step, "qemu", str(machine.process.pid))
        if not done and machine.process.poll() is None:
            assert TRIED == "all"
            machine.connect()
            break  # this backup took fewer steps
        machine.process.wait(PATIENCE)
        machine.start()
        machine.write_some(draw, 3)
        group = vault.backup(machine)
        machine.assert_untouched()
        assert set(ways(group).values()) == {"compared"}, step
        assert vault.restored(group) == machine.contents(), step
