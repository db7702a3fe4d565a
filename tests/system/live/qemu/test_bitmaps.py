"""Bitmaps that went through QEMU's end, or did not come along: such disks are compared."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.support.waiting import PATIENCE, wait_until
from tests.system.live.conftest import Vault
from tests.system.live.machines import Machine
from tests.system.live.test_backup import kept, ways
from tests.system.live.test_servers import once


def test_one_that_qemu_could_not_save_when_it_was_killed(machine: Machine, vault: Vault) -> None:
    draw = random.Random()
    machine.write_some(draw, 20)
    first = vault.backup(machine)
    # Lunr's own are in memory only. One in the file, as somebody might make it of that:
    bitmap = {"node": "node-beta", "name": f"lunr-since-{first.group_id}"}
    machine.guest.execute("block-dirty-bitmap-remove", bitmap)
    machine.guest.execute("block-dirty-bitmap-add", {**bitmap, "persistent": True})
    machine.guest.execute("quit")
    assert machine.process is not None
    machine.process.wait(PATIENCE)
    machine.start()
    machine.write_some(draw)
    for disk in machine.disks:  # a guest that writes without a flush may lose it
        machine.io(disk, "flush")
    machine.kill()
    machine.start()
    (found,) = (
        one["inserted"]["dirty-bitmaps"]
        for one in machine.guest.execute("query-block")
        if one["inserted"]["node-name"] == "node-beta"
    )
    assert found[0]["inconsistent"]
    machine.write_some(draw)
    group = vault.backup(machine)
    assert {member.disk: member.reason for member in group.members} == {
        "alpha": "QEMU has no bitmap of it (a new disk, or QEMU was started again).",
        "beta": "QEMU's bitmap has missed changes.",
    }
    assert ways(group) == {"alpha": "compared", "beta": "compared"}
    assert vault.restored(group) == machine.contents()
    assert machine.bitmaps() == dict.fromkeys(("alpha", "beta"), kept(group))


def moved(machine: Machine, folder: Path, *capabilities: str) -> Machine:
    """Another QEMU to which `machine` is migrated; they share the disks."""
    folder.mkdir()
    there = Machine(folder, machine.disks, "-incoming", "defer")
    uri = {"uri": f"unix:{there.qmp.with_name('migration')}"}
    able = {"capabilities": [{"capability": one, "state": True} for one in capabilities]}
    for one in (machine, there):
        one.guest.execute("migrate-set-capabilities", able)
    there.guest.execute("migrate-incoming", uri)
    machine.guest.execute("migrate", uri)
    wait_until(lambda: migration(machine) in ("completed", "failed"), what="the migration's end")
    return there


def migration(machine: Machine) -> str:
    return str(machine.guest.execute("query-migrate")["status"])


@pytest.mark.parametrize("able", [False, True], ids=["alone", "with its bitmaps"])
def test_a_machine_that_was_migrated(
    machine: Machine, vault: Vault, tmp_path: Path, able: bool
) -> None:
    draw = random.Random()
    machine.write_some(draw, 20)
    vault.backup(machine)
    machine.write_some(draw)
    there = moved(machine, tmp_path / "there", *(["dirty-bitmaps"] if able else []))
    try:
        wait_until(lambda: there.status() == "running", what="it goes on there")
        machine.guest.execute("quit")
        there.write_some(draw)
        for expected in ("incremental" if able else "compared", "incremental"):
            group = vault.backup(there)
            there.assert_untouched()
            assert set(ways(group).values()) == {expected}
            assert vault.restored(group) == there.contents()
            there.write_some(draw)
    finally:
        there.end()


def test_a_machine_is_not_migrated_amid_a_backup(
    machine: Machine, vault: Vault, tmp_path: Path
) -> None:
    machine.write_some(random.Random(), 20)

    def move() -> None:
        moved(machine, tmp_path / "there").end()

    group = vault.backup(machine, once(move))
    assert migration(machine) == "failed"
    machine.assert_untouched()
    assert vault.restored(group) == machine.contents()
