"""A real guest that writes all the time: of every cut, both disks are of one instant.

``LUNR_LIVE_CUTS`` says how many cuts; 100 take some minutes. The tests share a guest: to boot it
takes as long as all the rest.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lunr.backup.lazy_image import mount
from lunr.backup.read.restore import restore
from lunr.live.backup.groups import Group
from lunr.live.qemu.qmp import Monitor
from tests.support.thorough import THOROUGH, examples
from tests.support.waiting import PATIENCE, wait_until
from tests.system.live.conftest import Vault
from tests.system.live.kills.test_kill import killed
from tests.system.live.start.test_start import started
from tests.system.live.test_backup import ways
from tools.virtual.writer import guest as guests
from tools.virtual.writer.guest import Guest

CUTS = int(os.environ.get("LUNR_LIVE_CUTS") or examples(5, 40))


def need_kernel() -> None:
    """Skip the test where something for a guest is missing."""
    if not guests.KERNEL.exists():
        pytest.skip("Debian's kernel is not there (tools/setup --vm)")
    for program in ("qemu-system-x86_64", "busybox", "cpio", "modprobe", "mkfs.ext4", "debugfs"):
        if shutil.which(program, path="/usr/sbin:/sbin:/usr/bin:/bin") is None:
            pytest.skip(f"{program} is not installed (tools/setup --vm)")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    need_kernel()
    folder = tmp_path_factory.mktemp("guest")
    disks = [guests.make_disk(folder / name) for name in ("a.raw", "b.qcow2")]
    found = Guest(guests.make_initramfs(folder), *disks)
    yield found
    found.end()


@pytest.fixture
def guest(machine: Guest) -> Guest:
    """One that runs."""
    if not machine.is_running():
        machine.start()
    return machine


def restored(vault: Vault, group_id: str) -> tuple[Path, Path]:
    paths = vault.folder / f"{group_id}-a.img", vault.folder / f"{group_id}-b.img"
    for disk, path in zip("ab", paths, strict=True):
        restore(vault.repository, f"{group_id}-{disk}", path, create=True)
    return paths


@pytest.mark.timeout(120 + 20 * CUTS)
def test_every_cut_is_one_instant(guest: Guest, vault: Vault) -> None:
    made = []
    for number in range(CUTS):
        guest.await_writes()
        group = vault.backup(guest)
        assert set(ways(group).values()) == {"incremental" if number else "full"}
        made.append(group)
    counters = []
    for group in made:
        paths = restored(vault, group.group_id)
        counters.append(guests.check(*paths))
        for path in paths:
            path.unlink()
    assert counters == sorted(set(counters))  # it went on between the cuts
    stalls = sorted(group.stall_seconds * 1000 for group in made)
    print(f"cuts: {len(stalls)}, median {stalls[len(stalls) // 2]:.1f} ms, most {stalls[-1]:.1f}")


@pytest.mark.thorough  # below it starts from a group, too
def test_the_server_is_dead_and_it_starts_from_what_was_restored(
    guest: Guest, vault: Vault
) -> None:
    guest.await_writes()
    group = vault.backup(guest)
    guest.kill()
    guest.a, guest.b = restored(vault, group.group_id)
    counter = guests.check(guest.a, guest.b)
    guest.start()
    assert f"ready at {counter}" in guest.said()
    guest.await_writes()


def frozen(vault: Vault, guest: Guest) -> Group | None:
    """A backup whose file systems were frozen; None: the agent did not answer."""
    group = vault.backup(guest, agent=guest.agent)
    return group if group.frozen else None


def test_its_file_systems_are_frozen_and_always_thawed(
    guest: Guest, vault: Vault, caplog: pytest.LogCaptureFixture
) -> None:
    if not guests.AGENT.exists():
        pytest.skip("qemu-ga is not installed (Debian's qemu-guest-agent)")
    # The guest starts its agent behind.
    group = wait_until(lambda: frozen(vault, guest), what="the agent answers", interval=1.0)
    assert group.frozen == 2, caplog.text
    counters = [guests.check(*restored(vault, group.group_id))]
    for command in ("guest-fsfreeze-freeze", "stop", "guest-fsfreeze-thaw"):
        assert killed(guest, vault, command, str(guest.agent))
        # QEMU serves the next one when the guard is done.
        Monitor.open(guest.qmp, PATIENCE).close()
        guest.await_writes()
        group = vault.backup(guest)
        counters.append(guests.check(*restored(vault, group.group_id)))
    assert counters == sorted(set(counters))  # it writes


def test_it_is_killed_and_started_from_its_backup_while_its_disks_fill(
    guest: Guest, vault: Vault, tmp_path: Path
) -> None:
    guest.await_writes()
    group = vault.backup(guest)
    guest.kill()
    counter = guests.check(*restored(vault, group.group_id))
    folder, late = tmp_path / "started", tmp_path / "qmp"
    command = started(vault, group.group_id, folder, late)
    try:
        assert command.stdout is not None
        guest.start(shlex.split(command.stdout.readline()))
        assert f"ready at {counter}" in guest.said()
        assert all(_backing(path) for path in folder.glob("*.qcow2"))
        late.symlink_to(guest.qmp)  # so they are filled while it writes
        assert "filled" in command.stdout.read()
        assert command.wait(PATIENCE) == 0
    finally:
        command.kill()
        command.wait()
        for disk in "ab":
            mount.detach_dead(folder / f"{group.group_id}-{disk}")
    guest.await_writes()
    guest.kill()
    guest.a, guest.b = (folder / f"{group.group_id}-{disk}.qcow2" for disk in "ab")
    assert sorted(folder.iterdir()) == [guest.a, guest.b]
    assert not _backing(guest.a) and not _backing(guest.b)
    raw = tmp_path / "a.whole", tmp_path / "b.whole"
    for path, whole in zip((guest.a, guest.b), raw, strict=True):
        subprocess.run(["qemu-img", "convert", "-O", "raw", str(path), str(whole)], check=True)
    assert guests.check(*raw) > counter
    if THOROUGH:
        guest.start()  # it needs nothing of lunr


def _backing(path: Path) -> str | None:
    """What the qcow2 file `path` stands upon."""
    argv = ["qemu-img", "info", "-U", "--output=json", str(path)]
    told = subprocess.run(argv, check=True, capture_output=True).stdout
    backing: str | None = json.loads(told).get("backing-filename")
    return backing
