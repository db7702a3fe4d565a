"""The other users of a file or block device that is about to be overwritten."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

_PROC, _SYS = Path("/proc"), Path("/sys")


def find_users(path: Path) -> list[str]:
    """The mounts, devices and processes that use `path`, a phrase each.

    Only root sees the processes of other users. Users over the network or in another PID
    namespace can't be seen.
    """
    path = path.resolve()
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return []
    users = list(_claims(path)) if stat.S_ISBLK(mode) else []
    return [*users, *_loop_devices(path), *_writers(path)]


def _claims(device: Path) -> Iterator[str]:
    """The mount, swap or other device that has claimed a block device, or a part of it."""
    try:
        # Without O_CREAT this asks whether a block device is claimed: see open(2), O_EXCL.
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.EBUSY:
            return  # the restore's own open reports it better
        number = device.stat().st_rdev
        holders = _SYS / "dev/block" / f"{os.major(number)}:{os.minor(number)}" / "holders"
        names = sorted(holder.name for holder in holders.glob("*"))
        yield f"below {', '.join(names)}" if names else "mounted, or claimed by the kernel"


def _loop_devices(path: Path) -> Iterator[str]:
    for backing in _SYS.glob("block/loop*/loop/backing_file"):
        try:
            file = backing.read_text().rstrip("\n")
        except OSError:  # detached meanwhile
            continue
        if file == str(path):
            yield f"below /dev/{backing.parents[1].name}"


def _writers(path: Path) -> Iterator[str]:
    for process in sorted(_PROC.glob("[0-9]*")):
        if int(process.name) != os.getpid() and _writes(process, path):
            yield f"open in process {process.name} ({_name(process)})"


def _writes(process: Path, path: Path) -> bool:
    try:
        # Read only the links: stat(2) of the files can hang, as on a FUSE that hangs.
        links = [link for link in (process / "fd").iterdir() if _target(link) == path]
        return any(_flags(process, link.name) & os.O_ACCMODE != os.O_RDONLY for link in links)
    except OSError:  # it ended meanwhile, or is another user's
        return False


def _target(link: Path) -> Path | None:
    try:
        return link.readlink()
    except FileNotFoundError:  # closed meanwhile
        return None


def _flags(process: Path, name: str) -> int:
    for line in (process / "fdinfo" / name).read_text().splitlines():
        if line.startswith("flags:"):
            return int(line.split()[1], 8)
    return os.O_RDONLY


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return "ended meanwhile"
