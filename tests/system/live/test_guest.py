"""A real guest that writes all the time: of every cut, both disks are of one instant.

``LUNR_LIVE_CUTS`` says how many cuts; 100 take some minutes.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lunr.backup.restore import restore
from lunr.live.groups import Group
from lunr.live.qmp import Monitor
from tests.support.waiting import wait_until
from tests.system.live import guests
from tests.system.live.conftest import Vault
from tests.system.live.guests import Guest
from tests.system.live.test_backup import ways
from tests.system.live.test_kill import killed
from tests.system.live.test_start import started

CUTS = int(os.environ.get("LUNR_LIVE_CUTS", "11"))


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    guests.need_kernel()
    disks = [guests.make_disk(tmp_path / name) for name in ("a.raw", "b.qcow2")]
    found = Guest(guests.make_initramfs(tmp_path), *disks)
    try:
        found.start()
        yield found
    finally:
        found.end()


def restored(vault: Vault, group_id: str) -> tuple[Path, Path]:
    paths = vault.folder / f"{group_id}-a.img", vault.folder / f"{group_id}-b.img"
    for disk, path in zip("ab", paths, strict=True):
        restore(vault.repository, f"{group_id}-{disk}", path, create=True)
    return paths


@pytest.mark.timeout(60 + 20 * CUTS)
def test_every_cut_is_one_instant(guest: Guest, vault: Vault, tmp_path: Path) -> None:
    made = []
    for number in range(CUTS):
        time.sleep(0.5)
        group = vault.backup(guest)
        assert set(ways(group).values()) == {"incremental" if number else "full"}
        made.append(group)
    guest.kill()
    counters = []
    for group in made:
        paths = restored(vault, group.group_id)
        counters.append(guests.check(*paths))
        for path in paths:
            path.unlink()
    assert counters == sorted(set(counters))  # it went on between the cuts
    stalls = sorted(group.stall_seconds * 1000 for group in made)
    print(f"cuts: {len(stalls)}, median {stalls[len(stalls) // 2]:.1f} ms, most {stalls[-1]:.1f}")

    # The server is dead; the guest starts again from the last backup, and goes on.
    paths = restored(vault, made[-1].group_id)
    shutil.copy(paths[0], guest.a)
    guest.b = tmp_path / "b.raw"
    shutil.copy(paths[1], guest.b)
    guest.start()
    assert f"ready at {counters[-1]}" in guest.said()


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
        Monitor.open(guest.qmp, 60).close()  # QEMU serves the next one when the guard is done
        time.sleep(1)
        group = vault.backup(guest)
        counters.append(guests.check(*restored(vault, group.group_id)))
    assert counters == sorted(set(counters))  # it writes


def test_it_is_killed_and_started_from_its_backup_while_its_disks_fill(
    guest: Guest, vault: Vault, tmp_path: Path
) -> None:
    time.sleep(1)
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
        assert command.wait(30) == 0
    finally:
        command.kill()
        command.wait()
    time.sleep(1)
    guest.kill()
    guest.a, guest.b = (folder / f"{group.group_id}-{disk}.qcow2" for disk in "ab")
    assert sorted(folder.iterdir()) == [guest.a, guest.b]
    assert not _backing(guest.a) and not _backing(guest.b)
    raw = tmp_path / "a.whole", tmp_path / "b.whole"
    for path, whole in zip((guest.a, guest.b), raw, strict=True):
        subprocess.run(["qemu-img", "convert", "-O", "raw", str(path), str(whole)], check=True)
    assert guests.check(*raw) > counter
    guest.start()  # it needs nothing of lunr


def _backing(path: Path) -> str | None:
    """What the qcow2 file `path` stands upon."""
    argv = ["qemu-img", "info", "-U", "--output=json", str(path)]
    told = subprocess.run(argv, check=True, capture_output=True).stdout
    backing: str | None = json.loads(told).get("backing-filename")
    return backing
