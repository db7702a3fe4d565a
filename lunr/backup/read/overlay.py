"""A source for volumes that are not all local yet: absent ranges are read from a backup."""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator

from lunr.backup import errors
from lunr.backup.read.backup_reader import Source as Stored
from lunr.backup.save.block_source import Source
from lunr.common.extents import Extents, merge

#: Seconds that the store may be away before the save fails; the job is then tried again.
_PATIENCE = 60.0


class Overlay:
    """A source that reads from `local`, and in absent ranges from the backup `stored`.

    Attributes:
        size: that of `local`.
    """

    def __init__(self, local: Source, absent: Extents, stored: Stored) -> None:
        """Read from both; the caller closes them.

        Args:
            local: the volume's device or file; in absent ranges its bytes mean nothing.
            absent: the ranges (first byte, end) that are not local.
            stored: the backing backup; past its end are zeros.
        """
        self.size = local.size
        self._local = local
        self._absent = absent
        self._stored = stored

    def data(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """See :meth:`lunr.backup.save.block_source.Source.data`: absent ranges may be data."""
        return merge(self._local.data(start, end), self._absent.within(start, end))

    def read(self, buffer: mmap.mmap, offset: int, length: int) -> memoryview:
        """See :meth:`lunr.backup.save.block_source.Source.read`.

        Raises:
            errors.StoreUnavailable: the store does not answer.
            errors.CorruptObject, errors.ObjectMissing: the backup is damaged there.
        """
        view = self._local.read(buffer, offset, length)
        for begin, stop in self._absent.within(offset, offset + length):
            self._read_stored(begin, view[begin - offset : stop - offset])
        return view

    def _read_stored(self, at: int, into: memoryview) -> None:
        """Fill the buffer `into` with the backup's bytes from `at` on."""
        geometry = self._stored.geometry
        while into:
            chunk, start = divmod(at, geometry.chunk)
            length = min(len(into), geometry.chunk - start)
            first, end = start // geometry.block, -(-(start + length) // geometry.block)
            try:
                data = self._stored.blocks(chunk, first, end - first, time.monotonic() + _PATIENCE)
            except TimeoutError as error:
                raise errors.StoreUnavailable(store="of backups", reason=str(error)) from error
            skipped = start - first * geometry.block
            piece = b"" if data is None else memoryview(data)[skipped : skipped + length]
            into[: len(piece)] = piece
            into[len(piece) : length] = bytes(length - len(piece))
            into = into[length:]
            at += length
