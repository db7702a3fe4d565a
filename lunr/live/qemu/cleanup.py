"""Removing all that lunr has added to a QEMU, also after a killed backup."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Callable

from lunr.live import errors
from lunr.live.qemu import machine, names
from lunr.live.qemu.guest_agent import Agent
from lunr.live.qemu.machine import Disk
from lunr.live.qemu.qmp import Monitor

logger = logging.getLogger(__name__)

#: Seconds that QEMU has to close an export.
_PATIENCE = 30.0


def clear(monitor: Monitor, only: int | None = None) -> bool:
    """Remove exports, filters, scratch files and the server; return whether there were any.

    The bitmaps ``lunr-since-…`` stay for the next backup.

    Args:
        monitor: the machine's.
        only: the number of a disk, to remove only what belongs to it. The guest's writes to it
            are not copied any more from then on.

    Raises:
        errors.CommandRefused, errors.MonitorSilent: QEMU does not remove something.
    """

    def ours(name: str, pattern: re.Pattern[str]) -> bool:
        match = pattern.fullmatch(name)
        return match is not None and only in (None, int(match["number"]))

    exports = _delete_exports(monitor, lambda name: ours(name, names.EXPORT))
    every = _nodes(monitor)
    nodes = sorted(node for node in every if ours(node, names.NODE))
    # Sorted, each node comes before those that it uses.
    for node in nodes:
        if node.endswith("-cut"):
            monitor.execute("blockdev-del", {"node-name": node})
    _restore_disks(monitor, lambda name: ours(name, names.FILTER))
    for node in nodes:
        if not node.endswith("-cut"):
            monitor.execute("blockdev-del", {"node-name": node})
    _close_files(monitor, lambda note: ours(note, names.NOTE))
    if names.SERVER in every and not monitor.execute("query-block-exports"):
        with contextlib.suppress(errors.CommandRefused):  # it was not started yet
            monitor.execute("nbd-server-stop")
        monitor.execute("blockdev-del", {"node-name": names.SERVER})
    if only is None:
        for disk in machine.disks_of(monitor):
            if names.CHANGED in disk.bitmaps:
                remove_bitmap(monitor, disk, names.CHANGED)
    return bool(exports or nodes)


def note_held(monitor: Monitor) -> None:
    """Note in QEMU that the guest ran, before it is stopped or frozen."""
    monitor.execute("blockdev-add", {"driver": "null-co", "node-name": names.CUTTING})


def is_held(monitor: Monitor) -> bool:
    """Whether lunr may have stopped or frozen the guest."""
    return names.CUTTING in _nodes(monitor)


def release_guest(monitor: Monitor, agent: Agent | None, patience: float | None = None) -> None:
    """Resume the guest that lunr held, and thaw its file systems.

    Args:
        monitor: the machine's.
        agent: the guest's, if it has one.
        patience: as of :meth:`Agent.thaw`.

    Raises:
        errors.FreezeFailed: it runs, but may still be frozen; the note of it stays.
        errors.CommandRefused, errors.MonitorUnavailable: QEMU refuses or does not answer.
    """
    _resume(monitor)
    if agent is not None:
        agent.thaw(patience)
    monitor.execute("blockdev-del", {"node-name": names.CUTTING})


def _resume(monitor: Monitor) -> None:
    if monitor.execute("query-status")["status"] == "paused":
        monitor.execute("cont")


def restore_machine(monitor: Monitor, agent: Agent | None, patience: float | None = None) -> bool:
    """Resume the guest and remove all that lunr has added; return whether there was anything.

    Args:
        monitor: the machine's.
        agent: the guest's, if it has one.
        patience: as of :meth:`Agent.thaw`.

    Raises:
        errors.FreezeFailed: all else is done, but the file systems may still be frozen.
        errors.CommandRefused, errors.MonitorUnavailable: QEMU refuses or does not answer.
    """
    held = is_held(monitor)
    if held:
        _resume(monitor)
    try:
        was_used = clear(monitor)
    finally:
        if held:
            release_guest(monitor, agent, patience)
    return held or was_used


def recover(monitor: Monitor, agent: Agent | None) -> None:
    """:func:`restore_machine` after a killed backup.

    Raises:
        as :func:`restore_machine`.
    """
    if agent is None and is_held(monitor):
        logger.warning(
            "The guest's file systems may be frozen, and no agent is given to thaw them."
        )
    if restore_machine(monitor, agent):
        logger.warning("The remains of a killed backup were removed; the guest goes on.")


def _nodes(monitor: Monitor) -> set[str]:
    return {node["node-name"] for node in monitor.execute("query-named-block-nodes")}


def remove_bitmap(monitor: Monitor, disk: Disk, name: str) -> None:
    """Remove a bitmap of `disk`."""
    monitor.execute("block-dirty-bitmap-remove", {"node": disk.node, "name": name})


def _delete_exports(monitor: Monitor, ours: Callable[[str], bool]) -> bool:
    """Delete lunr's exports, even while they are read, and wait until they are gone."""

    def remaining() -> list[str]:
        return [
            entry["id"] for entry in monitor.execute("query-block-exports") if ours(entry["id"])
        ]

    existing = remaining()
    for export in existing:
        with contextlib.suppress(errors.CommandRefused):  # it is being deleted already
            monitor.execute("block-export-del", {"id": export, "mode": "hard"})
    deadline = time.monotonic() + _PATIENCE
    while remaining():
        if time.monotonic() > deadline:
            raise errors.MonitorSilent(
                path="of QEMU", command="block-export-del", timeout=_PATIENCE
            )
        time.sleep(0.01)
    return bool(existing)


def _restore_disks(monitor: Monitor, ours: Callable[[str], bool]) -> None:
    """Make the devices that use lunr's filters use their disks again, and check that they do."""
    own_nodes = _nodes_behind_filters(monitor)
    expected = {}
    for disk in machine.disks_of(monitor):
        if ours(disk.node):
            if disk.node not in own_nodes:
                raise errors.FilterLeft(device=disk.device, filter=disk.node)
            expected[disk.device] = own_nodes[disk.node]
            monitor.execute(*machine.using(disk, own_nodes[disk.node]))
    used = {disk.device: disk.node for disk in machine.disks_of(monitor)}
    for device, node in expected.items():
        if used.get(device) != node:
            raise errors.WrongNode(device=device, node=node, used=used.get(device))


def _nodes_behind_filters(monitor: Monitor) -> dict[str, str]:
    """The node behind each of lunr's filters, by the filter's name.

    The valid note is that of the descriptor of the filter's own scratch file. QEMU keeps
    descriptors with their notes while the machine is stopped: there may be notes of earlier
    backups with the same number.
    """
    notes = {
        f"/dev/fdset/{fdset['fdset-id']}": names.NOTE.fullmatch(fd.get("opaque", ""))
        for fdset in monitor.execute("query-fdsets")
        for fd in fdset["fds"]
    }
    behind = {}
    for node in monitor.execute("query-named-block-nodes"):
        note = notes.get(node.get("file", ""))
        if note and node["node-name"] == names.scratch(int(note["number"])):
            behind[names.filter_of(int(note["number"]))] = note["node"]
    return behind


def _close_files(monitor: Monitor, ours: Callable[[str], bool]) -> None:
    """Make QEMU close the files whose notes are lunr's."""
    for fdset in monitor.execute("query-fdsets"):
        for fd in fdset["fds"]:
            if ours(fd.get("opaque", "")):
                monitor.execute("remove-fd", {"fdset-id": fdset["fdset-id"], "fd": fd["fd"]})
