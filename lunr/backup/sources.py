"""What can be saved."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from lunr.backup import errors


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
        """


class FileSource:
    """A file or block device that nobody writes to meanwhile.

    What the page cache has is taken from there; the rest is read past it, so
    that a backup does not push out what the node's volumes need.

    Attributes:
        size: how many bytes are to be saved.
    """

    def __init__(self, path: Path, size: int | None = None) -> None:
        """Open `path`, to read its first `size` bytes (None: all of it).

        Raises:
            errors.SourceError: it can't be opened, or is shorter than `size`.
        """
        self._path = path
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
        """See :meth:`Source.data`: all but the holes, where the file system can tell."""
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
        """A file that was cut short must not be taken for one that ends in zeros."""
        now = os.lseek(self._fd, 0, os.SEEK_END)
        if now < end:
            raise errors.SourceError(
                path=self._path, offset=now, reason="it ended while it was read."
            )

    def read(self, buffer: mmap.mmap, offset: int, length: int) -> memoryview:
        """See :meth:`Source.read`."""
        view = memoryview(buffer)[:length]
        done = 0
        while done < length:
            try:
                count = self._read(view[done:], offset + done)
            except OSError as error:
                raise errors.SourceError(
                    path=self._path, offset=offset + done, reason=f"{error.strerror}."
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
        if self._direct is not None and offset % mmap.PAGESIZE == 0:
            try:
                return os.preadv(self._direct, [view], offset)
            except OSError as error:
                if error.errno != errno.EINVAL:  # the end of a device, at no multiple of a page
                    raise
        return os.preadv(self._fd, [view], offset)
