"""Fleecing: all disks of a virtual machine at one instant, while the guest goes on writing.

A filter (``copy-before-write``) between each disk and its device copies data that the guest is
about to overwrite into a scratch file. The scratch files have no names, so that none is left
behind; QEMU gets them as open descriptors.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from lunr.backup.format.names import Geometry
from lunr.live import errors
from lunr.live.qemu import machine, names
from lunr.live.qemu.machine import Disk
from lunr.live.qemu.qmp import Monitor

#: Bytes that a bit of a bitmap stands for: the engine's unit of change.
GRANULARITY = Geometry().block

#: Seconds that a write of the guest waits until the old data is copied. After that the write goes
#: on, and the backup fails.
_COPY_TIMEOUT = 10


def begin_bitmaps(monitor: Monitor, disks: Sequence[Disk], group: str) -> None:
    """Start to record the writes to `disks`, before the cut.

    Raises:
        errors.CommandRefused: QEMU refuses.
    """
    if disks:
        actions = [_added(disk, f"{names.SINCE}{group}") for disk in disks]
        monitor.execute("transaction", {"actions": actions})


def put_filters(
    monitor: Monitor, disks: Sequence[Disk], scratch: Path, held: contextlib.ExitStack
) -> list[IO[bytes]]:
    """Prepare the filters; the guest does not use them yet.

    Args:
        monitor: the machine's.
        disks: the disks.
        scratch: a folder with room for the data that the guest overwrites during the backup.
        held: closes lunr's descriptors of the files there.

    Returns:
        These files, to check their sizes. They are gone when QEMU has closed them, too.

    Raises:
        errors.CannotBackUp: no file can be created in `scratch`.
        errors.CommandRefused: QEMU refuses.
    """
    files = []
    for number, disk in enumerate(disks):
        file = held.enter_context(_scratch_file(scratch, disk.size))
        files.append(file)
        note = names.note(number, disk.node)
        added = monitor.execute("add-fd", {"opaque": note}, descriptor=file.fileno())
        name = f"/dev/fdset/{added['fdset-id']}"
        target = {
            "driver": "raw",
            "node-name": names.scratch(number),
            "file": {"driver": "file", "filename": name},
        }
        monitor.execute("blockdev-add", target)
        before = {
            "driver": "copy-before-write",
            "node-name": names.filter_of(number),
            "file": disk.node,
            "target": names.scratch(number),
            "on-cbw-error": "break-snapshot",
            "cbw-timeout": _COPY_TIMEOUT,
        }
        monitor.execute("blockdev-add", before)
    return files


def _scratch_file(folder: Path, size: int) -> IO[bytes]:
    try:
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it outlives this function
        os.truncate(file.fileno(), size)
    except OSError as error:
        raise errors.CannotBackUp(
            reason=f"no scratch file can be created in {folder}: {error.strerror}."
        ) from error
    return file


def cut(
    monitor: Monitor,
    disks: Sequence[Disk],
    group: str,
    bases: Mapping[str, str],
    *,
    running: bool,
) -> float:
    """Make the cut: stop the guest, start the bitmaps, insert the filters, resume the guest.

    Args:
        monitor: the machine's.
        disks: the disks; they have their filters, and marks (:mod:`lunr.live.qemu.bitmaps`).
        group: the new group's id.
        bases: by the disk's name, the group since which its changes are needed. The bitmaps of
            the other disks have begun (:func:`begin_bitmaps`).
        running: whether the guest runs, and must be stopped.

    Returns:
        Seconds that the guest stood still; 0.0 if it was stopped before.

    Raises:
        errors.CommandRefused: QEMU refuses; the guest runs nevertheless.
    """
    actions: list[dict[str, Any]] = []
    for disk in disks:
        if disk.name in bases:
            actions.append(_added(disk, f"{names.SINCE}{group}"))
        base = f"{names.SINCE}{bases.get(disk.name, group)}"
        merge = {"node": disk.node, "target": names.CHANGED, "bitmaps": [base]}
        actions += [
            _added(disk, names.CHANGED, at_rest=True),
            {"type": "block-dirty-bitmap-merge", "data": merge},
        ]
    commands: list[tuple[str, dict[str, Any]]] = [("transaction", {"actions": actions})]
    for number, disk in enumerate(disks):
        commands.append(machine.using(disk, names.filter_of(number)))
    if running:
        commands = [("stop", {}), *commands, ("cont", {})]
    monitor.forget_events()
    # In one message: QEMU resumes the guest even if this process dies.
    monitor.execute_all(commands)
    if not running:
        return 0.0
    stopped = monitor.wait(_is_event("STOP"), "STOP")
    return _moment(monitor.wait(_is_event("RESUME"), "RESUME")) - _moment(stopped)


def _added(disk: Disk, name: str, *, at_rest: bool = False) -> dict[str, Any]:
    data = {
        "node": disk.node,
        "name": name,
        "granularity": GRANULARITY,
        # In memory only: a bitmap in a qcow2 file would miss changes made without QEMU.
        "persistent": False,
        "disabled": at_rest,
    }
    return {"type": "block-dirty-bitmap-add", "data": data}


def _is_event(name: str) -> Callable[[dict[str, Any]], bool]:
    return lambda event: event["event"] == name


def _moment(event: dict[str, Any]) -> float:
    stamp = event["timestamp"]
    return float(stamp["seconds"]) + float(stamp["microseconds"]) / 1e6
