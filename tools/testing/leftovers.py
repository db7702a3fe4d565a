"""What a test run left behind: processes, mounts and loop devices.

Everything a run makes is under one folder, which is also its ``TMPDIR``. So
what belongs to the run can be told from what others do on the same machine:
a process has the folder in its environment, arguments or working directory, a
mount is under it, a loop device is backed by a file in it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path


def find(folder: Path) -> list[str]:
    """One sentence for each thing under `folder` that is still there."""
    return [
        *(f"process {pid}: {command[:200]}" for pid, command in _processes(folder).items()),
        *(f"mount {point}" for point in _mounts(folder)),
        *(f"loop device {device} of {file}" for device, file in loop_devices(folder).items()),
    ]


def children() -> list[str]:
    """One sentence for each process that this one started and that has not ended."""
    parents = _parents()
    own = {pid: _command(pid) for pid, parent in parents.items() if parent == os.getpid()}
    return [f"process {pid}: {command[:200]}" for pid, command in own.items() if command]


def remove(folder: Path) -> list[str]:
    """End, unmount and detach all under `folder`, and say what that was."""
    found = find(folder)
    if not found:
        return found
    for _ in range(3):  # what a process starts in its last moments is seen the next time
        for pid in _processes(folder, with_children=False):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for point in reversed(_mounts(folder)):
            _try("umount", "--lazy", point)
        for device in loop_devices(folder):
            _try("losetup", "--detach", device)
        time.sleep(0.05)
    return found


def _try(*command: str) -> None:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, check=False)


def _processes(folder: Path, with_children: bool = True) -> dict[int, str]:
    mark = os.fsencode(str(folder))
    ours = _ancestors()
    children = _parents()
    found = {}
    for pid, parent in children.items():
        if pid in ours:
            continue
        # Some overwrite their environment (PostgreSQL does), so the parent counts too.
        if (with_children and parent == os.getpid()) or mark in _traces(pid):
            command = _command(pid)
            if command:
                found[pid] = command
    return found


def _command(pid: int) -> str:
    """A process's arguments; a zombie has none."""
    return _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()


def _ancestors() -> set[int]:
    parents = _parents()
    pid, found = os.getpid(), set()
    while pid > 0:
        found.add(pid)
        pid = parents.get(pid, 0)
    return found


def _parents() -> dict[int, int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # The name in parentheses may hold spaces and parentheses (proc(5)).
            fields = _read(int(entry.name), "stat").rpartition(b")")[2].split()
            if len(fields) > 1:
                parents[int(entry.name)] = int(fields[1])
    return parents


def _traces(pid: int) -> bytes:
    try:
        cwd = os.fsencode(Path(f"/proc/{pid}/cwd").readlink())
    except OSError:
        cwd = b""
    return b"\0".join([_read(pid, "environ"), _read(pid, "cmdline"), cwd])


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it ended meanwhile, or is another user's
        return b""


def _mounts(folder: Path) -> list[str]:
    mounts = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4].encode().decode("unicode_escape")
        if Path(point).is_relative_to(folder):
            mounts.append(point)
    return mounts


def loop_devices(folder: Path) -> dict[str, str]:
    """The loop devices of files under `folder`, and those files."""
    devices = {}
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            file = backing.read_text().strip()
        except OSError:  # detached meanwhile
            continue
        if file.startswith(f"{folder}/"):
            devices[f"/dev/{backing.parent.parent.name}"] = file
    return devices
