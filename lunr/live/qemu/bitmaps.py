"""Marks by which it is seen that a disk was resized since.

Who shrinks a disk has QEMU forget the dirty bits beyond the new end, also those of disks that
grow again afterwards: then the sizes are equal, bytes have become zeros, and no bit says so. So
each bitmap ``lunr-since-GROUP`` has a mark beside it, a bitmap at rest in which the last bit is
set, which a shrinking forgets too. What shrinks by less than that bit stands for loses
nothing of it: so that range is always read.

A bit is only set by a write. It is written to a node without a medium, of the disk's size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lunr.common.extents import Extent
from lunr.live import errors
from lunr.live.qemu import names
from lunr.live.qemu.machine import Disk
from lunr.live.qemu.qmp import Monitor

_SECTOR = 512


def put_marks(monitor: Monitor, disks: Sequence[Disk], group: str, granularity: int) -> None:
    """Mark `disks` for `group`, before its bitmaps begin; the guest need not stand still for it.

    Raises:
        errors.CommandRefused: QEMU says no.
    """
    with _tails(monitor, disks, granularity):
        actions = [
            action
            for number, disk in enumerate(disks)
            for action in _mark(number, disk, group, granularity)
        ]
        monitor.execute("transaction", {"actions": actions})


@contextlib.contextmanager
def _tails(monitor: Monitor, disks: Sequence[Disk], granularity: int) -> Iterator[None]:
    """For each of `disks` a node whose last bit is set, while this lasts.

    Raises:
        errors.CommandRefused: QEMU says no.
    """
    with contextlib.ExitStack() as stack:
        for number, disk in enumerate(disks):
            node = names.tail(number)
            size = -(-disk.size // _SECTOR) * _SECTOR
            options = {"driver": "null-co", "node-name": node, "size": size}
            monitor.execute("blockdev-add", options)
            stack.callback(monitor.execute, "blockdev-del", {"node-name": node})
            bitmap = {"node": node, "name": names.SIZE, "granularity": granularity}
            monitor.execute("block-dirty-bitmap-add", bitmap)
            line = f'qemu-io {node} "write -q {size - _SECTOR} {_SECTOR}"'
            monitor.execute("human-monitor-command", {"command-line": line})
        yield


def _mark(number: int, disk: Disk, group: str, granularity: int) -> list[dict[str, Any]]:
    """The actions that put the mark of `group` to `disk`, whose tail has that number."""
    name = f"{names.SIZE}{group}"
    added = {
        "node": disk.node,
        "name": name,
        "granularity": granularity,
        "persistent": False,
        "disabled": True,
    }
    tail = {"node": names.tail(number), "name": names.SIZE}
    merged = {"node": disk.node, "target": name, "bitmaps": [tail]}
    return [
        {"type": "block-dirty-bitmap-add", "data": added},
        {"type": "block-dirty-bitmap-merge", "data": merged},
    ]


def is_whole(bitmaps: Mapping[str, dict[str, Any]], group: str) -> bool:
    """Whether the mark of `group` is there: the disk has not shrunk since."""
    bitmap = bitmaps.get(f"{names.SIZE}{group}")
    return bitmap is not None and bool(bitmap["count"])


def check(monitor: Monitor, disk: Disk, group: str) -> None:
    """Make sure that `disk` has not shrunk since `group`, to whatever it stands upon now.

    Raises:
        errors.DiskResized: it has, or is gone.
    """
    for node in monitor.execute("query-named-block-nodes"):
        if node["node-name"] == disk.node:
            bitmaps = {bitmap.get("name"): bitmap for bitmap in node.get("dirty-bitmaps", ())}
            if is_whole(bitmaps, group):
                return
    raise errors.DiskResized(disk=disk.name)


def tail(size: int, granularity: int) -> Extent:
    """The extent of a disk of `size` bytes that the mark stands for."""
    return Extent(max(0, size - 1) // granularity * granularity, size)
