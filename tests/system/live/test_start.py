"""A machine that is started from a group at once, and filled behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.services import need_root
from tests.support.waiting import wait_until
from tests.system.live.conftest import Vault
from tests.system.live.machines import MIB, Disk, Machine


def started(vault: Vault, group_id: str, folder: Path, qmp: Path) -> subprocess.Popen[str]:
    need_root()
    if not Path("/dev/fuse").exists():
        pytest.skip("needs /dev/fuse (the kernel's FUSE)")
    argv = ["start", group_id, str(folder), "--store", vault.url, "--qmp", str(qmp)]
    return subprocess.Popen(
        [sys.executable, "-m", "lunr.live.command", *argv],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )


def test_it_is_used_at_once_and_filled(machine: Machine, vault: Vault, tmp_path: Path) -> None:
    draw = random.Random()
    machine.write_some(draw, 40)
    group = vault.backup(machine)
    contents = machine.contents()
    machine.kill()
    folder = tmp_path / "started"
    command = started(vault, group.group_id, folder, machine.qmp)
    try:
        assert command.stdout is not None
        line = command.stdout.readline()
        machine.disks = []
        for name, bus in (("alpha", "virtio"), ("beta", "scsi")):
            path = folder / f"{group.group_id}-{name}.qcow2"
            assert f"file.filename={path}" in line
            disk = Disk.__new__(Disk)
            disk.name, disk.path, disk.kind, disk.bus = name, path, "qcow2", bus
            disk.content = bytearray(contents[name])
            machine.disks.append(disk)
        machine.start()
        machine.write(machine.disks[0], 3 * MIB + 512, 100 * 1024, 77)
        machine.io(machine.disks[0], "flush")
        assert "filled" in command.stdout.read()
        assert command.wait(30) == 0
    finally:
        command.kill()
        command.wait()
    machine.kill()  # what was filled is on the disk, though the guest has not flushed it
    for disk in machine.disks:
        raw = tmp_path / f"{disk.name}.whole"
        convert = ["qemu-img", "convert", "-O", "raw", str(disk.path), str(raw)]
        subprocess.run(convert, check=True)
        assert raw.read_bytes() == bytes(disk.content)
    assert sorted(path.suffix for path in folder.iterdir()) == [".qcow2", ".qcow2"]
    machine.start()


def test_it_can_be_given_up(machine: Machine, vault: Vault, tmp_path: Path) -> None:
    machine.write_some(random.Random())
    group = vault.backup(machine)
    command = started(vault, group.group_id, tmp_path / "started", tmp_path / "nobody")
    assert command.stdout is not None
    assert "-blockdev" in command.stdout.readline()
    command.send_signal(signal.SIGTERM)
    assert command.wait(30) == 0
    points = [path for path in (tmp_path / "started").iterdir() if path.is_dir()]
    wait_until(lambda: not points, what="the mounts are gone")
