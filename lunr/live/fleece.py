"""All disks of a virtual machine as they are at one instant, while it goes on writing.

Between each disk and its device comes a filter (``copy-before-write``) that copies what the
guest is about to overwrite into a scratch file; what the disk was at the cut is read
through both (``snapshot-access``) and given out over NBD.

Names in QEMU, so that what a dead client left is known as such:

- nodes ``lunr-N-filter``, ``lunr-N-scratch``, ``lunr-N-cut`` and the export ``lunr-N``, with
  N the number of the disk;
- the bitmap ``lunr-since-GROUP``: all that was written since the cut of GROUP. It is kept,
  and goes on, until a later group is complete, so a backup that fails loses nothing;
- the bitmap ``lunr-changed``: what the export shows, a copy of one of those, at rest.

No file is left behind: the scratch files have no names, nor has the NBD server's socket
once we are connected to it. QEMU gets them as open descriptors, which also lets it run as
another user.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lunr.backup.format.names import Geometry
from lunr.live import errors, machine, nbd, source
from lunr.live.machine import Disk
from lunr.live.qmp import Monitor

logger = logging.getLogger(__name__)

_PREFIX = "lunr-"
SINCE = f"{_PREFIX}since-"
CHANGED = f"{_PREFIX}changed"
_SERVER = f"{_PREFIX}nbd"

#: Bytes that a bit of a bitmap stands for: the engine's unit of change.
GRANULARITY = Geometry().block

#: Seconds that a write of the guest waits for its old data to be copied, then goes on
#: without: the backup is lost, the guest is not.
_COPY_TIMEOUT = 10

#: Connections to each disk's export: QEMU reads for several at once.
_READERS = 4

#: Seconds that QEMU has to let go of an export.
_PATIENCE = 30.0


@dataclass(frozen=True)
class Cut:
    """The instant.

    Attributes:
        stall: seconds that the guest stood still; 0.0 when it did not run anyway.
    """

    stall: float


def filters(monitor: Monitor, disks: Sequence[Disk], scratch: Path) -> None:
    """Prepare the filters; the guest does not use them yet.

    Args:
        monitor: of the machine.
        disks: which.
        scratch: a folder with room for what the guest overwrites meanwhile.

    Raises:
        errors.CannotBackUp: there can be no file in `scratch`.
        errors.CommandRefused: QEMU says no.
    """
    for number, disk in enumerate(disks):
        file = _scratch_file(scratch, disk.size)
        try:
            added = monitor.execute(
                "add-fd", {"opaque": _note(number, disk)}, descriptor=file.fileno()
            )
        finally:
            file.close()
        _add_node(
            monitor,
            driver="raw",
            node_name=f"{_PREFIX}{number}-scratch",
            file={"driver": "file", "filename": f"/dev/fdset/{added['fdset-id']}"},
        )
        _add_node(
            monitor,
            driver="copy-before-write",
            node_name=f"{_PREFIX}{number}-filter",
            file=disk.node,
            target=f"{_PREFIX}{number}-scratch",
            on_cbw_error="break-snapshot",
            cbw_timeout=_COPY_TIMEOUT,
        )


def _scratch_file(folder: Path, size: int) -> Any:
    try:
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - the caller closes it
        os.truncate(file.fileno(), size)
    except OSError as error:
        raise errors.CannotBackUp(
            reason=f"there can be no scratch file in {folder}: {error.strerror}."
        ) from error
    return file


def _add_node(monitor: Monitor, **options: object) -> None:
    named = {name.replace("_", "-"): value for name, value in options.items()}
    monitor.execute("blockdev-add", named)


def cut(
    monitor: Monitor,
    disks: Sequence[Disk],
    group: str,
    bases: Mapping[str, str],
) -> Cut:
    """Stop, start the bitmaps anew, let the devices use the filters, go on.

    Args:
        monitor: of the machine.
        disks: which; they have their filters.
        group: the new group's id.
        bases: for a disk's name the group since which its changes are wanted.

    Raises:
        errors.CommandRefused: QEMU says no; the guest runs all the same.
    """
    actions: list[dict[str, Any]] = []
    for disk in disks:
        actions.append(_bitmap_action("add", disk.node, f"{SINCE}{group}", disabled=False))
        if disk.name in bases:
            base = f"{SINCE}{bases[disk.name]}"
            merge = {"node": disk.node, "target": CHANGED, "bitmaps": [base]}
            actions += [
                _bitmap_action("add", disk.node, CHANGED, disabled=True),
                {"type": "block-dirty-bitmap-merge", "data": merge},
            ]
    running = machine.is_running(monitor)
    monitor.forget_events()
    try:
        if running:
            monitor.execute("stop")
        monitor.execute("transaction", {"actions": actions})
        for number, disk in enumerate(disks):
            _use(monitor, disk.device, f"{_PREFIX}{number}-filter")
    finally:
        if running:
            monitor.execute("cont")
    if not running:
        return Cut(0.0)
    stopped = monitor.wait(_is_event("STOP"), "STOP")
    return Cut(_moment(monitor.wait(_is_event("RESUME"), "RESUME")) - _moment(stopped))


def _bitmap_action(action: str, node: str, name: str, *, disabled: bool) -> dict[str, Any]:
    data = {
        "node": node,
        "name": name,
        "granularity": GRANULARITY,
        # In memory only. One in a qcow2 file could outlive a change that no QEMU saw.
        "persistent": False,
        "disabled": disabled,
    }
    return {"type": f"block-dirty-bitmap-{action}", "data": data}


def _use(monitor: Monitor, device: str, node: str) -> None:
    """Let `device` use `node` from now on."""
    monitor.execute("qom-set", {"path": device, "property": "drive", "value": node})


def _is_event(name: str) -> Callable[[dict[str, Any]], bool]:
    return lambda event: event["event"] == name


def _moment(event: dict[str, Any]) -> float:
    stamp = event["timestamp"]
    return float(stamp["seconds"]) + float(stamp["microseconds"]) / 1e6


@dataclass(frozen=True)
class Exported:
    """What is given out of one disk.

    Attributes:
        source: the disk as it was at the cut.
        changed: the ranges that were written since its base; None without one.
    """

    source: source.NbdSource
    changed: list[tuple[int, int]] | None


@contextmanager
def exported(
    monitor: Monitor, disks: Sequence[Disk], bases: Mapping[str, str]
) -> Iterator[list[Exported]]:
    """What the `disks` were at the cut, to be read. `bases` as for :func:`cut`.

    Raises:
        errors.CannotBackUp: the machine's NBD server is taken.
        errors.ExportLost, errors.CommandRefused: there is nothing to read.
    """
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        count = _READERS * len(disks) + len(bases)
        sockets = iter(_connected(stack, listener, count))
        monitor.execute("getfd", {"fdname": _SERVER}, descriptor=listener.fileno())
        address = {"type": "fd", "data": {"str": _SERVER}}
        try:
            monitor.execute("nbd-server-start", {"addr": address, "max-connections": 0})
        except errors.CommandRefused as error:
            monitor.execute("closefd", {"fdname": _SERVER})
            raise errors.CannotBackUp(
                reason=f"its NBD server can't be had ({error.fields['reason']}): "
                "does another program back it up?"
            ) from error
        for number, disk in enumerate(disks):
            _export(monitor, number, disk, with_changes=disk.name in bases)
        found: list[Exported] = []
        for number, disk in enumerate(disks):
            export = f"{_PREFIX}{number}"
            changed = None
            if disk.name in bases:
                context = f"qemu:dirty-bitmap:{CHANGED}"
                (asked,) = source.negotiate([next(sockets)], export, context)
                changed = source.changes(disk.name, asked)
                asked.close()
            readers = source.negotiate(
                [next(sockets) for _ in range(_READERS)], export, nbd.ALLOCATION
            )
            found.append(Exported(source.NbdSource(disk.name, readers), changed))
        yield found


def _connected(
    stack: contextlib.ExitStack, listener: socket.socket, count: int
) -> list[socket.socket]:
    """Sockets that wait in the queue of `listener`, which nobody else can reach."""
    with tempfile.TemporaryDirectory(prefix="lunr-live-") as folder:  # mode 0700
        path = f"{folder}/nbd"
        listener.bind(path)
        listener.listen(count)
        sockets = [
            stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            for _ in range(count)
        ]
        for sock in sockets:
            sock.connect(path)
            sock.settimeout(_PATIENCE)
    return sockets


def _export(monitor: Monitor, number: int, disk: Disk, *, with_changes: bool) -> None:
    node = f"{_PREFIX}{number}-cut"
    _add_node(monitor, driver="snapshot-access", node_name=node, file=f"{_PREFIX}{number}-filter")
    bitmaps = [{"node": disk.node, "name": CHANGED}] if with_changes else []
    monitor.execute(
        "block-export-add",
        {
            "type": "nbd",
            "id": f"{_PREFIX}{number}",
            "name": f"{_PREFIX}{number}",
            "node-name": node,
            "bitmaps": bitmaps,
        },
    )


# --- taking it all down --------------------------------------------------------------


def is_amid_cut(nodes: set[str]) -> bool:
    """Whether there are filters among the `nodes`, and nothing that reads through them yet."""
    return any(re.fullmatch(rf"{_PREFIX}\d+-filter", node) for node in nodes) and not any(
        re.fullmatch(rf"{_PREFIX}\d+-cut", node) for node in nodes
    )


def clear(monitor: Monitor, only: int | None = None) -> bool:
    """Take down what this module has put up, whoever did; whether there was anything.

    The bitmaps ``lunr-since-…`` stay: they are what the next backup builds upon.

    Args:
        monitor: of the machine.
        only: just that of the disk of this number; its guest's writes no longer cost twice.

    Raises:
        errors.CommandRefused, errors.MonitorSilent: QEMU does not let go of something.
    """
    which = r"\d+" if only is None else str(only)
    exports = _delete_exports(monitor, re.compile(rf"{_PREFIX}{which}"))
    nodes = {node["node-name"] for node in monitor.execute("query-named-block-nodes")}
    names = re.compile(rf"{_PREFIX}{which}-(cut|filter|scratch)")
    ours = sorted(filter(names.fullmatch, nodes))  # which is also the order to delete them in
    for node in ours:
        if node.endswith("-cut"):
            monitor.execute("blockdev-del", {"node-name": node})
    _put_back(monitor, only)
    for node in ours:
        if not node.endswith("-cut"):
            monitor.execute("blockdev-del", {"node-name": node})
    _forget_files(monitor, only)
    if exports or ours:
        _stop_server(monitor)
    if only is None:
        _remove_bitmaps(monitor)
    return bool(exports or ours)


def _delete_exports(monitor: Monitor, ours: re.Pattern[str]) -> bool:
    """Delete our exports, whoever reads from them, and wait until they are gone."""

    def left() -> list[str]:
        exports = monitor.execute("query-block-exports")
        return [export["id"] for export in exports if ours.fullmatch(export["id"])]

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


def _put_back(monitor: Monitor, only: int | None) -> None:
    """Let the devices use their disks again."""
    disks = dict(_notes(monitor))
    for block in monitor.execute("query-block"):
        inserted, device = block.get("inserted"), block.get("qdev")
        if inserted is None or device is None:
            continue
        match = re.fullmatch(rf"{_PREFIX}(\d+)-filter", inserted["node-name"])
        if match and only in (None, int(match[1])):
            path = device if device.startswith("/") else f"/machine/peripheral/{device}"
            _use(monitor, path, disks[int(match[1])])


def _note(number: int, disk: Disk) -> str:
    """What goes with a scratch file: whose it is. QEMU keeps it as long as the file."""
    return f"{_PREFIX}{number} {disk.node}"


def _notes(monitor: Monitor) -> Iterator[tuple[int, str]]:
    """The disks' numbers and nodes, from the notes."""
    for one in monitor.execute("query-fdsets"):
        for fd in one["fds"]:
            match = re.fullmatch(rf"{_PREFIX}(\d+) (.+)", fd.get("opaque", ""))
            if match:
                yield int(match[1]), match[2]


def _forget_files(monitor: Monitor, only: int | None) -> None:
    for one in monitor.execute("query-fdsets"):
        for fd in one["fds"]:
            match = re.fullmatch(rf"{_PREFIX}(\d+) .+", fd.get("opaque", ""))
            if match and only in (None, int(match[1])):
                monitor.execute("remove-fd", {"fdset-id": one["fdset-id"], "fd": fd["fd"]})


def _stop_server(monitor: Monitor) -> None:
    """Stop the NBD server, unless it has other exports than ours."""
    if not monitor.execute("query-block-exports"):
        with contextlib.suppress(errors.CommandRefused):  # it does not run
            monitor.execute("nbd-server-stop")


def _remove_bitmaps(monitor: Monitor) -> None:
    for disk in machine.disks_of(monitor):
        if CHANGED in disk.bitmaps:
            remove_bitmap(monitor, disk, CHANGED)


def remove_bitmap(monitor: Monitor, disk: Disk, name: str) -> None:
    """Remove a bitmap of `disk`."""
    monitor.execute("block-dirty-bitmap-remove", {"node": disk.node, "name": name})
