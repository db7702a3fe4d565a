"""Where the bytes of a file lie in its file system: FS_IOC_FIEMAP.

By Documentation/filesystems/fiemap.rst and linux/fiemap.h of the kernel. All
numbers are in the byte order of the machine.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator

from lunr.common import concurrency
from lunr.storage.pools.extent_maps import Run

#: linux/fs.h: _IOWR('f', 11, struct fiemap)
_FS_IOC_FIEMAP = 0xC020660B

#: struct fiemap without its extents: start, length, flags, mapped extents, room for extents.
_HEADER = struct.Struct("=QQIII4x")
#: struct fiemap_extent: logical, physical, length, flags.
_EXTENT = struct.Struct("=QQQ16xI12x")

#: Write what is dirty first, so that all of it has a place.
_FLAG_SYNC = 0x1
_LAST = 0x1
_UNWRITTEN = 0x800
_MERGED = 0x1000
_SHARED = 0x2000
#: The flags with which "physical" is the place of these bytes, as they are. With the others it is
#: not known yet (UNKNOWN, DELALLOC), of other bytes (ENCODED, DATA_ENCRYPTED), or of blocks that
#: are shared with other data (NOT_ALIGNED, DATA_INLINE, DATA_TAIL).
_PLAIN = _LAST | _MERGED | _SHARED

#: Extents that are asked for at once.
_BATCH = 2048


def runs(file: int) -> Iterator[Run]:
    """The runs of the open `file`, in order: what is not in them reads as zeros.

    Places are counted in bytes, as the file system counts them; what it compresses or
    keeps in its metadata has none.

    Raises:
        OSError: the file system can't tell.
    """
    start, size = 0, os.fstat(file).st_size
    buffer = bytearray(_HEADER.size + _BATCH * _EXTENT.size)
    while start < size:
        _HEADER.pack_into(buffer, 0, start, size - start, _FLAG_SYNC, 0, _BATCH)
        # Reads metadata from the disk, and may have to write the file out before.
        concurrency.blocking(fcntl.ioctl, file, _FS_IOC_FIEMAP, buffer)
        found, start, is_last = parse(buffer)
        yield from found
        if is_last:
            return


def parse(answer: bytes | bytearray) -> tuple[list[Run], int, bool]:
    """The runs in what the kernel answered, where the last extent ends, and whether it is the last.

    An answer without extents is the last one.
    """
    _, _, _, count, _ = _HEADER.unpack_from(answer)
    extents = memoryview(answer)[_HEADER.size : _HEADER.size + count * _EXTENT.size]
    found = []
    end, flags = 0, _LAST
    for logical, physical, length, flags in _EXTENT.iter_unpack(extents):
        end = logical + length
        more = flags & ~_PLAIN
        # Given room, but never written: it reads as zeros, like a hole.
        if more != _UNWRITTEN:
            found.append(Run(logical, end, None if more else physical))
    return found, end, bool(flags & _LAST)
