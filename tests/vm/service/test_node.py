"""A whole node on LVM whose disk fails, and one that is started after its machine was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lunr.client.errors import JobFailed
from tests.support.initiator import Initiator, sh
from tests.support.waiting import PATIENCE, wait_until
from tests.vm.service.running import GROUP, World, stray_mappings

MIB = 1 << 20
SECTOR = 512


@pytest.fixture
def volume(world: World) -> Iterator[str]:
    """A volume of 1 GiB; all is as it must be when it is gone."""
    volume_id = world.client.volumes.create(size=1).id
    world.client.volumes.wait(volume_id, timeout=PATIENCE)
    yield volume_id
    world.client.volumes.delete(volume_id)
    world.wait_idle()
    world.check()


def write(device: Path, offset: int, data: bytes) -> None:
    file = os.open(device, os.O_RDWR)
    try:
        os.pwrite(file, data, offset)
        os.fsync(file)
    finally:
        os.close(file)


def read(device: Path, offset: int, length: int) -> bytes:
    """Not what is remembered of it."""
    file = os.open(device, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(file, length, offset)
    finally:
        os.close(file)


def test_a_backup_of_a_bad_sector_says_which_and_the_volume_can_be_used(
    world: World, volume: str
) -> None:
    client, device = world.client, Path(f"/dev/{GROUP}/volume-{volume}")
    data = os.urandom(2 * MIB)
    write(device, 6 * MIB, data)
    sector = 6 * MIB // SECTOR + 77
    world.disk.spoil(world.disk.sector_of(data[77 * SECTOR : 78 * SECTOR]))
    try:
        backup = client.backups.create(volume)
        with pytest.raises(JobFailed, match=f"sector {sector} of 512 bytes.*Input/output"):
            client.backups.wait(backup.id, timeout=PATIENCE)
        assert client.backups.get(backup.id).status == "ERROR"
        assert client.volumes.get(volume).status == "ACTIVE"
        write(device, 7 * MIB, b"goes on")
        assert read(device, 7 * MIB, 7) == b"goes on"
        there = ("bs=1M", "skip=6", "count=1", "iflag=direct")
        assert "Input/output" in sh("dd", f"if={device}", "of=/dev/null", *there, check=False)
    finally:
        world.disk.mend()
    client.backups.delete(backup.id)
    again = client.backups.create(volume)
    assert client.backups.wait(again.id, timeout=PATIENCE).status == "AVAILABLE"
    client.backups.delete(again.id)


def test_exports_are_back_after_the_machine_was_started_anew(
    world: World, volume: str, initiator: Initiator
) -> None:
    """An initiator elsewhere has waited, and goes on; another one gets in."""
    exported = world.export(volume)
    device = initiator.login(exported)
    write(device, 5 * MIB, b"before")
    world.reboot()
    world.wait_until_active()
    assert stray_mappings() == []
    wait_until(lambda: world.exported() == {volume}, what="the export", interval=0.5)
    initiator.wait_back()
    sh("dd", f"if={device}", "of=/dev/null", "bs=4k", "count=1", "iflag=direct")
    assert read(device, 5 * MIB, 6) == b"before"
    write(device, 9 * MIB, b"after")
    initiator.logout(exported)
    device = initiator.login(exported)
    assert read(device, 5 * MIB, 6) + read(device, 9 * MIB, 5) == b"beforeafter"
    initiator.logout(exported)
    world.client.exports.delete(volume)
    world.client.exports.wait_deleted(volume, timeout=PATIENCE)
