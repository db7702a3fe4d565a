"""System calls that Python's standard library lacks."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator, Sequence

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syncfs.argtypes = [ctypes.c_int]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

_libc.mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
_libc.sync_file_range.argtypes = [
    ctypes.c_int,
    ctypes.c_int64,
    ctypes.c_int64,
    ctypes.c_uint,
]

_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02
_WRITE = 0x02
#: Write to disk at once, and drop the pages when they are written; see pwritev2(2).
_RWF_DONTCACHE = 0x80
#: Linux has it from 6.14 on. Before this release the kernel could drop a page that was just being
#: written again (fixed by "mm/filemap: gate dropbehind invalidate").
_SAFE_DONTCACHE = (6, 16)
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
#: The largest threshold that malloc accepts (HEAP_MAX_SIZE / 2); it is larger than any object.
_LARGEST_KEPT = 32 << 20


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def syncfs(fd: int) -> None:
    """Write all dirty pages of the file system of `fd` to disk; see syncfs(2).

    Raises:
        OSError: a write since `fd` was opened did not reach the disk.
    """
    _check(_libc.syncfs(fd))


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Make a range of a file or block device read as zeros, and free its room.

    Raises:
        OSError: EOPNOTSUPP where the file system or device can't; see fallocate(2).
    """
    _check(_libc.fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length))


def data_ranges(fd: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """The ranges (first byte, end) of a file from `start` on that are not holes."""
    while True:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # there is no data any more
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end
        start = end


def begin_writing(fd: int, offset: int = 0, length: int = 0) -> None:
    """Make the kernel start to write a dirty range of a file (length 0: to its end) to disk.

    It is a hint that makes a later sync short; that sync reports failures. See
    sync_file_range(2).
    """
    _libc.sync_file_range(fd, offset, length, _WRITE)


class UncachedWriter:
    """Writes data that is not read soon past the page cache.

    If the kernel and the file system support uncached buffered I/O, written pages go to disk
    and are dropped: that takes several times less processor time than to fill and clean the
    page cache. Otherwise it writes as usual, and tells the kernel to start the write to disk.
    Any thread may call it.
    """

    def __init__(self) -> None:
        self._can_forget = _release() >= _SAFE_DONTCACHE

    def write(self, fd: int, buffers: Sequence[bytes | bytearray | memoryview], offset: int) -> int:
        """Write `buffers` at `offset` as pwritev(2) does, and return the number of bytes."""
        if self._can_forget:
            try:
                return os.pwritev(fd, buffers, offset, _RWF_DONTCACHE)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                self._can_forget = False  # this file system or block device does not support it
        written = os.pwritev(fd, buffers, offset)
        begin_writing(fd, offset, written)
        return written


def _release() -> tuple[int, int]:
    """The kernel's release."""
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(digit for digit in minor if digit.isdigit()) or 0)


def reuse_memory() -> None:
    """Make malloc reuse large pieces instead of returning them to the kernel at once.

    A restore allocates thousands of pieces of 4 MiB, and each new piece costs a page fault for
    each of its pages: nine tenths of all page faults of a restore. The process then keeps the
    most memory that it ever had; see mallopt(3).
    """
    _libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
    _libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
