"""Marks that show whether a disk was resized since a cut.

When a disk shrinks, QEMU drops the dirty bits beyond the new end. If the disk grows again, its
size is equal, bytes have become zeros, and no bit shows it. So each bitmap ``lunr-since-GROUP``
has a mark beside it: a disabled bitmap with the last bit set, which QEMU drops as well. The
mark survives a shrinking by less than the range of that bit: so that range is always read.

Only a write sets a bit. The write goes to a node of the disk's size without a medium.
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
    """Mark `disks` for `group`, before its bitmaps begin; the guest may run.

    Raises:
        errors.CommandRefused: QEMU refuses.
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
    """Keep for each of `disks` a node with a bitmap whose last bit is set.

    Raises:
        errors.CommandRefused: QEMU refuses.
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
    """The actions that put the mark of `group` on `disk`, the disk `number`."""
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
    """Whether the mark of `group` is whole: the disk has not shrunk since."""
    bitmap = bitmaps.get(f"{names.SIZE}{group}")
    return bitmap is not None and bool(bitmap["count"])


def check(monitor: Monitor, disk: Disk, group: str) -> None:
    """Make sure that `disk` has not shrunk since `group`.

    Raises:
        errors.DiskResized: it has shrunk, or is gone.
    """
    for node in monitor.execute("query-named-block-nodes"):
        if node["node-name"] == disk.node:
            bitmaps = {bitmap.get("name"): bitmap for bitmap in node.get("dirty-bitmaps", ())}
            if is_whole(bitmaps, group):
                return
    raise errors.DiskResized(disk=disk.name)


def tail(size: int, granularity: int) -> Extent:
    """The extent of a disk of `size` bytes that the bit of the mark covers."""
    return Extent(max(0, size - 1) // granularity * granularity, size)
