"""Starting a machine from a group at once: its disks are there before their bytes are.

Each disk is a qcow2 file over the backup, which is shown as a file (FUSE) and fetched as it is
read. What the machine writes goes to the qcow2 file. QEMU itself brings the rest
(``block-stream``); from then on the qcow2 file needs nothing of lunr.
"""

from __future__ import annotations

import logging
import shlex
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from lunr.backup.image import mounting, protocol
from lunr.backup.image.image import Image
from lunr.backup.image.source import Source
from lunr.backup.image.worker import NAME, PATIENCE
from lunr.backup.repository import Repository
from lunr.live import errors
from lunr.live.groups import Group, Member
from lunr.live.qmp import Monitor

logger = logging.getLogger(__name__)

_JOB = "lunr-fill-"

#: Seconds between two looks whether the machine is there, or a job is done.
_LOOK = 0.2


class Disk:
    """A disk of a group, to be used while its context lasts.

    Attributes:
        name: the disk's, in its machine.
        path: the qcow2 file to give to QEMU. One that is there from an earlier start is used
            as it is.
    """

    def __init__(self, repository: Repository, member: Member, folder: Path) -> None:
        """Prepare the disk of `member` in `folder`; nobody else may use its files."""
        self.name = member.disk
        self.path = folder / f"{member.backup_id}.qcow2"
        self._point = folder / member.backup_id
        root = repository.load_root(member.backup_id)
        self._source = Source(repository.of(root), root, _ignore)
        self._serving: threading.Thread | None = None

    def __enter__(self) -> Disk:
        self._point.mkdir(exist_ok=True)
        fd = mounting.mount(self._point, protocol.MAX_IO, read_only=True)
        session = protocol.Session(fd, Image(self._source), NAME, PATIENCE)
        self._serving = threading.Thread(target=session.serve, daemon=True)
        self._serving.start()
        try:
            if not self.path.exists():
                _make_overlay(self.path, self._point / NAME)
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave()

    def is_used(self) -> bool:
        """Unmount the backup, unless somebody has it open; whether that is so."""
        try:
            mounting.unmount(self._point)
        except mounting.MountBusy:
            return True
        return False

    def _leave(self) -> None:
        # Whoever still has it open gets errors from now on: the caller has waited.
        mounting.unmount(self._point, lazy=True)
        self._source.close()
        self._point.rmdir()

    def options(self) -> list[str]:
        """What to give to QEMU for it."""
        file = f"driver=qcow2,node-name={self.name},file.driver=file,file.filename={self.path}"
        return ["-blockdev", file, "-device", f"virtio-blk-pci,drive={self.name},id={self.name}"]


def _ignore(event: str, **fields: object) -> None:
    """The log tells it too."""


def _make_overlay(path: Path, below: Path) -> None:
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(below), str(path)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise errors.CannotStart(reason="qemu-img is not installed: qemu-utils.") from error
    if done.returncode:
        raise errors.CannotStart(reason=done.stderr.strip())


def command_line(group: Group, disks: Sequence[Disk]) -> str:
    """What to start the machine with; the rest of it is the caller's to know."""
    options = (word for disk in disks for word in disk.options())
    return shlex.join(["qemu-system-x86_64", "-name", group.machine, *options])


def fill(monitor: Monitor, disks: Sequence[Disk], stop: threading.Event) -> None:
    """Let the machine behind `monitor` bring all of `disks`; it goes on meanwhile.

    Raises:
        errors.CannotStart: it does not use one of them, or could not read it.
        errors.MonitorUnavailable: it has ended.
    """
    nodes = {
        node["image"]["filename"]: node["node-name"]
        for node in monitor.execute("query-named-block-nodes")
        if node["drv"] == "qcow2"
    }
    for disk in disks:
        if str(disk.path) not in nodes:
            raise errors.CannotStart(reason=f"the machine does not use {disk.path}.")
        job = {"job-id": f"{_JOB}{disk.name}", "device": nodes[str(disk.path)]}
        # It waits when all is copied, and again when it has ended, until it is told to go on.
        monitor.execute("block-stream", {**job, "auto-finalize": False, "auto-dismiss": False})
    while not stop.is_set():
        jobs = [job for job in monitor.execute("query-jobs") if job["id"].startswith(_JOB)]
        for job in jobs:
            disk = next(disk for disk in disks if job["id"] == f"{_JOB}{disk.name}")
            _go_on(monitor, job, nodes[str(disk.path)])
        if not jobs:
            return
        stop.wait(_LOOK)


def _go_on(monitor: Monitor, job: dict[str, Any], node: str) -> None:
    if job["status"] == "pending":
        # The file is about to forget what is below it. What QEMU only remembers until now, of
        # where it has put what it copied, must be on the disk before.
        monitor.execute("human-monitor-command", {"command-line": f'qemu-io {node} "flush"'})
        monitor.execute("job-finalize", {"id": job["id"]})
    elif job["status"] == "concluded":
        monitor.execute("job-dismiss", {"id": job["id"]})
        if "error" in job:
            raise errors.CannotStart(reason=f"{job['id']}: {job['error']}.")


def wait_for(path: Path, stop: threading.Event) -> Monitor | None:
    """The monitor at `path` as soon as there is one; None when stopped before."""
    while not stop.is_set():
        try:
            return Monitor.open(path)
        except errors.MonitorUnavailable:
            stop.wait(_LOOK)
    return None


def hold(disks: Sequence[Disk], stop: threading.Event) -> None:
    """Return when stopped, and when nobody uses the `disks` any more.

    They are wanted until then: a machine whose disks go away has errors.
    """
    stop.wait()
    while any([disk.is_used() for disk in disks]):  # noqa: C419 - ask all of them
        time.sleep(_LOOK)
