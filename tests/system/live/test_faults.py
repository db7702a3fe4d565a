"""Whatever happens to a backup: the machine goes on, and the next backup is complete."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lunr.backup.errors import StoreUnavailable
from lunr.common.errors import Cancelled, LunrError
from lunr.live import errors
from lunr.live.backup.backup import Options
from lunr.live.qemu.qmp import Monitor
from tests.system.live.conftest import Vault
from tests.system.live.machines import _HALT, MIB, Disk, Machine
from tests.system.live.test_backup import kept, ways


def test_what_is_written_after_the_cut_is_not_in_it_but_in_the_next(
    machine: Machine, vault: Vault
) -> None:
    draw = random.Random()
    machine.write_some(draw, 20)
    for expected in ("full", "incremental", "incremental"):
        at_cut = machine.contents()

        def write(call: str, _name: str) -> None:
            # The session's first object is put after the cut, before anything is read.
            if call == "put":
                machine.write_some(draw, 3)

        group = vault.backup(machine, write, concurrency=1)
        assert set(ways(group).values()) == {expected}
        assert vault.restored(group) == at_cut
        assert machine.contents() != at_cut
        machine.write_some(draw, 3)
    group = vault.backup(machine)
    assert vault.restored(group) == machine.contents()


def test_what_is_discarded_after_the_cut_is_in_it(machine: Machine, vault: Vault) -> None:
    # QEMU 7.2 takes the discarded ranges for zeros when a read or a map goes across their ends.
    for disk in machine.disks:
        machine.write(disk, MIB + 512, 3 * MIB, 215)
    for expected in ("full", "incremental"):
        at_cut = machine.contents()

        def discard(call: str, name: str) -> None:
            if call == "put" and name.startswith("sessions/"):
                for disk in machine.disks:
                    machine.discard(disk, MIB + 65536 + 512, 200 * 1024)
                    machine.discard(disk, 3 * MIB, MIB + 512)

        group = vault.backup(machine, discard)
        assert set(ways(group).values()) == {expected}
        assert vault.restored(group) == at_cut
        for disk in machine.disks:
            machine.write(disk, MIB, 3 * MIB, 100)


def test_a_store_that_fails_leaves_no_backup_and_loses_no_change(
    machine: Machine, vault: Vault
) -> None:
    draw = random.Random()
    machine.write_some(draw)
    first = vault.backup(machine)
    before = vault.ids()
    # The roots of alpha, of beta, and what ties them.
    for root in ("-alpha", "-beta", "Z"):
        machine.write_some(draw)

        def fail(call: str, name: str, root: str = root) -> None:
            if call == "put" and name.startswith("roots/") and name.endswith(root):
                raise StoreUnavailable(store="here", reason="it is away.")

        with pytest.raises(StoreUnavailable):
            vault.backup(machine, fail)
        assert vault.ids() == before
        machine.assert_untouched()
        assert machine.bitmaps() == dict.fromkeys(("alpha", "beta"), kept(first))
    group = vault.backup(machine)
    assert ways(group) == {"alpha": "incremental", "beta": "incremental"}
    assert vault.restored(group) == machine.contents()


def test_a_backup_can_be_cancelled(machine: Machine, vault: Vault) -> None:
    machine.write_some(random.Random())
    options = Options()
    options.cancel.set()
    with pytest.raises(Cancelled):
        vault.backup(machine, cancel=options.cancel)
    assert vault.ids() == set()
    machine.assert_untouched()


def test_a_disk_whose_bitmap_is_gone_is_compared_the_other_not(
    machine: Machine, vault: Vault
) -> None:
    draw = random.Random()
    machine.write_some(draw, 20)
    first = vault.backup(machine)
    machine.write_some(draw)
    bitmap = {"node": "node-alpha", "name": f"lunr-since-{first.group_id}"}
    machine.guest.execute("block-dirty-bitmap-remove", bitmap)
    group = vault.backup(machine)
    assert ways(group) == {"alpha": "compared", "beta": "incremental"}
    member = group.member("alpha")
    assert member is not None
    assert "no bitmap" in member.reason
    assert vault.restored(group) == machine.contents()


def test_a_bitmap_that_was_not_recording_is_not_believed(machine: Machine, vault: Vault) -> None:
    draw = random.Random()
    first = vault.backup(machine)
    bitmap = {"node": "node-beta", "name": f"lunr-since-{first.group_id}"}
    machine.guest.execute("block-dirty-bitmap-disable", bitmap)
    machine.write_some(draw)
    group = vault.backup(machine)
    assert ways(group) == {"alpha": "incremental", "beta": "compared"}
    assert vault.restored(group) == machine.contents()


def test_a_bitmap_of_a_backup_that_was_deleted_is_not_believed(
    machine: Machine, vault: Vault
) -> None:
    draw = random.Random()
    machine.write_some(draw, 20)
    oldest = vault.backup(machine)
    machine.write_some(draw)
    newest = vault.backup(machine)
    vault.repository.delete_root(f"{newest.group_id}-alpha")
    machine.write_some(draw)
    group = vault.backup(machine)
    assert ways(group) == {"alpha": "compared", "beta": "compared"}
    parent = vault.repository.load_root(f"{group.group_id}-alpha").parent_id
    assert parent == f"{oldest.group_id}-alpha"
    assert vault.restored(group) == machine.contents()


def test_qemu_that_was_started_again_is_compared(machine: Machine, vault: Vault) -> None:
    draw = random.Random()
    machine.write_some(draw, 20)
    vault.backup(machine)
    machine.write_some(draw)
    for disk in machine.disks:  # a guest that writes without a flush may lose it
        machine.io(disk, "flush")
    machine.kill()
    machine.start()
    machine.write_some(draw)
    group = vault.backup(machine)
    assert ways(group) == {"alpha": "compared", "beta": "compared"}
    assert vault.restored(group) == machine.contents()


def test_qemu_that_is_killed_meanwhile(machine: Machine, vault: Vault) -> None:
    machine.write_some(random.Random(), 20)

    def kill(call: str, name: str) -> None:
        if call == "put" and not name.startswith("sessions/") and machine.process:
            machine.process.kill()
            machine.process.wait()

    with pytest.raises(errors.ExportLost):
        vault.backup(machine, kill, concurrency=1)
    assert vault.ids() == set()
    machine.start()


def resize(machine: Machine, disk: Disk, size: int) -> None:
    machine.guest.execute("block_resize", {"node-name": f"node-{disk.name}", "size": size})
    disk.content = disk.content[:size] + bytes(max(0, size - len(disk.content)))


@pytest.mark.parametrize("less", [10 * MIB, 512], ids=["half", "a sector"])
def test_disks_that_shrank_and_grew_again(machine: Machine, vault: Vault, less: int) -> None:
    for disk in machine.disks:
        machine.write(disk, 0, len(disk.content), 1)
    vault.backup(machine)
    for disk in machine.disks:
        size = len(disk.content)
        smaller = size - less
        if disk.kind == "qcow2":  # what is left of a cluster comes back with it
            smaller = smaller // 65536 * 65536
        resize(machine, disk, smaller)
        resize(machine, disk, size)
        if less > 512:
            machine.write(disk, size - 4096, 2048, 2)  # a bit of the last block is set again
    group = vault.backup(machine)
    assert vault.restored(group) == machine.contents()
    if less > 512:
        assert ways(group) == {"alpha": "compared", "beta": "compared"}
        assert all(member.reason == "it was resized." for member in group.members)
    group = vault.backup(machine)
    assert ways(group) == {"alpha": "incremental", "beta": "incremental"}
    assert vault.restored(group) == machine.contents()


def test_disks_that_grew_and_shrank_again(machine: Machine, vault: Vault) -> None:
    alpha = machine.disks[0]
    machine.write(alpha, 0, 24 * MIB, 1)
    vault.backup(machine)
    resize(machine, alpha, 30 * MIB)
    machine.write(alpha, 20 * MIB, 8 * MIB, 2)
    resize(machine, alpha, 24 * MIB)
    group = vault.backup(machine)
    assert vault.restored(group) == machine.contents()


@pytest.mark.parametrize("first", [True, False], ids=["full", "incremental"])
def test_a_disk_that_is_resized_meanwhile(machine: Machine, vault: Vault, first: bool) -> None:
    beta = machine.disks[1]
    size = len(beta.content)
    machine.write(beta, 0, size, 1)
    if not first:
        vault.backup(machine)
    before = vault.ids()
    machine.write(beta, 10 * MIB, MIB, 2)

    def shrink(call: str, name: str) -> None:
        if call == "put" and name.startswith("sessions/"):
            resize(machine, beta, MIB)
            resize(machine, beta, size)

    with pytest.raises(LunrError):
        vault.backup(machine, shrink)
    assert vault.ids() == before
    machine.assert_untouched()
    group = vault.backup(machine)
    assert vault.restored(group) == machine.contents()


def test_a_disk_that_grows_and_one_that_is_added(
    machine: Machine, vault: Vault, tmp_path: Path
) -> None:
    draw = random.Random()
    machine.write_some(draw, 20)
    vault.backup(machine)
    alpha = machine.disks[0]
    resize(machine, alpha, 31 * MIB)
    machine.write(alpha, 30 * MIB, 4096, 9)
    gamma = Disk("gamma", tmp_path / "gamma", 5 * MIB, "raw", "scsi")
    file = {"driver": "file", "filename": str(gamma.path)}
    machine.guest.execute(
        "blockdev-add", {"driver": "raw", "node-name": "node-gamma", "file": file}
    )
    device = {"driver": "scsi-hd", "bus": "scsi.0", "drive": "node-gamma", "id": "gamma"}
    machine.guest.execute("device_add", device)
    machine.disks.append(gamma)
    machine.write_some(draw)
    group = vault.backup(machine)
    assert ways(group) == {"alpha": "compared", "beta": "incremental", "gamma": "full"}
    assert vault.restored(group) == machine.contents()
    machine.write_some(draw)
    group = vault.backup(machine)
    assert set(ways(group).values()) == {"incremental"}
    assert vault.restored(group) == machine.contents()


def test_a_paused_machine_stays_paused(machine: Machine, vault: Vault) -> None:
    machine.write_some(random.Random())
    machine.guest.execute("stop")
    group = vault.backup(machine)
    assert machine.status() == "paused"
    assert group.stall_seconds == 0.0
    assert vault.restored(group) == machine.contents()


# --- what is refused ---------------------------------------------------------------------


def test_the_memory_of_the_firmware_is_left_out(
    tmp_path: Path, vault: Vault, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    disk = Disk("alpha", tmp_path / "alpha", MIB, "raw", "virtio")
    (tmp_path / "code").write_bytes(_HALT)
    (tmp_path / "vars").write_bytes(bytes(MIB))
    flash = "if=pflash,format=raw"
    machine = Machine(
        tmp_path,
        [disk],
        *("-drive", f"{flash},unit=0,readonly=on,file={tmp_path}/code"),
        *("-drive", f"{flash},unit=1,file={tmp_path}/vars"),
    )
    try:
        machine.write(disk, 0, 4096, 7)
        group = vault.backup(machine)
        assert vault.restored(group) == machine.contents()
        assert "/machine/system.flash1" in caplog.text
        assert "system.flash0" not in caplog.text
    finally:
        machine.end()


def test_iothreads_are_refused(tmp_path: Path, vault: Vault) -> None:
    disk = Disk("alpha", tmp_path / "alpha", MIB, "raw", "virtio")
    options = disk.options()
    options[-1] += ",iothread=thread"
    disk.options = lambda: options  # type: ignore[method-assign]
    machine = Machine(tmp_path, [disk], "-object", "iothread,id=thread")
    try:
        with pytest.raises(errors.CannotBackUp, match="iothread"):
            vault.backup(machine)
        machine.assert_untouched()
    finally:
        machine.end()


def test_iothreads_of_a_controller_are_refused(tmp_path: Path, vault: Vault) -> None:
    disk = Disk("alpha", tmp_path / "alpha", MIB, "raw", "scsi")
    options = disk.options()
    options[-1] += ",bus=threaded.0"
    disk.options = lambda: [  # type: ignore[method-assign]
        *("-object", "iothread,id=thread"),
        *("-device", "virtio-scsi-pci,id=threaded,iothread=thread"),
        *options,
    ]
    machine = Machine(tmp_path, [disk])
    try:
        with pytest.raises(errors.CannotBackUp, match="iothread"):
            vault.backup(machine)
    finally:
        machine.end()


def test_what_is_not_there_is_named(machine: Machine, vault: Vault, tmp_path: Path) -> None:
    with pytest.raises(errors.CannotBackUp, match="no disk delta; it has: alpha, beta"):
        vault.backup(machine, disks=["alpha", "delta"])
    with pytest.raises(errors.CannotBackUp, match="shorter name"):
        vault.backup(machine, machine="x" * 60)
    with pytest.raises(errors.CannotBackUp, match="no scratch file"):
        vault.backup(machine, scratch=tmp_path / "nowhere")
    with pytest.raises(errors.MonitorUnavailable, match="No such file"):
        Monitor.open(tmp_path / "nobody")
    machine.assert_untouched()


def test_a_monitor_serves_one(machine: Machine) -> None:
    with (
        Monitor.open(machine.qmp),
        pytest.raises(errors.MonitorUnavailable, match="another client"),
    ):
        Monitor.open(machine.qmp, timeout=0.3)


def test_an_nbd_server_of_others_is_left_alone(machine: Machine, vault: Vault) -> None:
    path = {"path": str(machine.qmp.with_name("nbd"))}
    machine.guest.execute("nbd-server-start", {"addr": {"type": "unix", "data": path}})
    with pytest.raises(errors.CannotBackUp, match="NBD server"):
        vault.backup(machine)
    # It still runs.
    machine.guest.execute("nbd-server-stop")
    machine.assert_untouched()


def test_one_disk_of_two(machine: Machine, vault: Vault) -> None:
    machine.write_some(random.Random())
    group = vault.backup(machine, disks=["beta"])
    assert vault.restored(group) == {"beta": machine.contents()["beta"]}
    both = vault.backup(machine)
    assert ways(both) == {"alpha": "full", "beta": "incremental"}
