"""The command line of a machine that is started from a group."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path

from lunr.live.backup.groups import Group, Member
from lunr.live.qemu.command_line import command_line, node_name
from lunr.live.qemu.hardware import Device, Hardware


def member(disk: str, device: Device | None) -> Member:
    return Member(disk, f"g-{disk}", 4096, "full", "", None, 4096, 0, 0.1, device)


def line(*members: Member, hardware: Hardware | None = None) -> list[str]:
    group = Group("g", "web", "now", 0.0, None, members, hardware)
    return shlex.split(command_line(group, {m.disk: Path(f"/a,b c/{m.disk}") for m in members}))


def test_a_record_of_old_gets_what_most_have() -> None:
    assert line(member("root", None)) == [
        *("qemu-system-x86_64", "-name", "web", "-blockdev"),
        "driver=qcow2,node-name=root,discard=unmap,"
        "file.driver=file,file.filename=/a,,b c/root,file.discard=unmap",
        *("-device", "virtio-blk-pci,drive=root,id=root,rerror=stop,werror=stop"),
    ]


def test_it_is_the_machine_that_was_backed_up() -> None:
    scsi = Device("scsi-hd", "s.0", {"scsi-id": 0, "lun": 3}, "virtio-scsi-pci", "s")
    hardware = Hardware("aarch64", "virt-7.2", "max", 4, 3 << 30, kvm=True)
    nvme = member("n", Device("nvme"))
    found = line(member("a", scsi), member("b", scsi), nvme, hardware=hardware)
    assert found[:13] == [
        *("qemu-system-aarch64", "-name", "web", "-machine", "virt-7.2", "-accel", "kvm"),
        *("-cpu", "max", "-smp", "4", "-m", "3072"),
    ]
    devices = [after for word, after in itertools.pairwise(found) if word == "-device"]
    assert devices == [
        "virtio-scsi-pci,id=s",
        "scsi-hd,drive=a,id=a,bus=s.0,scsi-id=0,lun=3,rerror=stop,werror=stop",
        "scsi-hd,drive=b,id=b,bus=s.0,scsi-id=0,lun=3,rerror=stop,werror=stop",
        "nvme,drive=n,id=n",  # it can't be told to stop
    ]


def test_names_that_qemu_can_not_stand() -> None:
    assert node_name("a" * 31) == "a" * 31
    for name in ("a" * 32, "a" * 31 + "b", "0"):
        assert len(node_name(name)) <= 31
        assert node_name(name)[0].isalpha()
    assert node_name("a" * 32) != node_name("a" * 31 + "b")
