"""A volume that is not all there yet, to be saved: what is absent is read from a backup."""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator

from lunr.backup import errors
from lunr.backup.read.backup_reader import Source as Stored
from lunr.backup.save.block_source import Source
from lunr.common.extents import Extents, merge

#: Seconds that the store may be away; then the save fails, and is tried again.
_PATIENCE = 60.0


class Overlay:
    """A source that reads as `local`, but where that is absent as the backup `stored`.

    Attributes:
        size: as of `local`.
    """

    def __init__(self, local: Source, absent: Extents, stored: Stored) -> None:
        """Both stay the caller's to close.

        Args:
            local: what is there; where it is absent it may read as anything.
            absent: the ranges (first byte, end) that are not there.
            stored: what the volume is being restored from; zeros are past its end.
        """
        self.size = local.size
        self._local = local
        self._absent = absent
        self._stored = stored

    def data(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """See :meth:`lunr.backup.save.block_source.Source.data`: all that is absent may be data."""
        return merge(self._local.data(start, end), self._absent.within(start, end))

    def read(self, buffer: mmap.mmap, offset: int, length: int) -> memoryview:
        """See :meth:`lunr.backup.save.block_source.Source.read`.

        Raises:
            errors.StoreUnavailable: the store does not answer.
            errors.CorruptObject, errors.ObjectMissing: the backup is damaged there.
        """
        view = self._local.read(buffer, offset, length)
        for begin, stop in self._absent.within(offset, offset + length):
            self._bring(begin, view[begin - offset : stop - offset])
        return view

    def _bring(self, at: int, into: memoryview) -> None:
        """Put what the backup has from byte `at` on `into` a buffer."""
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
