"""A virtual machine's disks, and whether they can be backed up while it runs."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lunr.common import ids
from lunr.live import errors
from lunr.live.qemu.qmp import Monitor

logger = logging.getLogger(__name__)

#: `on-cbw-error` and `cbw-timeout` came with QEMU 7.1; lunr is tested with 7.2.
OLDEST = (7, 2)


#: The board's flash memory, in which UEFI keeps its variables. A filter can't be put before it.
_FLASH = re.compile(r"/machine/\w+\.flash\d+")


@dataclass(frozen=True)
class Disk:
    """A disk of a virtual machine.

    Attributes:
        name: the id of its device, from the machine's definition.
        device: the QOM path of the device.
        node: the block node that the device uses.
        size: in bytes.
        source: where its bytes are, as QEMU gives it: a path, an URL, or ``json:``.
        bitmaps: the dirty bitmaps of that node, by name, as ``query-block`` gives them.
    """

    name: str
    device: str
    node: str
    size: int
    bitmaps: dict[str, dict[str, Any]]
    source: str = ""


def name_of(monitor: Monitor) -> str:
    """The machine's name (``-name``).

    Raises:
        errors.CannotBackUp: it has no name, or one that can't be part of an id.
    """
    name = monitor.execute("query-name").get("name")
    if name is None:
        raise errors.CannotBackUp(reason="it has no name: give one with --vm.")
    if not ids.is_valid(name):
        raise errors.CannotBackUp(
            reason=f"its name {name!r} can't be part of a backup's: give another with --vm."
        )
    return str(name)


def is_running(monitor: Monitor) -> bool:
    """Whether the guest's processors run."""
    return bool(monitor.execute("query-status")["running"])


def using(disk: Disk, node: str) -> tuple[str, dict[str, Any]]:
    """The command that makes the device of `disk` use `node`."""
    return "qom-set", {"path": disk.device, "property": "drive", "value": node}


def disks(monitor: Monitor, selected: Sequence[str] | None = None) -> list[Disk]:
    """The writable disks, or those of the names `selected`.

    Raises:
        errors.CannotBackUp: there are none, one of `selected` is missing, or this QEMU can't
            back one up.
    """
    if monitor.version < OLDEST:
        have = ".".join(map(str, monitor.version))
        raise errors.CannotBackUp(reason=f"its QEMU is {have}, and 7.2 is needed.")
    by_name = {disk.name: disk for disk in disks_of(monitor)}
    if selected is not None:
        missing = [name for name in selected if name not in by_name]
        if missing:
            raise errors.CannotBackUp(
                reason=f"it has no disk {missing[0]}; it has: {', '.join(by_name) or 'none'}."
            )
        by_name = {name: by_name[name] for name in selected}
    if not by_name:
        raise errors.CannotBackUp(reason="it has no disk that can be written to.")
    _log_flash(monitor)
    for disk in by_name.values():
        _refuse_iothread(monitor, disk)
        if not ids.is_valid(disk.name):
            raise errors.CannotBackUp(
                reason=f"the disk {disk.name!r} needs a device with an id of letters and digits."
            )
    return list(by_name.values())


def _log_flash(monitor: Monitor) -> None:
    for block in monitor.execute("query-block"):
        qdev, inserted = block.get("qdev") or "", block.get("inserted")
        if _FLASH.fullmatch(qdev) and inserted is not None and not inserted["ro"]:
            logger.info("Not backed up: %s, the firmware's memory (UEFI variables).", qdev)


def disks_of(monitor: Monitor) -> Iterator[Disk]:
    """Every disk that can be written to."""
    for block in monitor.execute("query-block"):
        inserted, qdev = block.get("inserted"), block.get("qdev")
        if inserted is None or qdev is None or inserted["ro"]:
            continue  # no medium, no device, or nothing that could change
        if _FLASH.fullmatch(qdev):
            continue  # `disks` logs it
        device = qdev if qdev.startswith("/") else f"/machine/peripheral/{qdev}"
        yield Disk(
            name=_name(device, block["device"]),
            device=device,
            node=inserted["node-name"],
            size=int(inserted["image"]["virtual-size"]),
            bitmaps={
                bitmap["name"]: bitmap
                for bitmap in inserted.get("dirty-bitmaps", ())
                if "name" in bitmap
            },
            source=str(inserted["image"].get("filename", "")),
        )


def _name(device: str, backend: str) -> str:
    """The device's id, or if it has none (``-drive if=virtio``) the drive's."""
    parts = device.split("/")
    if parts[2] == "peripheral":
        return parts[3]
    return backend or parts[-1]


def _refuse_iothread(monitor: Monitor, disk: Disk) -> None:
    # virtio-blk has the property itself, virtio-scsi its controller.
    for path in (disk.device, *_controller(monitor, disk.device)):
        try:
            thread = monitor.execute("qom-get", {"path": path, "property": "iothread"})
        except errors.CommandRefused:  # no such property
            continue
        if thread:
            raise errors.CannotBackUp(
                reason=f"the disk {disk.name} has an iothread, and QEMU (7.2) crashes when such "
                "a disk is exported while the guest writes. Remove `iothread=` from the device."
            )


def _controller(monitor: Monitor, device: str) -> list[str]:
    """The QOM paths of the device that `device` is plugged into."""
    try:
        bus = monitor.execute("qom-get", {"path": device, "property": "parent_bus"})
    except errors.CommandRefused:
        return []
    parts = bus.split("/")
    return ["/".join(parts[:count]) for count in range(4, len(parts))]
