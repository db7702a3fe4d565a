"""Taking down what lunr has put up inside a QEMU, whoever did, and however far it came."""

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

#: Seconds that QEMU has to let go of an export.
_PATIENCE = 30.0


def clear(monitor: Monitor, only: int | None = None) -> bool:
    """Take down exports, filters, scratch files and the server; whether there was anything.

    The bitmaps ``lunr-since-…`` stay: they are what the next backup builds upon.

    Args:
        monitor: of the machine.
        only: just what the disk of this number has. Its guest's writes cost no more than
            one from then on.

    Raises:
        errors.CommandRefused, errors.MonitorSilent: QEMU does not let go of something.
    """

    def ours(name: str, pattern: re.Pattern[str]) -> bool:
        match = pattern.fullmatch(name)
        return match is not None and only in (None, int(match["number"]))

    exports = _delete_exports(monitor, lambda name: ours(name, names.EXPORT))
    every = _nodes(monitor)
    nodes = sorted(node for node in every if ours(node, names.NODE))
    # Sorted, they are in the order in which they stand upon each other.
    for node in nodes:
        if node.endswith("-cut"):
            monitor.execute("blockdev-del", {"node-name": node})
    _put_back(monitor, lambda name: ours(name, names.FILTER))
    for node in nodes:
        if not node.endswith("-cut"):
            monitor.execute("blockdev-del", {"node-name": node})
    _forget_files(monitor, lambda note: ours(note, names.NOTE))
    if names.SERVER in every and not monitor.execute("query-block-exports"):
        with contextlib.suppress(errors.CommandRefused):  # it was not started yet
            monitor.execute("nbd-server-stop")
        monitor.execute("blockdev-del", {"node-name": names.SERVER})
    if only is None:
        for disk in machine.disks_of(monitor):
            if names.CHANGED in disk.bitmaps:
                remove_bitmap(monitor, disk, names.CHANGED)
    return bool(exports or nodes)


def hold(monitor: Monitor) -> None:
    """Note in QEMU that the guest ran, before it is stopped or frozen."""
    monitor.execute("blockdev-add", {"driver": "null-co", "node-name": names.CUTTING})


def is_held(monitor: Monitor) -> bool:
    """Whether the guest may stand still because of us."""
    return names.CUTTING in _nodes(monitor)


def let_go(monitor: Monitor, agent: Agent | None, patience: float | None = None) -> None:
    """Let the guest that we held run, and thaw its file systems.

    Args:
        monitor: of the machine.
        agent: the guest's, if it has one.
        patience: as of :meth:`Agent.thaw`.

    Raises:
        errors.FreezeFailed: it runs, and may be frozen still; the note of it stays.
        errors.CommandRefused, errors.MonitorUnavailable: QEMU does not do its part.
    """
    _go_on(monitor)
    if agent is not None:
        agent.thaw(patience)
    monitor.execute("blockdev-del", {"node-name": names.CUTTING})


def _go_on(monitor: Monitor) -> None:
    if monitor.execute("query-status")["status"] == "paused":
        monitor.execute("cont")


def settle(monitor: Monitor, agent: Agent | None, patience: float | None = None) -> bool:
    """Let the guest go on, and take down all that is put up; whether there was anything.

    Args:
        monitor: of the machine.
        agent: the guest's, if it has one.
        patience: as of :meth:`Agent.thaw`.

    Raises:
        errors.FreezeFailed: the rest is done, but its file systems may be frozen still.
        errors.CommandRefused, errors.MonitorUnavailable: QEMU does not do its part.
    """
    held = is_held(monitor)
    if held:
        _go_on(monitor)
    try:
        found = clear(monitor)
    finally:
        if held:
            let_go(monitor, agent, patience)
    return held or found


def recover(monitor: Monitor, agent: Agent | None) -> None:
    """:func:`settle` what a dead client left.

    Raises:
        as :func:`settle`.
    """
    if agent is None and is_held(monitor):
        logger.warning("Its file systems may be frozen, and no agent is known to thaw them.")
    if settle(monitor, agent):
        logger.warning("Took down what a backup that was killed had left: the guest goes on.")


def _nodes(monitor: Monitor) -> set[str]:
    return {node["node-name"] for node in monitor.execute("query-named-block-nodes")}


def remove_bitmap(monitor: Monitor, disk: Disk, name: str) -> None:
    """Remove a bitmap of `disk`."""
    monitor.execute("block-dirty-bitmap-remove", {"node": disk.node, "name": name})


def _delete_exports(monitor: Monitor, ours: Callable[[str], bool]) -> bool:
    """Delete our exports, whoever reads from them, and wait until they are gone."""

    def left() -> list[str]:
        return [one["id"] for one in monitor.execute("query-block-exports") if ours(one["id"])]

    found = left()
    for export in found:
        with contextlib.suppress(errors.CommandRefused):  # it is going already
            monitor.execute("block-export-del", {"id": export, "mode": "hard"})
    deadline = time.monotonic() + _PATIENCE
    while left():
        if time.monotonic() > deadline:
            raise errors.MonitorSilent(
                path="of QEMU", command="block-export-del", timeout=_PATIENCE
            )
        time.sleep(0.01)
    return bool(found)


def _put_back(monitor: Monitor, ours: Callable[[str], bool]) -> None:
    """Let the devices that use our filters use their disks again, and see that they do."""
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
    """The node that each of our filters stands before, by the filter's name.

    The note that counts is the one of the descriptor that the filter's own scratch file uses.
    QEMU keeps descriptors with their notes as long as the machine does not run, so notes of
    earlier backups with the same number may be there.
    """
    notes = {
        f"/dev/fdset/{one['fdset-id']}": names.NOTE.fullmatch(fd.get("opaque", ""))
        for one in monitor.execute("query-fdsets")
        for fd in one["fds"]
    }
    behind = {}
    for node in monitor.execute("query-named-block-nodes"):
        note = notes.get(node.get("file", ""))
        if note and node["node-name"] == names.scratch(int(note["number"])):
            behind[names.filter_of(int(note["number"]))] = note["node"]
    return behind


def _forget_files(monitor: Monitor, ours: Callable[[str], bool]) -> None:
    """Let QEMU close the files whose notes are ours."""
    for one in monitor.execute("query-fdsets"):
        for fd in one["fds"]:
            if ours(fd.get("opaque", "")):
                monitor.execute("remove-fd", {"fdset-id": one["fdset-id"], "fd": fd["fd"]})
