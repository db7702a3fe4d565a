"""The store, or the target of a disk, is killed in the middle of a backup.

:mod:`tests.system.live.kills.test_kill_servers` does it at every step.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from lunr.backup.errors import StoreUnavailable
from lunr.live import errors
from lunr.live.qemu import exports
from tests.support.faults.relay import MortalSwift
from tests.support.services import Tgtd
from tests.system.live.conftest import FarAndNear, Vault
from tests.system.live.machines import MIB, Machine
from tests.system.live.test_backup import kept, ways


def once(act: Callable[[], object]) -> Callable[[str, str], None]:
    """Does `act` when the first object that holds data is put."""
    done = threading.Event()

    def before(call: str, name: str) -> None:
        if call == "put" and name.startswith(("chunks/", "patches/")) and not done.is_set():
            done.set()
            act()

    return before


def test_swift_is_killed(machine: Machine, tmp_path: Path, mortal_swift: MortalSwift) -> None:
    place = f"swift:live-{uuid.uuid4().hex[:12]}"
    vault = Vault(tmp_path, place, {**mortal_swift.access, "retries": 1, "timeout": 5})
    draw = random.Random()
    try:
        machine.write_some(draw, 20)
        first = vault.backup(machine)
        machine.write(machine.disks[0], MIB, MIB, 77)

        def kill() -> None:
            mortal_swift.kill()
            machine.write_some(draw, 5)  # the guest goes on

        with pytest.raises(StoreUnavailable):
            vault.backup(machine, once(kill), concurrency=1)
        machine.assert_untouched()
        assert machine.bitmaps() == dict.fromkeys(("alpha", "beta"), kept(first))
        machine.write_some(draw, 5)
        mortal_swift.start()
        group = vault.backup(machine)
        assert set(ways(group).values()) == {"incremental"}
        assert vault.restored(group) == machine.contents()
    finally:
        vault.store.close()


@pytest.mark.parametrize("in_time", [True, False], ids=["in time", "too late"])
def test_a_target_is_killed_and_comes_back(
    tgtd: Tgtd,
    far_and_near: FarAndNear,
    vault: Vault,
    monkeypatch: pytest.MonkeyPatch,
    in_time: bool,
) -> None:
    machine, far, near = far_and_near
    draw = random.Random()
    returns: list[threading.Timer] = []
    if not in_time:
        monkeypatch.setattr(exports, "_PATIENCE", 1.0)

    def come_back() -> None:
        tgtd.start()
        far.serve()

    def kill() -> None:
        tgtd.kill()
        machine.write(near, MIB, MIB, draw.randrange(1, 256))  # on its other disk the guest goes on
        returns.append(threading.Timer(1.0 if in_time else 4.0, come_back))
        returns[0].start()

    try:
        machine.write_some(draw, 10)
        for offset in range(0, 16 * MIB, 2 * MIB):
            machine.write(far, offset, MIB, draw.randrange(1, 256))
        vault.backup(machine)
        for offset in range(0, 16 * MIB, 2 * MIB):
            machine.write(far, offset, MIB, draw.randrange(1, 256))
        at_cut = machine.contents()
        before = vault.ids()
        if in_time:
            group = vault.backup(machine, once(kill), concurrency=1)
            assert vault.restored(group) == at_cut
        else:
            with pytest.raises((errors.ExportLost, errors.MonitorSilent)):
                vault.backup(machine, once(kill), concurrency=1)
            assert vault.ids() == before
        returns[0].join()
        machine.write(far, 0, 512, far.content[0])  # when QEMU has logged in again
        machine.write_some(draw, 10)
        group = vault.backup(machine)
        assert set(ways(group).values()) == {"incremental"}
        assert vault.restored(group) == machine.contents()
        machine.assert_untouched()
    finally:
        for timer in returns:
            timer.join()


def test_a_target_that_is_away_stops_the_backup_and_not_the_machine(
    tgtd: Tgtd, far_and_near: FarAndNear, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, far, near = far_and_near
    monkeypatch.setattr(exports, "_PATIENCE", 1.0)
    took: list[float] = []
    ended = threading.Event()

    def go_on() -> None:
        while not ended.wait(0.05):
            began = time.monotonic()
            machine.write(near, MIB, 4096, near.content[MIB])
            took.append(time.monotonic() - began)

    def come_back() -> None:
        tgtd.start()
        far.serve()

    guest = threading.Thread(target=go_on)
    returns = threading.Timer(6.0, come_back)
    try:
        machine.write_some(random.Random(), 20)
        vault.backup(machine)
        machine.write(far, 0, MIB, 77)
        tgtd.kill()
        guest.start()
        returns.start()
        with pytest.raises(errors.ExportLost, match=r"far .* goes on"):
            vault.backup(machine)
        ended.set()
        guest.join()
        assert max(took) < 3, "without that disk, it went on"
        returns.join()
        machine.write(far, 0, 512, 77)  # when QEMU has logged in again
        machine.assert_untouched()
        group = vault.backup(machine)
        assert set(ways(group).values()) == {"incremental"}
        assert vault.restored(group) == machine.contents()
    finally:
        ended.set()
        returns.join()
        guest.join()
