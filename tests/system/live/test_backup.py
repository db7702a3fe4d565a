"""Backups of a real QEMU, compared byte for byte with what its guest had written."""

from __future__ import annotations

import random
from pathlib import Path

from lunr.live.backup.groups import Group
from tests.system.live.conftest import Vault
from tests.system.live.machines import MIB, Disk, Machine


def kept(group: Group) -> set[str]:
    """The bitmaps that the backup after `group` builds upon."""
    return {f"lunr-since-{group.group_id}", f"lunr-size-{group.group_id}"}


def ways(group: object) -> dict[str, str]:
    return {member.disk: member.way for member in group.members}  # type: ignore[attr-defined]


def test_full_then_increments(machine: Machine, vault: Vault) -> None:
    draw = random.Random()
    machine.write_some(draw, 20)
    made = [(vault.backup(machine), machine.contents())]
    assert ways(made[0][0]) == {"alpha": "full", "beta": "full"}
    for _ in range(3):
        machine.write_some(draw)
        made.append((vault.backup(machine), machine.contents()))
        assert ways(made[-1][0]) == {"alpha": "incremental", "beta": "incremental"}
        machine.assert_untouched()
    for group, contents in made:
        assert vault.restored(group) == contents
    assert machine.bitmaps() == dict.fromkeys(("alpha", "beta"), kept(made[-1][0]))


def test_an_increment_reads_what_changed_and_no_more(machine: Machine, vault: Vault) -> None:
    alpha = machine.disks[0]
    for at in range(0, 24, 4):
        machine.write(alpha, at * MIB, 4 * MIB, at + 1)
    vault.backup(machine)
    for at in (1, 7, 13, 22):
        machine.write(alpha, at * MIB, 65536, 200 + at)
    group = vault.backup(machine)
    member = group.member("alpha")
    assert member is not None
    # The last block is always read: see lunr/live/qemu/bitmaps.py.
    assert member.changed_bytes == member.bytes_read == 4 * 65536 + 32768
    beta = group.member("beta")
    assert beta is not None
    assert beta.bytes_read == 512
    assert vault.restored(group) == machine.contents()


def test_what_another_machine_has_is_not_stored_again(tmp_path: Path, vault: Vault) -> None:
    """Two machines of one image, each with a disk that only it has."""
    stored = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        machine = Machine(
            folder, [Disk("root", folder / "root", 16 * MIB, "raw", "virtio")], name=name
        )
        try:
            for at in range(0, 16, 4):
                machine.write(machine.disks[0], at * MIB, 4 * MIB, at + 1)
            machine.write(machine.disks[0], 0, 4096, 200 + len(stored))
            group = vault.backup(machine)
            assert vault.restored(group) == machine.contents()
        finally:
            machine.end()
        root = vault.repository.load_root(group.members[0].backup_id)
        stored.append(root.statistics.objects_stored)
    assert stored == [5, 2]  # four chunks and a segment; one chunk and a segment
