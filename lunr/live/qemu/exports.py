"""QEMU's NBD exports: disks as they were at the cut, and their maps.

No file is left behind: lunr connects to the server's socket and removes its name before QEMU
gets it. No other process can connect, and QEMU may run as another user.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from lunr.common.extents import Extent
from lunr.live import errors
from lunr.live.backup import source
from lunr.live.backup.source import NbdSource
from lunr.live.qemu import bitmaps as sizes
from lunr.live.qemu import cleanup, names, nbd
from lunr.live.qemu.fleecing import GRANULARITY
from lunr.live.qemu.machine import Disk
from lunr.live.qemu.qmp import Monitor

#: Connections to each disk's export: QEMU reads for several at once.
_READERS = 4

#: Seconds that a read may stand still.
_PATIENCE = 60.0


@dataclass(frozen=True)
class Exported:
    """The export of one disk.

    Attributes:
        source: the disk as it was at the cut.
        changed: the ranges that were written since its base; None without a base.
    """

    source: NbdSource
    changed: list[Extent] | None


def survey(
    monitor: Monitor, disks: Sequence[Disk], mapped: Sequence[str]
) -> dict[str, list[Extent]]:
    """The allocated ranges of the disks of the names `mapped`; all of `disks` must answer.

    Before QEMU stops the guest it waits until each disk has completed its requests, and flushes
    it. If a disk does not answer (the target of an iSCSI disk is away), the guest stands still
    with all its disks. So this reads and flushes each disk before that.

    The guest goes on writing: bitmaps that began earlier must record these writes. A map of the
    cut itself is not available: that of QEMU 7.2 has zeros where there is data (see
    :data:`lunr.live.qemu.nbd.PIECE`).

    Raises:
        errors.CannotBackUp: another program uses the machine's NBD server.
        errors.ExportLost, errors.CommandRefused: a disk does not answer, or there is no map.
    """
    allocated: dict[str, list[Extent]] = {}
    with _served(monitor, len(disks)) as sockets:
        for number, disk in enumerate(disks):
            _export(monitor, number, disk.node, [])
            (connection,) = source.negotiate(
                disk.name, [next(sockets)], names.export(number), nbd.ALLOCATION
            )
            source.await_answers(disk.name, connection)
            if disk.name in mapped:
                allocated[disk.name] = source.ranges(
                    disk.name, connection, matches=lambda flags: not flags & nbd.ZERO
                )
    cleanup.clear(monitor)
    return allocated


@contextmanager
def exported(
    monitor: Monitor,
    disks: Sequence[Disk],
    bases: Mapping[str, str],
    allocated: Mapping[str, list[Extent]],
) -> Iterator[list[Exported]]:
    """Exports of the `disks` as they were at the cut.

    Args:
        monitor: the machine's.
        disks: the disks; the cut was made.
        bases: as for :func:`lunr.live.qemu.fleecing.cut`.
        allocated: for the other disks, the result of :func:`survey`.

    Raises:
        errors.CannotBackUp: another program uses the machine's NBD server.
        errors.DiskResized: a disk has another size than before.
        errors.ExportLost, errors.CommandRefused: an export can't be read.
    """
    with _served(monitor, _READERS * len(disks)) as sockets:
        exports: list[Exported] = []
        for number, disk in enumerate(disks):
            options = {
                "driver": "snapshot-access",
                "node-name": names.cut(number),
                "file": names.filter_of(number),
            }
            monitor.execute("blockdev-add", options)
            bitmaps = [{"node": disk.node, "name": names.CHANGED}]
            _export(monitor, number, names.cut(number), bitmaps)
            connections = source.negotiate(
                disk.name,
                [next(sockets) for _ in range(_READERS)],
                names.export(number),
                f"qemu:dirty-bitmap:{names.CHANGED}",
            )
            if connections[0].size != disk.size:
                raise errors.DiskResized(disk=disk.name)
            written = source.ranges(disk.name, connections[0], matches=bool)
            if disk.name in bases:
                changed = source.union(written, [sizes.tail(disk.size, GRANULARITY)], disk.size)
                exports.append(Exported(NbdSource(disk.name, connections), changed))
            else:
                data = source.union(allocated[disk.name], written, disk.size)
                exports.append(Exported(NbdSource(disk.name, connections, data), None))
        yield exports


@contextmanager
def _served(monitor: Monitor, count: int) -> Iterator[Iterator[socket.socket]]:
    """`count` sockets that are connected to QEMU's only NBD server."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        sockets = [
            stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            for _ in range(count)
        ]
        with tempfile.TemporaryDirectory(prefix="lunr-live-") as folder:  # mode 0700
            path = f"{folder}/nbd"
            listener.bind(path)
            listener.listen(count)
            for sock in sockets:  # they wait in the listener's queue
                sock.connect(path)
                sock.settimeout(_PATIENCE)
        _start_server(monitor, listener.fileno())
        yield iter(sockets)


def _start_server(monitor: Monitor, listener: int) -> None:
    # Note before the start that the server is lunr's: a later cleanup must know that.
    monitor.execute("blockdev-add", {"driver": "null-co", "node-name": names.SERVER})
    try:
        monitor.execute("getfd", {"fdname": names.SERVER}, descriptor=listener)
        address = {"type": "fd", "data": {"str": names.SERVER}}
        monitor.execute("nbd-server-start", {"addr": address, "max-connections": 0})
    except errors.CommandRefused as error:
        monitor.execute("blockdev-del", {"node-name": names.SERVER})
        monitor.execute("closefd", {"fdname": names.SERVER})
        raise errors.CannotBackUp(
            reason=f"its NBD server can't be had ({error.fields['reason']}): "
            "does another program back it up?"
        ) from error


def _export(monitor: Monitor, number: int, node: str, bitmaps: list[dict[str, str]]) -> None:
    monitor.execute(
        "block-export-add",
        {
            "type": "nbd",
            "id": names.export(number),
            "name": names.export(number),
            "node-name": node,
            "bitmaps": bitmaps,
        },
    )
