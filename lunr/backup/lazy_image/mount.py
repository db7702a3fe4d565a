"""Mounting and unmounting a FUSE file system by the system calls: no fusermount, no library."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from lunr.common.errors import LunrError

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]

_RDONLY, _NOSUID, _NODEV, _NOEXEC = 1, 2, 4, 8
_DETACH = 2


class MountFailed(LunrError):
    """{path} can't be mounted: {reason}"""

    code = "mount_failed"


class MountBusy(LunrError):
    """{path} is in use and stays mounted: close the file in it, and detach loop devices."""

    code = "mount_busy"
    status = 409


def mount(point: Path, max_io: int, read_only: bool) -> int:
    """Mount on the folder `point`, and return the descriptor of /dev/fuse to serve it by.

    A mount that a dead process left there is removed first. Only the caller's user can see the
    files in the mount.

    Raises:
        MountFailed: the kernel can't, or the caller may not.
    """
    detach_dead(point)
    try:
        if point.stat().st_dev != point.parent.stat().st_dev:
            raise MountFailed(path=point, reason="something is mounted there.")
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise MountFailed(path=point, reason=f"{error.filename}: {error.strerror}.") from error
    options = (
        f"fd={fd},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()},"
        f"default_permissions,max_read={max_io}"
    )
    flags = _NOSUID | _NODEV | _NOEXEC | (_RDONLY if read_only else 0)
    if _libc.mount(b"lunr-image", os.fsencode(point), b"fuse.lunr", flags, options.encode()):
        number = ctypes.get_errno()
        os.close(fd)
        raise MountFailed(path=point, reason=f"{os.strerror(number)}.")
    return fd


def unmount(point: Path, lazy: bool = False) -> bool:
    """Unmount `point`; False if nothing is mounted there.

    `lazy` hides the mount now; it ends when the last file in it is closed.

    Raises:
        MountBusy: a file in it is open.
        MountFailed: the caller may not.
    """
    if not _libc.umount2(os.fsencode(point), _DETACH if lazy else 0):
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOENT):
        return False
    if number == errno.EBUSY:
        raise MountBusy(path=point)
    raise MountFailed(path=point, reason=f"{os.strerror(number)}.")


def detach_dead(point: Path) -> None:
    """Remove mounts on `point` whose process is dead, and no others.

    Raises:
        MountFailed: the caller may not.
    """
    while True:
        try:
            point.stat()
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
                return
            unmount(point, lazy=True)
        else:
            return
