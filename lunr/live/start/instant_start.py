"""Instant start of a machine from a backup group, before the data of its disks is fetched.

Each disk is a qcow2 file over the backup, a FUSE file whose blocks are fetched as they are
read. The machine's writes go to the qcow2 file. QEMU itself copies the rest
(``block-stream``); after that the qcow2 file does not need lunr any more.
"""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lunr.backup.lazy_image import fuse_protocol, mount
from lunr.backup.lazy_image.process import NAME, PATIENCE
from lunr.backup.lazy_image.readonly_image import Image
from lunr.backup.read.backup_reader import Source
from lunr.backup.repository.repository import Repository
from lunr.common import files
from lunr.common.errors import LunrError
from lunr.live import errors
from lunr.live.backup.announcements import Service
from lunr.live.backup.groups import Group, Member
from lunr.live.qemu.qmp import Monitor

logger = logging.getLogger(__name__)

_JOB = "lunr-fill-"

#: Seconds after which jobs and machines that an error has stopped are told to try again.
_TRY_AGAIN = 5.0

#: Seconds between two checks whether the machine is there, or a job is done.
_INTERVAL = 0.2


class Disk:
    """A disk of a group, usable during the context.

    Attributes:
        name: the disk's, in its machine.
        path: the qcow2 file for QEMU. A file of an earlier start is used as it is.
    """

    def __init__(self, repository: Repository, member: Member, folder: Path) -> None:
        """Prepare the disk of `member` in `folder`; no other process may use its files."""
        self.name = member.disk
        self.path = folder / f"{member.backup_id}.qcow2"
        self._point = folder / member.backup_id
        root = repository.load_root(member.backup_id)
        self._source = Source(repository.of(root), root)
        self._serving: threading.Thread | None = None

    def __enter__(self) -> Disk:
        mount.detach_dead(self._point)  # of a killed start
        self._point.mkdir(mode=0o700, exist_ok=True)
        fd = mount.mount(self._point, fuse_protocol.MAX_IO, read_only=True)
        session = fuse_protocol.Session(fd, Image(self._source), NAME, PATIENCE)
        self._serving = threading.Thread(target=session.serve, daemon=True)
        self._serving.start()
        try:
            if not self.path.exists():
                _make_overlay(self.path, self._point / NAME)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._close()

    def is_used(self) -> bool:
        """Unmount the backup, unless it is open; return whether it is open."""
        try:
            mount.unmount(self._point)
        except mount.MountBusy:
            return True
        return False

    def _close(self) -> None:
        # Processes that have it open get errors from now on: the caller has waited for them.
        mount.unmount(self._point, lazy=True)
        self._source.close()
        self._point.rmdir()


def _make_overlay(path: Path, below: Path) -> None:
    """Make the qcow2 file `path`: whole, or not at all."""
    partial = path.with_suffix(".partial")
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(below), str(partial)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, umask=0o077)
    except FileNotFoundError as error:
        raise errors.CannotStart(reason="qemu-img is not installed: qemu-utils.") from error
    if done.returncode:
        raise errors.CannotStart(reason=done.stderr.strip())
    partial.rename(path)


def fill(monitor: Monitor, disks: Sequence[Disk], stop: threading.Event) -> None:
    """Make QEMU copy all of `disks`, while the machine runs.

    Raises:
        errors.CannotStart: the machine does not use one of them, or QEMU could not read it.
        errors.MonitorUnavailable: QEMU has ended.
    """
    nodes = {
        node["image"]["filename"]: node["node-name"]
        for node in monitor.execute("query-named-block-nodes")
        if node["drv"] == "qcow2"
    }
    existing = {job["id"] for job in _jobs(monitor)}
    for disk in disks:
        if str(disk.path) not in nodes:
            raise errors.CannotStart(reason=f"the machine does not use {disk.path}.")
        job = {"job-id": _job(disk), "device": nodes[str(disk.path)]}
        if job["job-id"] in existing:  # of a start that was killed
            continue
        # The job waits for a command after a read error, when all is copied, and when it has
        # ended.
        waits = {"on-error": "stop", "auto-finalize": False, "auto-dismiss": False}
        monitor.execute("block-stream", {**job, **waits})
    tried = time.monotonic()
    while (jobs := _jobs(monitor)) and not stop.is_set():
        for job in jobs:
            disk = next(disk for disk in disks if job["id"] == _job(disk))
            _advance_job(monitor, job, nodes[str(disk.path)])
        if time.monotonic() - tried > _TRY_AGAIN:
            _resume_after_error(monitor)
            tried = time.monotonic()
        stop.wait(_INTERVAL)
    _cancel_jobs(monitor, jobs)


