"""A machine's hardware as QEMU reports it, to start a similar machine from a backup group."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from lunr.live import errors
from lunr.live.qemu.machine import Disk
from lunr.live.qemu.qmp import Monitor

logger = logging.getLogger(__name__)

#: The properties that place a device on its bus.
_PLACES = ("channel", "scsi-id", "lun", "unit")


@dataclass(frozen=True)
class Device:
    """The device of a disk.

    Attributes:
        driver: such as virtio-blk-pci; "": unknown.
        bus: such as scsi.0; "": any.
        place: its place on that bus, as the driver's properties.
        controller: the driver of the controller that must be added for the bus; "": none, the
            machine has the bus.
        controller_id: its id, or "".
    """

    driver: str = ""
    bus: str = ""
    place: dict[str, int] = field(default_factory=dict, hash=False)
    controller: str = ""
    controller_id: str = ""


@dataclass(frozen=True)
class Hardware:
    """The hardware of a machine besides its disks.

    Attributes:
        arch: such as x86_64.
        machine: its type, with the version.
        cpu: the model of its processors, without added or removed features.
        cpus: the number of processors.
        memory_bytes: the guest's memory.
        kvm: whether KVM runs it.
    """

    arch: str
    machine: str
    cpu: str
    cpus: int
    memory_bytes: int
    kvm: bool


def read_hardware(monitor: Monitor) -> Hardware | None:
    """The hardware of the machine behind `monitor`; None if QEMU refuses to report it.

    Raises:
        errors.MonitorUnavailable: QEMU has ended.
    """
    try:
        return _hardware(monitor)
    except errors.CommandRefused as error:
        logger.warning("The group's record will lack the machine's hardware: %s", error)
        return None


def _hardware(monitor: Monitor) -> Hardware:
    arch = monitor.execute("query-target")["arch"]
    cpus = monitor.execute("query-cpus-fast")
    memory = monitor.execute("query-memory-size-summary")
    return Hardware(
        arch=arch,
        machine=_get_property(monitor, "/machine", "type").removesuffix("-machine"),
        cpu=_get_property(monitor, cpus[0]["qom-path"], "type").removesuffix(f"-{arch}-cpu"),
        cpus=len(cpus),
        memory_bytes=memory["base-memory"] + memory.get("plugged-memory", 0),
        kvm=monitor.execute("query-kvm")["enabled"],
    )


def device_of(monitor: Monitor, disk: Disk) -> Device | None:
    """The device of `disk`; None if QEMU refuses to report it.

    Raises:
        errors.MonitorUnavailable: QEMU has ended.
    """
    try:
        return _device(monitor, _owner(disk.device))
    except errors.CommandRefused as error:
        logger.warning("The group's record will lack the device of %s: %s", disk.name, error)
        return None


def _device(monitor: Monitor, path: str) -> Device:
    driver = _get_property(monitor, path, "type")
    bus = _get_property(monitor, path, "parent_bus")
    if _get_property(monitor, bus, "type").startswith("PCI"):
        return Device(driver)  # wherever there is room
    place = {}
    for name in _PLACES:
        try:
            place[name] = int(_get_property(monitor, path, name))
        except errors.CommandRefused:  # no such property
            continue
    _, _, kind, owner, *_ = bus.split("/")
    controller = (
        _get_property(monitor, _owner(bus), "type") if kind.startswith("peripheral") else ""
    )
    named = owner if kind == "peripheral" else ""
    return Device(driver, bus.rpartition("/")[2], place, controller, named)


def _owner(path: str) -> str:
    """The device that `path` is a part of."""
    return "/".join(path.split("/")[:4])


def _get_property(monitor: Monitor, path: str, name: str) -> Any:
    return monitor.execute("qom-get", {"path": path, "property": name})
