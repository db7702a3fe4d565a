"""The command line for QEMU of a machine that is started from a backup group.

It has what the group's record has: the type of machine, its memory, processors and disks. The
caller must add network, firmware and the like.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from lunr.live.backup.groups import Group, Member
from lunr.live.qemu.hardware import Device, Hardware

#: The longest name that QEMU lets a node have.
_LONGEST_NODE = 31

#: Prefixes of the drivers that can stop the machine at an error.
_STOPPING = ("virtio-blk", "scsi-", "ide-", "usb-storage")


def command_line(group: Group, paths: Mapping[str, Path]) -> str:
    """The command that starts the machine of `group`; `paths` has its disks' qcow2 files."""
    hardware = group.hardware
    arch = "x86_64" if hardware is None else hardware.arch
    words = [f"qemu-system-{arch}", "-name", group.machine]
    if hardware is not None:
        words += _machine(hardware)
    words += _controllers(member.device for member in group.members)
    for member in group.members:
        words += _disk(member, paths[member.disk])
    return shlex.join(words)


def _machine(hardware: Hardware) -> list[str]:
    mib = hardware.memory_bytes >> 20
    accel = "kvm" if hardware.kvm else "tcg"
    return [
        *("-machine", hardware.machine, "-accel", accel),
        *("-cpu", hardware.cpu, "-smp", str(hardware.cpus), "-m", str(mib)),
    ]


def _controllers(devices: Iterable[Device | None]) -> list[str]:
    words: list[str] = []
    for device in devices:
        if device is None or not device.controller:
            continue
        named = f",id={device.controller_id}" if device.controller_id else ""
        option = f"{device.controller}{named}"
        if option not in words:
            words += ["-device", option]
    return words


def _disk(member: Member, path: Path) -> list[str]:
    node = node_name(member.disk)
    device = member.device or Device()
    driver = device.driver or "virtio-blk-pci"
    plugged = {"drive": node, "id": member.disk, "bus": device.bus, **device.place}
    options = [f"{key}={value}" for key, value in plugged.items() if value != ""]
    if driver.startswith(_STOPPING):
        # While the store is away the machine waits, and its programs see no errors.
        options += ["rerror=stop", "werror=stop"]
    # A comma in a value is doubled. Discards of the guest free room.
    file = f"file.driver=file,file.filename={str(path).replace(',', ',,')},file.discard=unmap"
    return [
        *("-blockdev", f"driver=qcow2,node-name={node},discard=unmap,{file}"),
        *("-device", ",".join([driver, *options])),
    ]


def node_name(disk: str) -> str:
    """The name of the node of `disk`: the disk's, if QEMU allows it."""
    if len(disk) <= _LONGEST_NODE and disk[0].isalpha():
        return disk
    return f"disk-{hashlib.blake2b(disk.encode(), digest_size=8).hexdigest()}"
