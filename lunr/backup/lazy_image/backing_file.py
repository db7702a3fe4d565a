"""The local file or block device of a lazily restored volume, and the file of its map."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from lunr.common.linux import UncachedWriter, begin_writing, punch_hole

_ZEROS = bytes(1 << 20)


class BackingFile:
    """An open file or block device. Any thread may call it; errors are OSError.

    Attributes:
        path: where it is.
        fd: its descriptor.
        size: its bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.size = os.lseek(self.fd, 0, os.SEEK_END)
        self._streaming = UncachedWriter()

    def read(self, offset: int, into: memoryview) -> memoryview:
        """Fill `into` with the bytes from `offset` on; it is shorter at the end."""
        done = os.preadv(self.fd, [into], offset)
        while 0 < done < len(into):
            more = os.preadv(self.fd, [into[done:]], offset + done)
            if not more:
                break
            done += more
        return into[:done]

    def write(self, offset: int, data: memoryview, keep: bool = True) -> None:
        """Write all of `data`; without `keep` the page cache drops it, if the kernel can."""
        while data:
            if keep:
                done = os.pwrite(self.fd, data, offset)
            else:
                done = self._streaming.write(self.fd, [data], offset)
            data, offset = data[done:], offset + done

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros, by a hole if possible."""
        try:
            punch_hole(self.fd, offset, length)
        except OSError as error:
            # EINVAL: a block device, and the range is not in whole sectors.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            for start in range(0, length, len(_ZEROS)):
                step = min(len(_ZEROS), length - start)
                self.write(offset + start, memoryview(_ZEROS)[:step])

    def begin_writing(self, offset: int, length: int) -> None:
        """Start writing a range to disk, so that a later sync is short."""
        begin_writing(self.fd, offset, length)

    def sync(self) -> None:
        """Return when all that was written survives a power cut."""
        os.fdatasync(self.fd)

    def seek(self, offset: int, whence: int) -> int:
        """See lseek(2): SEEK_DATA and SEEK_HOLE; past the last data it is the size."""
        try:
            return os.lseek(self.fd, offset, whence)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return self.size
            if error.errno == errno.EINVAL:  # a block device: all of it is data
                return offset if whence == os.SEEK_DATA else self.size
            raise

    def used(self) -> int:
        """The bytes that it takes on disk."""
        return os.fstat(self.fd).st_blocks * 512

    def close(self) -> None:
        """Close it."""
        os.close(self.fd)
