"""A volume that is used while it is filled from a backup.

What is there (lunr/backup/lazy_image/presence.py) is read and written like any file.
What is not is fetched when it is read; a write needs no fetch, it makes its units
(4 KiB) present, and so does a discard.

**Why a fetched byte never replaces a written one.** A unit goes from absent to
present once and never back. Whoever makes units of a chunk present (a write, a
discard, a store of what was fetched) holds the chunk's lock while it writes them
to the local storage and until they are noted in the map. Whoever stores what was
fetched looks, with that lock held, which units are absent, and writes those
only. So a write to an absent unit comes either before that look, and the store
leaves the unit alone, or after the note, and writes over what was fetched.
Units that are present are never touched by a store; reading and writing them
needs no lock. What is fetched never changes, so two that fetch the same chunk
are no danger, only a waste (lunr/backup/read/single_flight.py).

**When the process is killed** (at any point) the local storage has what was
written to it, and the live map, which belongs to the kernel as well, what was noted.
A write is acknowledged after it was noted. One that was not, and whose units
were absent, is fetched over as if it had not been. A store that was not noted
is done again with the same bytes.

**When the power fails**, the disk map claims what was noted when the last sync
began, and the local storage has all of that: it is synced before the claims are written.
What was written later is there if its unit had been claimed, and the disk got so
far, sector by sector. If its unit had not been claimed it is fetched over before
anyone sees it; for zeros that need not be fetched nothing is written, and sectors
of it may shine through, as they may on a disk.

**Half units.** A write that does not cover a unit whole has that fetched before,
and goes over it then.
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
#: Of a chunk of which no more than this part is missing, or asked for, only that is fetched.
_SMALL_PART = 8


class SyncLost(OSError):
    """What was written since the last sync that worked is perhaps not on the disk, ever."""


class RestoredVolume:
    """What :class:`protocol.File` asks for, of a volume in `data` that fills from `source`.

    Attributes:
        requests: reads and writes so far.
        waiting: reads (and writes of half units) that wait for the store now.
        missed: called with the number of a chunk that somebody waits for.
        marks: chunks of which the first read is told to `passed`; replaced, never changed.
        passed: called with the number of such a chunk.
    """

    writable = True

    def __init__(self, source: Source, data: BackingFile, maps: Maps, data_is_zero: bool) -> None:
        """Serve the volume.

        Args:
            source: the backup.
            data: local storage; its size may be larger than the volume's.
            maps: what of it is there.
            data_is_zero: what is absent reads as zeros in `data`, or as what a
                write or store left there that was cut off.
        """
        self.size = maps.header.shape.size
        self.requests = 0
        self.waiting = 0
        self.missed: Callable[[int], None] = lambda _chunk: None
        self.marks: set[int] = set()
        self.passed: Callable[[int], None] = lambda _chunk: None
        self.presence = maps.presence
        self._source = source
        self._data = data
        self._maps = maps
        self._is_zero = data_is_zero
        self._chunk = maps.header.shape.chunk
        self._locks = [threading.Lock() for _ in range(_LOCKS)]
        self._fetching: SingleFlight[int, int] = SingleFlight()
        self._fetching_parts: SingleFlight[tuple[int, int, int], None] = SingleFlight()
        #: The blocks that are fetched now as the first of their chunk.
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
            self.passed(offset // self._chunk)
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
            _take(lock, until)
            try:
                self._data.write(offset, piece)
                self.presence.add(chunk, start // UNIT, -(-(start + len(piece)) // UNIT))
            finally:
                lock.release()
            data = data[len(piece) :]
            offset += len(piece)

    def zero(self, offset: int, length: int, until: float) -> None:
        """See :meth:`protocol.File.zero`. What was discarded counts as written."""
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
            SyncLost: one failed, and so no other succeeds in this boot.
        """
        with self._syncing:
            if self._maps.lost:
                raise SyncLost(errno.EIO, "an earlier sync failed")
            self._maps.flush(self._sync_data)

    def _sync_data(self) -> None:
        try:
            self._data.sync()
        except OSError as error:
            # The kernel tells it once and then takes the lost pages for written: another sync
            # would seem to work, of the next process too. From now on nothing more is promised.
            self._maps.lose()
            raise SyncLost(errno.EIO, f"the sync failed: {error.strerror}") from error

    def seek(self, offset: int, whence: int, until: float) -> int:  # noqa: ARG002
        """See :meth:`protocol.File.seek`. What is absent may be data, so it is."""
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
            found = self._data.seek(offset, whence)
            if found < end:
                return found
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
        """Fetch the units that a write from `offset` to `end` covers in part only."""
        if offset % UNIT:
            self._need(offset, offset + 1, until)
        if end % UNIT and end < self.size:
            self._need(end - 1, end, until)

    def _need(self, offset: int, end: int, until: float) -> None:
        """Return when all units that a range touches are present.

        Raises:
            BlockingIOError: they are not, and `until` is 0.
            TimeoutError: the store was away until `until`.
            OSError: EIO, they can't be fetched; or what writing them locally led to.
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
            self.missed(chunk)
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
        """Fetch what of `chunk` is absent; how many bytes that were, or None when some is damaged.

        `is_wanted`: whether somebody is going to read it soon.

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
        """Fetch the blocks of some units: at the first touch of a chunk, for a short wait.

        False: others of it are just fetched so. The second touch fetches all of it.
        """
        block = self._source.geometry.block
        low, high = first * UNIT // block, -(-last * UNIT // block)
        if self._first_parts.setdefault(chunk, (low, high)) != (low, high):
            return False

        def bring() -> None:
            data = self._source.blocks(chunk, low, high - low, until)
            self._store(chunk, low * block, min(high * block, self._chunk), data)

        try:
            self._fetching_parts.do((chunk, low, high), bring, until)
        finally:
            self._first_parts.pop(chunk, None)
        return True

    def _fetch(self, chunk: int, until: float, is_wanted: bool = True) -> int:
        return self._fetching.do(chunk, lambda: self._bring(chunk, until, is_wanted), until)

    def _bring(self, chunk: int, until: float, is_wanted: bool) -> int:
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
        """Fetch the absent units of a damaged chunk block by block; whether some can't be."""
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
            start: a byte of it.
            end: another.
            data: the bytes from `start` on; where it is shorter, or None, there are zeros.
            is_wanted: whether somebody is going to read them. What nobody asked for would
                only push other things out of the node's memory.
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
        """Whether all is there."""
        return self.presence.complete

    def mend(self) -> None:
        """Have it told which of the bytes that can't be had were written meanwhile."""
        self._source.mend(self._absent)

    def _absent(self, offset: int, end: int) -> Iterator[Extent]:
        """What of a range (first byte, end) is absent."""
        end = min(end, self.size)
        for chunk, first, last in self.presence.shape.pieces(offset, end):
            base = chunk * self._chunk
            for low, high in self.presence.absent(chunk, first, last):
                yield Extent(max(offset, base + low * UNIT), min(end, base + high * UNIT))

    @contextlib.contextmanager
    def still(self) -> Iterator[Iterator[Extent]]:
        """The extents that are absent; they stay so inside.

        For a snapshot of the local storage: it has all the rest. Writes to absent
        blocks wait meanwhile, and so does the fill; the others go on.
        """
        with self._locked(range(_LOCKS), math.inf):
            yield self.presence.absent_extents()

    @contextlib.contextmanager
    def _locked(self, chunks: range, until: float) -> Iterator[None]:
        numbers = range(_LOCKS) if len(chunks) >= _LOCKS else {n % _LOCKS for n in chunks}
        # In order, so that two never wait for each other.
        with contextlib.ExitStack() as held:
            for number in sorted(numbers):
                _take(self._locks[number], until)
                held.callback(self._locks[number].release)
            yield


def _take(lock: threading.Lock, until: float) -> None:
    """Take the lock of some chunks.

    Raises:
        Contended: another has it, and `until` is 0.
        TimeoutError: another had it until then.
    """
    if lock.acquire(blocking=False):
        return
    if not until:
        raise Contended(errno.EAGAIN, "others are at it")
    seconds = min(max(0.0, until - time.monotonic()), threading.TIMEOUT_MAX)
    if not lock.acquire(timeout=seconds):
        raise TimeoutError(errno.ETIMEDOUT, "others were at it for too long")
