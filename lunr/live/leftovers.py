"""Taking down what lunr has put up inside a QEMU, whoever did, and however far it came."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Callable

from lunr.live import errors, machine, names
from lunr.live.machine import Disk
from lunr.live.qmp import Monitor

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
    every = {node["node-name"] for node in monitor.execute("query-named-block-nodes")}
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


def recover(monitor: Monitor) -> None:
    """Take down what a dead client left, and let the guest run if that had stopped it.

    Raises:
        errors.CommandRefused, errors.MonitorUnavailable: QEMU does not do its part.
    """
    nodes = {node["node-name"] for node in monitor.execute("query-named-block-nodes")}
    filters = [match for match in map(names.FILTER.fullmatch, nodes) if match]
    is_cut = any(names.cut(int(match["number"])) in nodes for match in filters)
    if filters and not is_cut and monitor.execute("query-status")["status"] == "paused":
        # It died, and its guard with it, in the milliseconds around the cut.
        logger.warning("A backup that was killed had stopped the guest: it goes on now.")
        monitor.execute("cont")
    if clear(monitor):
        logger.warning("Took down what a backup that was killed had left.")


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
    """Let the devices that use our filters use their disks again."""
    notes = [
        names.NOTE.fullmatch(fd.get("opaque", ""))
        for one in monitor.execute("query-fdsets")
        for fd in one["fds"]
    ]
    disks = {names.filter_of(int(note["number"])): note["node"] for note in notes if note}
    for disk in machine.disks_of(monitor):
        if ours(disk.node):
            monitor.execute(*machine.using(disk, disks[disk.node]))


def _forget_files(monitor: Monitor, ours: Callable[[str], bool]) -> None:
    """Let QEMU close the files whose notes are ours."""
    for one in monitor.execute("query-fdsets"):
        for fd in one["fds"]:
            if ours(fd.get("opaque", "")):
                monitor.execute("remove-fd", {"fdset-id": one["fdset-id"], "fd": fd["fd"]})
