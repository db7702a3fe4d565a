"""A volume that is used during its lazy restore.

Blocks that are present (lunr/backup/lazy_image/presence.py) are read and written like those of
any file. A read fetches absent blocks. A write or discard fetches none: it makes its units
(4 KiB) present.

**Why a fetched byte never replaces a written one.** A unit goes from absent to
present once and never back. A write, a discard and a store of fetched bytes make units present:
each holds the chunk's lock while it writes them to the local storage and until they are noted in
the map. A store checks, with that lock held, which units are absent, and writes only
those. So a write to an absent unit comes either before that check, and the store
skips the unit, or after the note, and overwrites the fetched bytes.
A store never touches units that are present; reading and writing them
needs no lock. Fetched bytes never change: two threads that fetch the same chunk do no harm,
only double work (lunr/backup/read/single_flight.py).

**When the process is killed** (at any point) the local storage has all that was
written to it, and the live map, which the kernel keeps as well, all that was noted.
A write is acknowledged after it was noted. A write to absent units that was not noted is
overwritten by a fetch, as if it had not happened. A store that was not noted
is repeated with the same bytes.

**When the power fails**, the disk map has the claims that were noted when the last sync
began, and the local storage has all of these units: it is synced before the claims are written.
A later write to a claimed unit is there as far as the disk got, sector by sector. A later write
to an unclaimed unit is overwritten by a fetch before any reader sees it. Where the backup has
zeros and the storage was zero, nothing is written, and sectors of that write may be seen, as
after a power cut of a disk.

**Half units.** A write that covers a unit in part fetches that unit first.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator

from lunr.backup.format.names import Buffer
from lunr.backup.lazy_image.backing_file import BackingFile
from lunr.backup.lazy_image.fuse_protocol import Contended
from lunr.backup.lazy_image.presence import ABSENT, PRESENT, UNIT
from lunr.backup.lazy_image.presence_file import Maps
from lunr.backup.read.backup_reader import DAMAGE, Source
from lunr.backup.read.single_flight import SingleFlight
from lunr.common.errors import LunrError
from lunr.common.extents import Extent

logger = logging.getLogger(__name__)

_LOCKS = 64
#: If at most this fraction of a chunk is absent, or needed, only these blocks are fetched.
_SMALL_PART = 8


class SyncLost(OSError):
    """Writes since the last successful sync may be lost."""


class RestoredVolume:
    """A volume in `data`, restored lazily from `source`, as a :class:`protocol.File`.

    Attributes:
        requests: reads and writes so far.
        waiting: reads (and writes of half units) that wait for the store now.
        on_miss: called with the number of a chunk that a request waits for.
        marks: chunks whose first read calls `on_progress`; the set is replaced, never changed.
        on_progress: called with the number of such a chunk.
    """

    writable = True

    def __init__(self, source: Source, data: BackingFile, maps: Maps, data_is_zero: bool) -> None:
        """Serve the volume.

        Args:
            source: the backup.
            data: local storage; it may be larger than the volume.
            maps: the maps of its local blocks.
            data_is_zero: whether absent blocks of `data` read as zeros, or as the rest of an
                interrupted write or store.
        """
        self.size = maps.header.shape.size
        self.requests = 0
        self.waiting = 0
        self.on_miss: Callable[[int], None] = lambda _chunk: None
        self.marks: set[int] = set()
        self.on_progress: Callable[[int], None] = lambda _chunk: None
        self.presence = maps.presence
        self._source = source
        self._data = data
        self._maps = maps
        self._is_zero = data_is_zero
        self._chunk = maps.header.shape.chunk
        self._locks = [threading.Lock() for _ in range(_LOCKS)]
        self._fetching: SingleFlight[int, int] = SingleFlight()
        self._fetching_parts: SingleFlight[tuple[int, int, int], None] = SingleFlight()
        #: The blocks that the first fetch of each chunk fetches now.
        self._first_parts: dict[int, tuple[int, int]] = {}
        self._syncing = threading.Lock()
        self._counting = threading.Lock()

    # --- what the kernel asks ------------------------------------------------------

    def read(self, offset: int, into: memoryview, until: float) -> memoryview:
        """See :meth:`protocol.File.read`."""
        self.requests += 1
        end = offset + len(into)
        if not self.presence.has(offset, end):
            self._need(offset, end, until)
        elif self.marks and offset // self._chunk in self.marks:
            self.on_progress(offset // self._chunk)
        return self._data.read(offset, into)

    def write(self, offset: int, data: memoryview, until: float) -> None:
        """See :meth:`protocol.File.write`."""
        self.requests += 1
        end = offset + len(data)
        if self.presence.has(offset, end):
            self._data.write(offset, data)
            return
        if offset % UNIT or end % UNIT:
            self._need_halves(offset, end, until)
        while data:
            chunk, start = divmod(offset, self._chunk)
            piece = data[: self._chunk - start]
            lock = self._locks[chunk % _LOCKS]
            _acquire(lock, until)
            try:
                self._data.write(offset, piece)
                self.presence.add(chunk, start // UNIT, -(-(start + len(piece)) // UNIT))
            finally:
                lock.release()
            data = data[len(piece) :]
            offset += len(piece)

    def zero(self, offset: int, length: int, until: float) -> None:
        """See :meth:`protocol.File.zero`. A discard counts as a write."""
        end = offset + length
        if self.presence.has(offset, end):
            self._data.zero(offset, length)
            return
        self._need_halves(offset, end, until)
        pieces = list(self.presence.shape.covered(offset, end))
        with self._locked(range(pieces[0][0], pieces[-1][1]), until):
            self._data.zero(offset, length)
            for chunk, stop, first, last in pieces:
                if stop > chunk + 1:
                    self.presence.add_chunks(chunk, stop)
                else:
                    self.presence.add(chunk, first, last)

    def sync(self) -> None:
        """See :meth:`protocol.File.sync`.

        Raises:
            SyncLost: a sync failed; after that every sync of this boot fails.
        """
        with self._syncing:
            if self._maps.lost:
                raise SyncLost(errno.EIO, "an earlier sync failed")
            self._maps.flush(self._sync_data)

    def _sync_data(self) -> None:
        try:
            self._data.sync()
        except OSError as error:
            # The kernel reports it once and then takes the lost pages for written: another sync
            # would seem to succeed, even in the next process. So none may succeed any more.
            self._maps.lose()
            raise SyncLost(errno.EIO, f"the sync failed: {error.strerror}") from error

    def seek(self, offset: int, whence: int, until: float) -> int:  # noqa: ARG002
        """See :meth:`protocol.File.seek`. Absent blocks count as data."""
        presence, size = self.presence, self._chunk
        while offset < self.size:
            chunk = offset // size
            if presence.state(chunk) != PRESENT:
                if whence == os.SEEK_DATA:
                    return offset
                following = presence.find(PRESENT, chunk)
                offset = self.size if following is None else following * size
                continue
            incomplete = presence.find_incomplete(chunk)
            end = self.size if incomplete is None else min(incomplete * size, self.size)
            at = self._data.seek(offset, whence)
            if at < end:
                return at
            offset = end
        if whence == os.SEEK_DATA:
            raise OSError(errno.ENXIO, "no data")
        return self.size

    def used(self) -> int:
        """See :meth:`protocol.File.used`."""
        return self._data.used()

    def backing(self) -> int | None:
        """See :meth:`protocol.File.backing`."""
        return self._data.fd if self.presence.complete else None

    # --- making present what is not --------------------------------------------------

    def _need_halves(self, offset: int, end: int, until: float) -> None:
        """Fetch the units that a write from `offset` to `end` covers only in part."""
        if offset % UNIT:
            self._need(offset, offset + 1, until)
        if end % UNIT and end < self.size:
            self._need(end - 1, end, until)

    def _need(self, offset: int, end: int, until: float) -> None:
        """Return when all units that a range touches are present.

        Raises:
            BlockingIOError: they are not, and `until` is 0.
            TimeoutError: the store was away until `until`.
            OSError: EIO: they can't be fetched; others: they can't be written locally.
        """
        for chunk, first, last in self.presence.shape.pieces(offset, end):
            while self.presence.absent(chunk, first, last):
                if not until:
                    raise BlockingIOError(errno.EAGAIN, "not here yet")
                self._wait_for(chunk, first, last, until)

    def _wait_for(self, chunk: int, first: int, last: int, until: float) -> None:
        with self._counting:
            self.waiting += 1
        try:
            self.on_miss(chunk)
            is_small = (last - first) * UNIT * _SMALL_PART <= self._chunk
            is_first = self.presence.state(chunk) == ABSENT and chunk not in self._fetching
            if not (is_small and is_first and self._fetch_part(chunk, first, last, until)):
                self._fetch(chunk, until)
        except DAMAGE:
            if self._salvage(chunk, first, last, until):
                raise OSError(errno.EIO, "the backup is damaged here") from None
        except LunrError as error:
            raise OSError(errno.EIO, str(error)) from error
        finally:
            with self._counting:
                self.waiting -= 1

    def fill(self, chunk: int, until: float, is_wanted: bool = False) -> int | None:
        """Fetch the absent blocks of `chunk`; how many bytes they have, None if some are damaged.

        `is_wanted`: whether a reader is expected to read it soon.

        Raises:
            TimeoutError: the store was away until `until` (of time.monotonic).
            OSError: the local storage failed.
        """
        try:
            return self._fetch(chunk, until, is_wanted)
        except DAMAGE:
            lost = self._salvage(chunk, 0, self.presence.shape.units(chunk), until)
            return None if lost else self._chunk

    def _fetch_part(self, chunk: int, first: int, last: int, until: float) -> bool:
        """Fetch only the blocks of some units, for a short wait, at the first read of a chunk.

        False: another thread does so for other units. The second read fetches the whole chunk.
        """
        block = self._source.geometry.block
        low, high = first * UNIT // block, -(-last * UNIT // block)
        if self._first_parts.setdefault(chunk, (low, high)) != (low, high):
            return False

        def fetch_blocks() -> None:
            data = self._source.blocks(chunk, low, high - low, until)
            self._store(chunk, low * block, min(high * block, self._chunk), data)

        try:
            self._fetching_parts.run((chunk, low, high), fetch_blocks, until)
        finally:
            self._first_parts.pop(chunk, None)
        return True

    def _fetch(self, chunk: int, until: float, is_wanted: bool = True) -> int:
        return self._fetching.run(chunk, lambda: self._fetch_absent(chunk, until, is_wanted), until)

    def _fetch_absent(self, chunk: int, until: float, is_wanted: bool) -> int:
        absent = self.presence.absent(chunk, 0, self.presence.shape.units(chunk))
        if not absent:
            return 0
        block, size = self._source.geometry.block, self._chunk
        first, last = absent[0][0] * UNIT // block, -(-absent[-1][1] * UNIT // block)
        if (last - first) * block * _SMALL_PART <= size:
            data = self._source.blocks(chunk, first, last - first, until)
            self._store(chunk, first * block, min(last * block, size), data)
        else:
            data = self._source.chunk(chunk, until)
            self._store(chunk, 0, size, data, is_wanted)
        return 0 if data is None else len(data)

    def _salvage(self, chunk: int, first: int, last: int, until: float) -> bool:
        """Fetch the absent units of a damaged chunk block by block; whether some are lost."""
        block, size = self._source.geometry.block, self._chunk
        lost = False
        for start in range(first * UNIT // block * block, min(last * UNIT, size), block):
            end = min(start + block, size)
            low, high = max(first, start // UNIT), min(last, -(-end // UNIT))
            if not self.presence.absent(chunk, low, high):
                continue
            try:
                data = self._source.blocks(chunk, start // block, 1, until)
            except DAMAGE:
                lost = True
            else:
                self._store(chunk, start, end, data)
        return lost

    def _store(
        self, chunk: int, start: int, end: int, data: Buffer | None, is_wanted: bool = True
    ) -> None:
        """Write the absent units between bytes `start` and `end` of a chunk, and note them.

        Args:
            chunk: its number.
            start: the first byte, in the chunk.
            end: the end.
            data: the bytes from `start` on; past its end, or if None, there are zeros.
            is_wanted: whether a reader is expected to read them; else they are dropped from the
                page cache, so as not to evict other pages.
        """
        view = memoryview(data) if data is not None else memoryview(b"")
        base = chunk * self._chunk
        end = min(end, self.size - base)
        first, last = -(-start // UNIT), -(-end // UNIT)
        with self._locks[chunk % _LOCKS]:
            for low, high in self.presence.absent(chunk, first, last):
                at, stop = low * UNIT, min(high * UNIT, end)
                piece = view[at - start : stop - start]
                if piece:
                    self._data.write(base + at, piece, keep=is_wanted)
                    self._data.begin_writing(base + at, len(piece))
                if at + len(piece) < stop and not self._is_zero:
                    self._data.zero(base + at + len(piece), stop - at - len(piece))
            self.presence.add(chunk, first, last)

    # --- for backups and the fill ------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether all blocks are present."""
        return self.presence.complete

    def clear_repaired_damage(self) -> None:
        """Report the damaged ranges that were written meanwhile."""
        self._source.clear_repaired_damage(self._absent)

    def _absent(self, offset: int, end: int) -> Iterator[Extent]:
        """The absent parts of a range (first byte, end)."""
        end = min(end, self.size)
        for chunk, first, last in self.presence.shape.pieces(offset, end):
            base = chunk * self._chunk
            for low, high in self.presence.absent(chunk, first, last):
                yield Extent(max(offset, base + low * UNIT), min(end, base + high * UNIT))

    @contextlib.contextmanager
    def freeze(self) -> Iterator[Iterator[Extent]]:
        """The absent extents, which stay absent within the context.

        Used for a snapshot of the local storage. Writes to absent blocks and the fill wait
        meanwhile; other requests go on.
        """
        with self._locked(range(_LOCKS), math.inf):
            yield self.presence.absent_extents()

    @contextlib.contextmanager
    def _locked(self, chunks: range, until: float) -> Iterator[None]:
        numbers = range(_LOCKS) if len(chunks) >= _LOCKS else {n % _LOCKS for n in chunks}
        # In order, so that two never wait for each other.
        with contextlib.ExitStack() as held:
            for number in sorted(numbers):
                _acquire(self._locks[number], until)
                held.callback(self._locks[number].release)
            yield


def _acquire(lock: threading.Lock, until: float) -> None:
    """Acquire the lock of some chunks.

    Raises:
        Contended: another thread holds it, and `until` is 0.
        TimeoutError: another thread held it until then.
    """
    if lock.acquire(blocking=False):
        return
    if not until:
        raise Contended(errno.EAGAIN, "another request holds the chunk")
    seconds = min(max(0.0, until - time.monotonic()), threading.TIMEOUT_MAX)
    if not lock.acquire(timeout=seconds):
        raise TimeoutError(errno.ETIMEDOUT, "another request held the chunk for too long")