def _job(disk: Disk) -> str:
    return f"{_JOB}{disk.name}"


def _jobs(monitor: Monitor) -> list[dict[str, Any]]:
    return [job for job in monitor.execute("query-jobs") if job["id"].startswith(_JOB)]


def _advance_job(monitor: Monitor, job: dict[str, Any], node: str) -> None:
    if job["status"] == "pending":
        # The file is about to drop its backing file. QEMU's cached metadata of the copied
        # clusters must be on the disk before.
        monitor.execute("human-monitor-command", {"command-line": f'qemu-io {node} "flush"'})
        monitor.execute("job-finalize", {"id": job["id"]})
    elif job["status"] == "concluded":
        monitor.execute("job-dismiss", {"id": job["id"]})
        if "error" in job:
            raise errors.CannotStart(reason=f"{job['id']}: {job['error']}.")


def _resume_after_error(monitor: Monitor) -> None:
    """Resume jobs and the machine after an error: the store may be back."""
    for job in monitor.execute("query-block-jobs"):
        if job["device"].startswith(_JOB) and job["io-status"] != "ok":
            logger.warning("%s could not read or write; it tries again.", job["device"])
            monitor.execute("block-job-resume", {"device": job["device"]})
    if monitor.execute("query-status")["status"] == "io-error":
        logger.warning("The machine could not read or write, and stands still; it tries again.")
        monitor.execute("cont")


def _cancel_jobs(monitor: Monitor, jobs: Sequence[dict[str, Any]]) -> None:
    """Cancel `jobs`; the copied data stays."""
    for job in jobs:
        with contextlib.suppress(errors.CommandRefused):  # it has ended
            monitor.execute("block-job-cancel", {"device": job["id"], "force": True})
    deadline = time.monotonic() + PATIENCE
    while jobs and time.monotonic() < deadline:
        jobs = _jobs(monitor)
        for job in jobs:
            if job["status"] == "concluded":
                monitor.execute("job-dismiss", {"id": job["id"]})
        time.sleep(_INTERVAL)


@contextlib.contextmanager
def protected_backups(service: Service | None, group: Group, folder: Path) -> Iterator[None]:
    """Protect the backups of `group` in the service from deletion, during the context.

    A note in `folder` names those that were not protected before: the next start there needs it
    if this one is killed. Without a service nothing is protected.

    Raises:
        errors of :mod:`lunr.client.errors`: the service refuses, or does not answer.
    """
    if service is None:
        yield
        return
    note = folder / f"{group.group_id}.protected"
    ours = set(json.loads(note.read_text())) if note.exists() else set()
    ours.update(service.unprotected(group))
    files.write(note, json.dumps(sorted(ours)))
    service.protect(ours, True)
    try:
        yield
    finally:
        try:
            service.protect(ours, False)
            note.unlink()
        except LunrError as error:
            logger.warning("Backups stay protected: %s", error)


def wait_for(path: Path, stop: threading.Event) -> Monitor | None:
    """Wait for a monitor at `path`, and open it; None when stopped before."""
    while not stop.is_set():
        try:
            return Monitor.open(path)
        except errors.MonitorUnavailable:
            stop.wait(_INTERVAL)
    return None


def wait_until_unused(disks: Sequence[Disk], stop: threading.Event) -> None:
    """Return when stopped, and when no process uses the `disks` any more.

    A machine whose disks vanish would see errors.
    """
    stop.wait()
    while any([disk.is_used() for disk in disks]):  # noqa: C419 - ask all of them
        time.sleep(_INTERVAL)
