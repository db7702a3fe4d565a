"""Copying one device to another that is all zeros."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

from lunr.common import concurrency, files, units
from lunr.storage.pools.base import Tick

#: Bytes that are copied at once.
_STEP = 4 * units.MIB
_ZEROS = bytes(_STEP)


def copy(source: Path, target: Path, length: int, tick: Tick) -> None:
    """Copy `length` bytes, a multiple of 512, to the start of `target`; zeros are not written.

    What has been copied when it returns is on the disk.

    Raises:
        OSError: a device fails, or ends.
        errors.Cancelled: `tick` said so.
    """
    # The buffer is aligned, as O_DIRECT wants it; copied beside the page cache, which others need.
    with (
        files.opened(source, os.O_RDONLY | os.O_DIRECT) as old,
        files.opened(target, os.O_WRONLY | os.O_DIRECT) as new,
        mmap.mmap(-1, _STEP) as buffer,
    ):
        for offset in range(0, length, _STEP):
            tick(offset, length)
            size = min(_STEP, length - offset)
            concurrency.blocking(_copy_piece, old, new, buffer, offset, size)
        concurrency.blocking(os.fsync, new)
        tick(length, length)


def _copy_piece(source: int, target: int, buffer: mmap.mmap, offset: int, size: int) -> None:
    with memoryview(buffer)[:size] as piece:
        if os.preadv(source, [piece], offset) != size:
            raise OSError(errno.EIO, f"the device ends before {offset + size}")
        # As bytes: memoryviews are compared item by item.
        if buffer[:size] != _ZEROS[:size] and os.pwrite(target, piece, offset) != size:
            raise OSError(errno.EIO, f"the device ends before {offset + size}")
