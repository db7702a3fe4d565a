"""The main job on LVM, with the kernel's own initiator, while the file system is in use."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from lunr.client import Client
from lunr.client.records import Export
from lunr.common import units
from lunr.storage.restore.dm_clone import device as clone_device
from tests.support.initiator import Initiator, sh
from tests.support.waiting import PATIENCE, wait_until
from tests.vm.service.running import World, told

#: Writes to a file of 4 MiB, synchronously, until its input ends: what goes on during a backup.
WRITER = """
import itertools, os, select, sys
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o600)
print("writing", flush=True)
for number in itertools.count():
    os.pwrite(file, os.urandom(65536), number % 64 * 65536)
    os.fsync(file)
    if select.select([0], [], [], 0.1)[0]:
        break
"""


def remove(client: Client, volumes: Sequence[str]) -> None:
    """Delete volumes and their exports."""
    for volume_id in volumes:
        client.exports.delete(volume_id)
    for volume_id in volumes:
        client.exports.wait_deleted(volume_id, timeout=PATIENCE)
        client.volumes.delete(volume_id)
    for volume_id in volumes:
        client.volumes.wait_deleted(volume_id, timeout=PATIENCE)


@contextlib.contextmanager
def mounted(device: Path, point: Path) -> Iterator[Path]:
    point.mkdir(exist_ok=True)
    sh("mount", device, point)
    try:
        yield point
    finally:
        sh("umount", point)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdout.readline()
    try:
        yield
        assert process.poll() is None, "the writer died: writes failed during the backup"
    finally:
        process.stdin.close()
        process.wait(PATIENCE)


def grown(initiator: Initiator, exported: Export) -> bool:
    """Whether the initiator sees 2 GiB; with tgtd it logs in again first."""
    initiator.rescan(exported)
    size = sh("blockdev", "--getsize64", initiator.devices(exported)[0])
    return int(size) == 2 * units.GIB


def write_files(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        (folder / f"file{number}").write_bytes(os.urandom(256 * units.KIB + number))
    os.sync()


def contents(folder: Path) -> dict[str, str]:
    """Every file below `folder`, and the SHA-256 of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_main_job(world: World, initiator: Initiator, tmp_path: Path) -> None:
    client = world.client
    volume = client.volumes.wait(client.volumes.create(size=1).id, timeout=PATIENCE)
    exported = world.export(volume.id)
    device = initiator.login(exported)
    sh("mkfs.ext4", "-q", device)
    kept: list[tuple[str, dict[str, str]]] = []
    with mounted(device, tmp_path / "mnt") as point:
        for number in range(2):
            write_files(point / f"round{number}", 40)
            known = {
                f"round{r}/{name}": digest
                for r in range(number + 1)
                for name, digest in contents(point / f"round{r}").items()
            }
            with writing(point / f"busy{number}"):
                backup = client.backups.create(volume.id)
                backup = client.backups.wait(backup.id, timeout=PATIENCE)
            kept.append((backup.id, known))
        first, second = (client.backups.get(id) for id, _ in kept)
        assert second.parent_id == first.id
        assert second.bytes_stored < 40 * units.MIB
        # A thin pool knows what has changed; of thick volumes no snapshot is kept.
        (node,) = client.admin.nodes.list()
        assert (second.bytes_read < 80 * units.MIB) == (node.pool == "thin")

        client.volumes.extend(volume.id, 2)
        client.volumes.wait(volume.id, timeout=PATIENCE)
        wait_until(lambda: grown(initiator, exported), what="the new size", interval=1.0)
        sh("resize2fs", device)
        assert contents(point / "round0") == {
            name.removeprefix("round0/"): digest for name, digest in kept[0][1].items()
        }
    initiator.logout(exported)

    made = [volume.id]
    for backup_id, known in kept:
        restored = client.volumes.create(backup=backup_id, fill="never")
        client.volumes.wait_usable(restored.id, timeout=PATIENCE)
        # By the kernel, where it can; tools/setup --vm builds what it needs for that.
        by_kernel = any(one["role"] == "filling" for one in told())
        assert by_kernel == clone_device.available()
        again = world.export(restored.id)
        with mounted(initiator.login(again), tmp_path / "mnt") as point:
            found = contents(point)
            assert {name: found.get(name) for name in known} == known
            if backup_id == second.id:
                # It is filled, and then no longer a filling one, while it is in use.
                with writing(point / "busy"):
                    client.volumes.update(restored.id, fill="eager")
                    client.volumes.wait(restored.id, timeout=PATIENCE)
                sh("sysctl", "-q", "vm.drop_caches=3")
                found = contents(point)
                assert {name: found.get(name) for name in known} == known
        initiator.logout(again)
        made.append(restored.id)
    remove(client, made)
