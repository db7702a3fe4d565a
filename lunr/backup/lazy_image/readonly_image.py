"""A backup as a read-only file."""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict

from lunr.backup.format.names import Buffer
from lunr.backup.lazy_image.fuse_protocol import Bytes
from lunr.backup.read.backup_reader import DAMAGE, Source
from lunr.backup.read.single_flight import SingleFlight
from lunr.common.errors import LunrError

#: Whole chunks kept (64 MiB). The kernel caches its answers besides.
_CHUNKS = 16
#: How many chunks are remembered as fetched in part.
_TOUCHED = 4096


class Image:
    """The backup behind `source` as a :class:`protocol.File`.

    The first read of a chunk fetches only the blocks it needs, the second the whole chunk. So
    reading a file system's tables moves kilobytes, and reading a file moves whole chunks.
    """

    writable = False

    def __init__(self, source: Source, size: int | None = None) -> None:
        """Show `source`; if `size` is larger, zeros follow."""
        self.size = source.size if size is None else size
        self._source = source
        self._lock = threading.Lock()
        self._chunks: OrderedDict[int, Buffer | None] = OrderedDict()
        self._touched: OrderedDict[int, None] = OrderedDict()
        #: Damaged chunks: they are not fetched whole again.
        self._broken: set[int] = set()
        self._loading: SingleFlight[int, Buffer | None] = SingleFlight()

    def read(self, offset: int, into: memoryview, until: float) -> Bytes:
        """See :meth:`protocol.File.read`."""
        size = self._source.geometry.chunk
        chunk, start = divmod(offset, size)
        if start + len(into) <= size:
            return self._part(chunk, start, len(into), until)
        done = 0
        while done < len(into):
            chunk, start = divmod(offset + done, size)
            length = min(size - start, len(into) - done)
            into[done : done + length] = self._part(chunk, start, length, until)
            done += length
        return into

    def _part(self, chunk: int, start: int, length: int, until: float) -> Bytes:
        with self._lock:
            known = chunk in self._chunks
            if known:
                self._chunks.move_to_end(chunk)
                data = self._chunks[chunk]
        if not known:
            if not until:
                raise BlockingIOError(errno.EAGAIN, "not here yet")
            try:
                if chunk in self._broken or self._is_first_touch(chunk, length):
                    return self._blocks(chunk, start, length, until)
                data = self._loading.run(chunk, lambda: self._load(chunk, until), until)
            except DAMAGE:
                self._broken.add(chunk)
                return self._blocks_or_error(chunk, start, length, until)
        if data is None:
            return bytes(length)
        return _filled_up(memoryview(data)[start : start + length], length)

    def _is_first_touch(self, chunk: int, length: int) -> bool:
        with self._lock:
            if chunk in self._touched or length * 4 > self._source.geometry.chunk:
                return False
            self._touched[chunk] = None
            if len(self._touched) > _TOUCHED:
                self._touched.popitem(last=False)
            return True

    def _load(self, chunk: int, until: float) -> Buffer | None:
        data = self._source.chunk(chunk, until)
        with self._lock:
            self._chunks[chunk] = data
            while len(self._chunks) > _CHUNKS:
                self._chunks.popitem(last=False)
            self._touched.pop(chunk, None)
        return data

    def _blocks(self, chunk: int, start: int, length: int, until: float) -> Bytes:
        block = self._source.geometry.block
        first, end = start // block, -(-(start + length) // block)
        data = self._source.blocks(chunk, first, end - first, until)
        if data is None:
            return bytes(length)
        start -= first * block
        return _filled_up(memoryview(data)[start : start + length], length)

    def _blocks_or_error(self, chunk: int, start: int, length: int, until: float) -> Bytes:
        """Part of a damaged chunk; an OSError if that part is damaged, too."""
        try:
            return self._blocks(chunk, start, length, until)
        except DAMAGE as error:
            raise OSError(errno.EIO, str(error)) from error

    def seek(self, offset: int, whence: int, until: float) -> int:
        """See :meth:`protocol.File.seek`: chunks of zeros are holes."""
        if not until:
            raise BlockingIOError(errno.EAGAIN, "segments may have to be fetched")
        size = self._source.geometry.chunk
        zeros = self._source.zero_ranges(self.size)
        chunk, end = offset // size, self._source.geometry.chunks(self.size)
        while chunk < end:
            known = next((stop for first, stop in zeros if first <= chunk < stop), None)
            try:
                is_hole = known is not None or self._source.entry(chunk, until) is None
            except LunrError as error:
                raise OSError(errno.EIO, str(error)) from error
            if is_hole == (whence == os.SEEK_HOLE):
                return max(offset, chunk * size)
            chunk = known if known is not None else chunk + 1
        if whence == os.SEEK_HOLE:
            return self.size
        raise OSError(errno.ENXIO, "no data")

    def used(self) -> int:
        """See :meth:`protocol.File.used`: the whole size."""
        return self.size

    def backing(self) -> None:
        """See :meth:`protocol.File.backing`: there is no file behind it."""

    def write(self, offset: int, data: memoryview, until: float) -> None:  # noqa: ARG002
        """See :meth:`protocol.File.write`."""
        raise OSError(errno.EROFS, "read-only")

    def zero(self, offset: int, length: int, until: float) -> None:  # noqa: ARG002
        """See :meth:`protocol.File.zero`."""
        raise OSError(errno.EROFS, "read-only")

    def sync(self) -> None:
        """See :meth:`protocol.File.sync`: nothing is written."""


def _filled_up(data: memoryview, length: int) -> Bytes:
    """`data` with zeros after it: the backup may end in the middle of a chunk."""
    return data if len(data) == length else bytes(data).ljust(length, b"\0")
