"""What a machine is, as far as QEMU tells: so that it can be started again as one like it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from lunr.live import errors
from lunr.live.qemu.machine import Disk
from lunr.live.qemu.qmp import Monitor

logger = logging.getLogger(__name__)

#: What a device on a bus of its own kind is told by, besides the bus.
_PLACES = ("channel", "scsi-id", "lun", "unit")


@dataclass(frozen=True)
class Device:
    """What a disk is plugged in as.

    Attributes:
        driver: such as virtio-blk-pci; "": nobody knows.
        bus: such as scsi.0; "": whichever there is.
        place: on that bus, as the driver's properties.
        controller: the driver of what has that bus, and must be added for it; "": the machine.
        controller_id: its id, or "".
    """

    driver: str = ""
    bus: str = ""
    place: dict[str, int] = field(default_factory=dict, hash=False)
    controller: str = ""
    controller_id: str = ""


@dataclass(frozen=True)
class Hardware:
    """The rest of it.

    Attributes:
        arch: such as x86_64.
        machine: its type, with the version.
        cpu: the model of its processors, without what was added or taken away.
        cpus: how many it has.
        memory_bytes: of the guest.
        kvm: whether the kernel runs it.
    """

    arch: str
    machine: str
    cpu: str
    cpus: int
    memory_bytes: int
    kvm: bool


def of(monitor: Monitor) -> Hardware | None:
    """What the machine behind `monitor` is; None where QEMU does not tell.

    Raises:
        errors.MonitorUnavailable: it has ended.
    """
    try:
        return _hardware(monitor)
    except errors.CommandRefused as error:
        logger.warning("The group's record will not say what the machine is: %s", error)
        return None


def _hardware(monitor: Monitor) -> Hardware:
    arch = monitor.execute("query-target")["arch"]
    cpus = monitor.execute("query-cpus-fast")
    memory = monitor.execute("query-memory-size-summary")
    return Hardware(
        arch=arch,
        machine=_get(monitor, "/machine", "type").removesuffix("-machine"),
        cpu=_get(monitor, cpus[0]["qom-path"], "type").removesuffix(f"-{arch}-cpu"),
        cpus=len(cpus),
        memory_bytes=memory["base-memory"] + memory.get("plugged-memory", 0),
        kvm=monitor.execute("query-kvm")["enabled"],
    )


def device_of(monitor: Monitor, disk: Disk) -> Device | None:
    """What `disk` is plugged in as; None where QEMU does not tell.

    Raises:
        errors.MonitorUnavailable: it has ended.
    """
    try:
        return _device(monitor, _owner(disk.device))
    except errors.CommandRefused as error:
        logger.warning("The group's record will not say what %s is: %s", disk.name, error)
        return None


def _device(monitor: Monitor, path: str) -> Device:
    driver = _get(monitor, path, "type")
    bus = _get(monitor, path, "parent_bus")
    if _get(monitor, bus, "type").startswith("PCI"):
        return Device(driver)  # wherever there is room
    place = {}
    for name in _PLACES:
        try:
            place[name] = int(_get(monitor, path, name))
        except errors.CommandRefused:  # no such property
            continue
    _, _, kind, owner, *_ = bus.split("/")
    controller = _get(monitor, _owner(bus), "type") if kind.startswith("peripheral") else ""
    named = owner if kind == "peripheral" else ""
    return Device(driver, bus.rpartition("/")[2], place, controller, named)


def _owner(path: str) -> str:
    """The device that `path` is a part of."""
    return "/".join(path.split("/")[:4])


def _get(monitor: Monitor, path: str, name: str) -> Any:
    return monitor.execute("qom-get", {"path": path, "property": name})
