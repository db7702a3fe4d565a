"""A machine that is started from a group at once, and filled behind."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lunr.backup.lazy_image import mount
from lunr.live.qemu.qmp import Monitor
from lunr.live.start import instant_start
from tests.support.services import need_fuse
from tests.support.waiting import PATIENCE
from tests.system.live.conftest import Vault
from tests.system.live.machines import MIB, Machine


def started(vault: Vault, group_id: str, folder: Path, qmp: Path) -> subprocess.Popen[str]:
    need_fuse()
    argv = ["start", group_id, str(folder), "--store", vault.url, "--qmp", str(qmp)]
    return subprocess.Popen(
        [sys.executable, "-m", "lunr.live.cli", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])},
    )


def boot(machine: Machine, command: subprocess.Popen[str], extra: list[str] | None = None) -> None:
    """Start `machine` as `command` says."""
    assert command.stdout is not None
    words = shlex.split(command.stdout.readline())
    machine.start([*words, *(extra or [])])
    # It comes up with what it had, by whatever names.
    kinds = {
        block["qdev"].removesuffix("/virtio-backend").rpartition("/")[2]: block
        for block in machine.guest.execute("query-block")
    }
    assert kinds.keys() == {"alpha", "beta"}


def contents(folder: Path, group_id: str, machine: Machine) -> dict[str, bytes]:
    """What the disks that were filled have by themselves."""
    found = {}
    for disk in machine.disks:
        raw = machine.folder / f"{disk.name}.whole"
        path = folder / f"{group_id}-{disk.name}.qcow2"
        subprocess.run(["qemu-img", "convert", "-O", "raw", str(path), str(raw)], check=True)
        found[disk.name] = raw.read_bytes()
    return found


def test_it_is_used_at_once_and_filled(machine: Machine, vault: Vault, tmp_path: Path) -> None:
    machine.write_some(random.Random(), 40)
    group = vault.backup(machine)
    machine.kill()
    folder = tmp_path / "started, here"
    command = started(vault, group.group_id, folder, machine.qmp)
    try:
        boot(machine, command)
        assert {disk.qdev for disk in machine.disks} == {
            f"{block['qdev']}" if block["qdev"].startswith("/")
            else f"/machine/peripheral/{block['qdev']}"
            for block in machine.guest.execute("query-block")
        }  # fmt: skip
        machine.write(machine.disks[0], 3 * MIB + 512, 100 * 1024, 77)
        machine.io(machine.disks[0], "flush")
        assert command.stdout is not None
        assert "filled" in command.stdout.read()
        assert command.wait(PATIENCE) == 0
    finally:
        command.kill()
        command.wait()
    machine.kill()  # what was filled is on the disk, though the guest has not flushed it
    assert contents(folder, group.group_id, machine) == machine.contents()
    assert sorted(path.suffix for path in folder.iterdir()) == [".qcow2", ".qcow2"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    machine.start()


def test_a_start_that_was_killed_is_gone_on_with(
    machine: Machine, vault: Vault, tmp_path: Path
) -> None:
    machine.write_some(random.Random(), 40)
    group = vault.backup(machine)
    machine.kill()
    folder = tmp_path / "started"
    command = started(vault, group.group_id, folder, tmp_path / "nobody")
    try:
        boot(machine, command)
        machine.write(machine.disks[0], 3 * MIB + 512, 100 * 1024, 77)
        machine.io(machine.disks[0], "flush")
    finally:
        command.kill()
        command.wait()
    machine.kill()
    # One that was killed while it made the file of a disk:
    beta = folder / f"{group.group_id}-beta.qcow2"
    beta.with_suffix(".partial").write_bytes(beta.read_bytes()[:70000])
    beta.unlink()
    command = started(vault, group.group_id, folder, machine.qmp)
    try:
        boot(machine, command)
        machine.write(machine.disks[1], MIB, 100 * 1024, 78)
        assert command.stdout is not None
        assert "filled" in command.stdout.read()
        assert command.wait(PATIENCE) == 0
    finally:
        command.kill()
        command.wait()
    machine.kill()
    assert contents(folder, group.group_id, machine) == machine.contents()
    machine.start()


def test_the_disks_stay_when_they_can_not_be_filled(
    machine: Machine, vault: Vault, tmp_path: Path
) -> None:
    machine.write_some(random.Random(), 40)
    group = vault.backup(machine)
    # The machine that runs has other disks.
    command = started(vault, group.group_id, tmp_path / "started", machine.qmp)
    try:
        assert command.stderr is not None
        said = iter(command.stderr)
        assert any("does not use" in line and "stay until Ctrl-C" in line for line in said)
        shown = tmp_path / "started" / f"{group.group_id}-alpha" / "volume"
        with shown.open("rb") as file:
            command.send_signal(signal.SIGTERM)
            time.sleep(1)
            assert command.poll() is None  # somebody uses them
            assert file.read() == machine.contents()["alpha"]
        assert command.wait(PATIENCE) == 1
    finally:
        command.kill()
        command.wait()


def overlay(
    machine: Machine, name: str, *, broken: bool = False
) -> tuple[instant_start.Disk, list[str]]:
    """A disk over a file that has all, and the options for QEMU; `broken`: one read fails."""
    below = machine.folder / f"{name}.below"
    below.write_bytes(b"x" * MIB)
    image: dict[str, Any] = {"driver": "file", "filename": str(below)}
    if broken:
        inject = [{"event": "read_aio", "sector": 1024, "once": True}]
        image = {"driver": "blkdebug", "image": image, "inject-error": inject}
    backing = json.dumps({"driver": "raw", "file": image})
    disk = instant_start.Disk.__new__(instant_start.Disk)
    disk.name, disk.path = name, machine.folder / f"{name}.over"
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", f"json:{backing}"]
    subprocess.run([*argv, str(disk.path), str(MIB)], check=True)
    options = f"driver=qcow2,node-name={name},file.driver=file,file.filename={disk.path}"
    return disk, ["-blockdev", options, "-device", f"virtio-blk-pci,drive={name},id={name}"]


def test_a_read_that_fails_is_tried_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(instant_start, "_TRY_AGAIN", 0.1)
    disk, options = overlay(machine, "broken", broken=True)
    machine.kill()
    machine.disks, machine.extra = [], tuple(options)
    machine.start()
    with Monitor.open(machine.qmp) as monitor:
        instant_start.fill(monitor, [disk], threading.Event())
    assert "tries again" in caplog.text
    assert machine.guest.execute("query-block")[0]["inserted"]["backing_file_depth"] == 0


def test_no_job_is_left_when_it_is_interrupted(machine: Machine) -> None:
    disk, options = overlay(machine, "slow")
    machine.kill()
    machine.disks, machine.extra = [], tuple(options)
    machine.start()
    stop = threading.Event()
    stop.set()
    with Monitor.open(machine.qmp) as monitor:
        instant_start.fill(monitor, [disk], stop)
        assert machine.guest.execute("query-jobs") == []
        instant_start.fill(monitor, [disk], threading.Event())
    assert machine.guest.execute("query-jobs") == []
    assert machine.guest.execute("query-block")[0]["inserted"]["backing_file_depth"] == 0


def test_it_can_be_given_up(machine: Machine, vault: Vault, tmp_path: Path) -> None:
    machine.write_some(random.Random())
    group = vault.backup(machine)
    command = started(vault, group.group_id, tmp_path / "started", tmp_path / "nobody")
    try:
        assert command.stdout is not None
        assert "-blockdev" in command.stdout.readline()
        command.send_signal(signal.SIGTERM)
        assert command.wait(PATIENCE) == 0
    finally:
        command.kill()
        command.wait()
        for disk in machine.disks:
            mount.detach_dead(tmp_path / "started" / f"{group.group_id}-{disk.name}")
    assert [path for path in (tmp_path / "started").iterdir() if path.is_dir()] == []
