"""Limits of I/O on block devices, by cgroup v2 (io.max in Documentation/admin-guide/cgroup-v2.rst).

The kernel counts an operation for the cgroup of the thread that submits it. So
a target's limits hold for what its threads do themselves: they must not write
to the page cache, which others empty. A limit is that of one device in one
cgroup; the root cgroup has none.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from lunr.storage.targets.base import Export, LimitsUnavailable, TargetFailed

CGROUPS = Path("/sys/fs/cgroup")
#: The cgroup for those that are in the root cgroup.
GROUP = CGROUPS / "lunr"


def available() -> bool:
    """Whether this machine's kernel can limit I/O by cgroup v2."""
    return _why_not() == ""


def kernel_threads(name: str) -> list[int]:
    """The kernel's threads of this name that are in the root cgroup, where they are born."""
    pids = (CGROUPS / "cgroup.procs").read_text().split()
    return [int(pid) for pid in pids if _name(pid) == name]


@dataclass(frozen=True)
class _Limited:
    """The device behind `path`, as MAJOR:MINOR, and its line of io.max."""

    path: Path
    device: str
    line: str

    @property
    def is_there(self) -> bool:
        """Whether it is that device still: the kernel gives the numbers of old ones to new ones."""
        return self.path.is_block_device() and _number(self.path) == self.device


class Limits:
    """The limits of I/O of one target, whose threads `threads` finds."""

    def __init__(self, threads: Callable[[], Iterable[int]]) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        #: By volumes' ids.
        self._limited: dict[str, _Limited] = {}

    def check(self, export: Export) -> None:
        """Find out whether the limits of `export` can be enforced.

        Raises:
            LimitsUnavailable: they can't; the message says why.
        """
        if not export.read_iops and not export.write_iops:
            return
        why = _why_not()
        if not why and not export.path.is_block_device():
            why = f"{export.path} is a file; only block devices have limits of their own"
        if why:
            raise LimitsUnavailable(id=export.volume_id, reason=why)

    def set(self, export: Export) -> None:
        """Let exactly the limits of `export` hold from now on, and of its volume no others.

        Raises:
            LimitsUnavailable: the kernel refuses.
            TargetFailed: it refuses to let the former ones go.
        """
        if not export.read_iops and not export.write_iops:
            self.clear(export.volume_id, export.path)
            return
        device = _number(export.path)
        line = f"{device} riops={_most(export.read_iops)} wiops={_most(export.write_iops)}"
        with self._lock:
            try:
                (self._enter() / "io.max").write_text(line)
            except OSError as error:
                raise LimitsUnavailable(id=export.volume_id, reason=str(error)) from error
            before = self._limited.get(export.volume_id)
            self._limited[export.volume_id] = _Limited(export.path, device, line)
            if before is not None and before.device != device:
                self._lift(before)

    def clear(self, volume_id: str, path: Path | None = None) -> None:
        """Let no limits hold for the volume, nor for its device `path`, whoever set them.

        Raises:
            TargetFailed: the kernel refuses.
        """
        with self._lock:
            before = self._limited.pop(volume_id, None)
            if before is not None:
                self._lift(before)
            if path is not None and path.is_block_device():
                self._lift(_Limited(path, _number(path), ""))

    def _lift(self, limited: _Limited) -> None:
        """Let no limits hold for a device, if it is there."""
        if not limited.is_there or not available():
            return
        limits = self._group() / "io.max"
        try:
            if limits.exists() and _line(limits, limited.device):
                limits.write_text(f"{limited.device} riops=max wiops=max")
        except OSError as error:
            raise TargetFailed(
                action=f"clear the I/O limits of {limited.path}", reason=str(error)
            ) from error

    def keep(self) -> None:
        """Bring threads that are new under the limits, and put back what somebody removed.

        Raises:
            OSError: the kernel refuses.
        """
        if not self._limited:
            return
        with self._lock:
            limits = self._enter() / "io.max"
            for limited in self._limited.values():
                if limited.is_there and not _line(limits, limited.device):
                    limits.write_text(limited.line)

    def _enter(self) -> Path:
        """Bring all threads into a cgroup that has limits, and return it."""
        group = self._group()
        _enable(group)
        for pid in self._threads():
            if _group_of(pid) == CGROUPS:
                try:
                    (group / "cgroup.procs").write_text(str(pid))
                except ProcessLookupError:  # it ended
                    continue
        return group

    def _group(self) -> Path:
        groups = {_group_of(pid) for pid in self._threads()}
        return next(iter(groups - {None, CGROUPS}), None) or GROUP


def _why_not() -> str:
    controllers = CGROUPS / "cgroup.controllers"
    if not controllers.exists():
        return f"no cgroup v2 is mounted on {CGROUPS}"
    if "io" not in controllers.read_text().split():
        return f"cgroup v2 has no controller `io` here (see {controllers})"
    return ""


def _enable(group: Path) -> None:
    """Make `group`, if it is not there, and switch the controller `io` on for it."""
    if not (group / "io.max").exists():
        group.mkdir(exist_ok=True)
        for parent in reversed(group.relative_to(CGROUPS).parents):
            (CGROUPS / parent / "cgroup.subtree_control").write_text("+io")


def _most(iops: int) -> str:
    """`iops` for io.max, which refuses 1."""
    return str(max(iops, 2)) if iops else "max"


def _number(path: Path) -> str:
    device = path.stat().st_rdev
    return f"{os.major(device)}:{os.minor(device)}"


def _line(limits: Path, device: str) -> str:
    """What io.max says of `device`; the kernel shows nothing of one without limits."""
    lines = limits.read_text().splitlines()
    return next((line for line in lines if line.startswith(f"{device} ")), "")


def _name(pid: str) -> str:
    try:
        return Path("/proc", pid, "comm").read_text().rstrip("\n")
    except (FileNotFoundError, ProcessLookupError):  # it ended
        return ""


def _group_of(pid: int) -> Path | None:
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # it ended
        return None
    found = next((line for line in lines if line.startswith("0::")), "0::/")
    return CGROUPS / found.removeprefix("0::").lstrip("/")
