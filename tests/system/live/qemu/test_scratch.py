"""The room that the scratch files take: the machine's own writes come first."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lunr.live import errors
from lunr.live.qemu import cleanup, fleecing
from lunr.live.qemu.qmp import Monitor
from tests.support.services import need_root
from tests.system.live.conftest import Vault
from tests.system.live.machines import MIB, Machine
from tests.system.live.test_backup import kept, ways


@contextlib.contextmanager
def room(folder: Path, size: str) -> Iterator[Path]:
    """A folder with room for `size`."""
    need_root()
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A folder with room for 1 MiB."""
    with room(tmp_path / "tiny", "1M") as folder:
        yield folder


def test_a_full_scratch_folder_ends_the_backup_and_not_the_machine(
    machine: Machine, vault: Vault, tiny: Path
) -> None:
    draw = random.Random()
    alpha = machine.disks[0]
    machine.write(alpha, 0, 24 * MIB, 1)
    first = vault.backup(machine)

    def overwrite(call: str, name: str) -> None:
        if call == "put" and name.startswith("sessions/"):
            machine.write(alpha, 0, 8 * MIB, draw.randrange(2, 256))

    machine.write(alpha, MIB, MIB, 77)
    with pytest.raises(errors.ExportLost, match="goes on"):
        vault.backup(machine, overwrite, scratch=tiny, scratch_reserve=0)
    machine.assert_untouched()
    assert vault.ids() == {first.group_id, *(member.backup_id for member in first.members)}
    group = vault.backup(machine)
    assert ways(group)["alpha"] == "incremental"
    assert vault.restored(group) == machine.contents()


def test_a_slow_scratch_disk_ends_the_backup_and_not_the_machine(
    machine: Machine, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha = machine.disks[0]
    machine.write(alpha, 0, 24 * MIB, 1)
    first = vault.backup(machine)
    machine.write(alpha, MIB, MIB, 77)
    before = vault.ids()
    took = []

    def overwrite(call: str, name: str) -> None:
        if call == "put" and name.startswith("sessions/"):
            for value in (2, 3):
                began = time.monotonic()
                machine.write(alpha, MIB, MIB, value)
                took.append(time.monotonic() - began)

    execute = Monitor.execute

    def slowed(
        self: Monitor, command: str, arguments: dict[str, Any] | None = None, **options: Any
    ) -> Any:
        """The scratch "disk" takes 5 seconds for whatever it is told."""
        if command == "blockdev-add" and arguments and arguments["driver"] == "raw":
            slow = {"driver": "null-co", "size": 24 * MIB, "latency-ns": 5 * 10**9}
            arguments = {**arguments, "file": slow}
        return execute(self, command, arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(fleecing, "_COPY_TIMEOUT", 1)
        patch.setattr(Monitor, "execute", slowed)
        # What stands in for the scratch files has no descriptor, and so no note.
        behind = {"lunr-0-filter": "node-alpha", "lunr-1-filter": "node-beta"}
        patch.setattr(cleanup, "_nodes_behind_filters", lambda _monitor: behind)
        with pytest.raises(errors.ExportLost, match="goes on"):
            vault.backup(machine, overwrite)
    assert 0.9 < took[0] < 4, "a write waits for one copy, and no longer"
    assert took[1] < 0.9, "after that the guest's writes cost nothing"
    machine.assert_untouched()
    assert vault.ids() == before
    assert machine.bitmaps() == dict.fromkeys(("alpha", "beta"), kept(first))
    group = vault.backup(machine)
    assert set(ways(group).values()) == {"incremental"}
    assert vault.restored(group) == machine.contents()


def test_what_the_machine_writes_finds_room_beside_the_scratch_files(
    machine: Machine, vault: Vault, tmp_path: Path
) -> None:
    alpha = machine.disks[0]
    machine.write(alpha, 0, 24 * MIB, 1)

    def overwrite(call: str, name: str) -> None:
        if call == "put" and name.startswith("sessions/"):
            machine.write(alpha, 0, 12 * MIB, 2)
        elif call == "put":
            time.sleep(0.5)  # a store that is slow enough for somebody to look

    with room(tmp_path / "scratch", "16M") as folder:
        with pytest.raises(errors.ScratchReserve, match=r"1\.0 GiB"):  # by default
            vault.backup(machine, scratch=folder)
        assert machine.bitmaps() == {"alpha": set(), "beta": set()}
        with pytest.raises(errors.ScratchReserve, match=r"8.0 MiB .* goes on"):
            vault.backup(machine, overwrite, scratch=folder, scratch_reserve=8 * MIB)
        found = os.statvfs(folder)
        assert found.f_bavail == found.f_blocks  # and all of it is free again
    machine.assert_untouched()
    assert vault.ids() == set()


def test_the_room_of_a_disk_is_free_when_it_is_done(
    machine: Machine, vault: Vault, tmp_path: Path
) -> None:
    alpha = machine.disks[0]
    for disk in machine.disks:
        machine.write(disk, 0, 16 * MIB, 1)
    at_cut = machine.contents()
    used = []

    with room(tmp_path / "scratch", "64M") as folder:

        def overwrite(call: str, name: str) -> None:
            if call != "put":
                return
            if not used:
                machine.write(alpha, 0, 12 * MIB, 2)
            found = os.statvfs(folder)
            used.append((name, (found.f_blocks - found.f_bavail) * found.f_frsize))

        group = vault.backup(machine, overwrite, scratch=folder, scratch_reserve=0, concurrency=1)
        assert vault.restored(group) == at_cut
    assert used[1][1] >= 11 * MIB
    assert used[-1][1] < MIB  # beta's own objects are put when alpha's room is free


def test_a_limit_on_scratch_space_ends_the_backup_and_not_the_machine(
    machine: Machine, vault: Vault
) -> None:
    alpha = machine.disks[0]
    machine.write(alpha, 0, 24 * MIB, 1)
    first = vault.backup(machine, scratch_limit=4 * MIB)

    def overwrite(call: str, name: str) -> None:
        if call == "put" and name.startswith("sessions/"):
            machine.write(alpha, 0, 8 * MIB, 2)
        elif call == "put":
            time.sleep(0.5)  # a store that is slow enough for somebody to look

    machine.write(alpha, MIB, MIB, 77)
    with pytest.raises(errors.ScratchLimit, match=r"4.0 MiB .* goes on"):
        vault.backup(machine, overwrite, scratch_limit=4 * MIB)
    machine.assert_untouched()
    assert vault.ids() == {first.group_id, *(member.backup_id for member in first.members)}
    group = vault.backup(machine, scratch_limit=4 * MIB)
    assert set(ways(group).values()) == {"incremental"}
    assert vault.restored(group) == machine.contents()
