"""The sources that can be saved."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from lunr.backup import errors
from lunr.common.extents import Extents

#: The unit of every disk, and the smallest read past the page cache.
SECTOR = 512

#: The errors of a read that a device can't serve. All but EIO reach only readers past the page
#: cache (blk_errors in the kernel's block/blk-core.c).
_BAD_MEDIUM = frozenset({errno.EIO, errno.ENODATA, errno.EREMOTEIO, errno.EILSEQ})


class Source(Protocol):
    """Bytes that do not change while they are saved. Any thread may read."""

    @property
    def size(self) -> int:
        """How many bytes are to be saved."""

    def data(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The ranges (first byte, end) in `start` to `end` that may be other than zeros."""

    def read(self, buffer: mmap.mmap, offset: int, length: int) -> memoryview:
        """Fill `buffer` with `length` bytes from `offset` on; the view of just those.

        Raises:
            errors.SourceError: they can't be read; it names the offset.
            errors.BadSector: the device can't give them; it names the first bad sector.
        """


class FileSource:
    """A file or block device that does not change while it is read.

    Pages in the page cache are read from there. The rest is read past it: a backup must not
    evict the pages of the node's volumes.

    Attributes:
        size: how many bytes are to be saved.
    """

    def __init__(
        self,
        path: Path,
        size: int | None = None,
        allocated: Iterable[Sequence[int]] | None = None,
    ) -> None:
        """Open `path`, to read its first `size` bytes (None: all of it).

        Args:
            path: the file or device.
            size: bytes.
            allocated: the ranges (first byte, end), in order and apart, outside of which
                there are only zeros; None: unknown.

        Raises:
            ValueError: the ranges of `allocated` are not in order, or overlap.
            errors.SourceError: it can't be opened, or is shorter than `size`.
        """
        self._path = path
        self._allocated = None if allocated is None else Extents(allocated)
        self._direct = None
        self._cached = getattr(os, "RWF_NOWAIT", 0)
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                end = os.lseek(self._fd, 0, os.SEEK_END)
            except OSError:
                os.close(self._fd)
                raise
        except OSError as error:
            raise errors.SourceError(path=path, offset=0, reason=f"{error.strerror}.") from error
        with contextlib.suppress(OSError):  # this file system has no O_DIRECT
            self._direct = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        self.size = end if size is None else size
        if end < self.size:
            self.close()
            raise errors.SourceError(
                path=path, offset=end, reason=f"it ends there, before its {size} bytes."
            )

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
        if self._direct is not None:
            os.close(self._direct)

    def __enter__(self) -> FileSource:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def data(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """See :meth:`Source.data`: all but the known holes."""
        if self._allocated is None:
            yield from self._data(start, end)
            return
        for begin, stop in self._allocated.within(start, end):
            yield from self._data(begin, stop)

    def _data(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        at = start
        while at < end:
            try:
                begin = os.lseek(self._fd, at, os.SEEK_DATA)
                stop = os.lseek(self._fd, begin, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                    self._check_end(end)
                    return
                begin, stop = at, end  # block devices and some file systems can't tell
            if begin >= end:
                return
            yield begin, min(stop, end)
            at = stop

    def _check_end(self, end: int) -> None:
        """Raise SourceError if the file was truncated: its end must not pass for zeros."""
        now = os.lseek(self._fd, 0, os.SEEK_END)
        if now < end:
            raise errors.SourceError(
                path=self._path, offset=now, reason="it ended while it was read."
            )

    def read(self, buffer: mmap.mmap, offset: int, length: int) -> memoryview:
        """See :meth:`Source.read`."""
        view = memoryview(buffer)[:length]
        done, step = 0, length
        while done < length:
            try:
                count = self._read(view[done : done + step], offset + done)
            except OSError as error:
                if error.errno not in _BAD_MEDIUM:
                    raise errors.SourceError(
                        path=self._path, offset=offset + done, reason=f"{error.strerror}."
                    ) from error
                if step > SECTOR:  # the error names no sector: read less to find it
                    step = max(SECTOR, step // 2 // SECTOR * SECTOR)
                    continue
                raise errors.BadSector(
                    path=self._path,
                    offset=offset + done,
                    sector=(offset + done) // SECTOR,
                    reason=f"{os.strerror(errno.EIO)}.",
                ) from error
            if count == 0:
                raise errors.SourceError(
                    path=self._path, offset=offset + done, reason="it ended while it was read."
                )
            done += count
        return view

    def _read(self, view: memoryview, offset: int) -> int:
        if self._cached:
            try:
                count = os.preadv(self._fd, [view], offset, self._cached)
            except BlockingIOError:
                pass  # not in the page cache
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
                self._cached = 0
            else:
                if count:
                    return count
        if self._direct is not None and offset % SECTOR == 0:
            try:
                return os.preadv(self._direct, [view], offset)
            except OSError as error:
                if error.errno != errno.EINVAL:  # the device has larger sectors
                    raise
        return os.preadv(self._fd, [view], offset)
