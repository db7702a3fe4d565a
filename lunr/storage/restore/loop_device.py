"""Loop devices (loop(4)) over the file that shows a backup.

They are told to go by themselves when nobody has them open (LO_FLAGS_AUTOCLEAR), so that one
whose maker is killed is not left over. They read the file past the page cache: then the kernel
asks for many places at once, where it otherwise waits for one after another.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

#: linux/loop.h
_CTL_GET_FREE = 0x4C82
_CONFIGURE = 0x4C0A
_CHANGE_FD = 0x4C06
_READ_ONLY, _AUTOCLEAR, _DIRECT_IO = 1, 4, 16
#: struct loop_config: the file, the size of a block, a struct loop_info64 of which only the flags
#: matter here, and what is reserved.
_CONFIG = struct.Struct("=II 52x I 160x 16x 64x")

_SECTOR = 512


def attach(file: Path) -> tuple[int, Path]:
    """A read-only loop device over `file`.

    Returns:
        A descriptor, and the device, which goes when this and all others are closed.

    Raises:
        OSError: the kernel can't.
    """
    below = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        config = _CONFIG.pack(below, _SECTOR, _READ_ONLY | _AUTOCLEAR | _DIRECT_IO)
        while True:
            loop, path = _free()
            try:
                fcntl.ioctl(loop, _CONFIGURE, config)
            except OSError as error:
                os.close(loop)
                if error.errno != errno.EBUSY:  # another process was quicker
                    raise
            else:
                return loop, path
    finally:
        os.close(below)


def _free() -> tuple[int, Path]:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        path = Path(f"/dev/loop{fcntl.ioctl(control, _CTL_GET_FREE)}")
    finally:
        os.close(control)
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC), path


def change(device: Path, file: Path) -> None:
    """Have the loop device `device` read `file` from now on, which shows the same.

    Raises:
        OSError: the kernel can't.
    """
    below = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        loop = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(loop, _CHANGE_FD, below)
        finally:
            os.close(loop)
    finally:
        os.close(below)
