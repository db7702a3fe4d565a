"""The content of a backup by chunks and blocks, for readers that can wait.

While the store is away, a request is sent again with growing pauses until the caller's
deadline. A corrupt or lost object is an error at once, and is reported once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from lunr.backup import errors
from lunr.backup.format import roots
from lunr.backup.format.names import Buffer
from lunr.backup.format.roots import Root
from lunr.backup.format.segments import Entry
from lunr.backup.read.plan import load_range
from lunr.backup.read.single_flight import SingleFlight
from lunr.backup.repository.repository import Repository
from lunr.common import files
from lunr.common.errors import LunrError
from lunr.common.extents import Extent, merge

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Segments kept: 4 GiB of volume each, some 150 KB.
_SEGMENTS = 32
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0

#: Errors of objects that another request does not mend.
DAMAGE = (errors.CorruptObject, errors.ObjectMissing, errors.UnsupportedFormat)


class Report(Protocol):
    """A function that reports an event: its name and fields."""

    def __call__(self, event: str, **fields: object) -> None:
        """Report `event`."""


def _ignore(event: str, **fields: object) -> None:
    """The reader logs every event, too."""


def kept_root(repository: Repository, backup_id: str, path: Path) -> Root:
    """The root of a backup from the file `path`, or else from the store into that file.

    With the file a volume can be served again while the store is away.

    Raises:
        errors.BackupMissing, errors.CorruptObject and others of Repository.load_root.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        root = repository.load_root(backup_id)
        files.write(path, roots.encode(root, repository.of(root).keys).decode())
        return root
    return roots.decode(raw, backup_id, str(path), repository.keys, *repository.older)


class _Damage(NamedTuple):
    """The ranges of a volume, in order, that one bad object makes unreadable."""

    reason: str
    ranges: list[Extent]


class Source:
    """One backup.

    Attributes:
        size: its bytes.
        geometry: the sizes of its chunks, blocks and segments.
    """

    def __init__(self, repository: Repository, root: Root, report: Report | None = None) -> None:
        """Read the backup `root`.

        Events that are reported: ``store`` (reason: why requests fail; None: they succeed
        again), ``damaged`` (object, reason, ranges: the known unreadable ones, [[first byte,
        end], …]; again whenever they change; none: all of them were written meanwhile).
        """
        self._root = root
        self._repository = repository.of(root)
        self.size = self._root.size_bytes
        self.geometry = self._root.geometry
        self._report = report or _ignore
        self._lock = threading.Lock()
        self._segments: OrderedDict[int, list[Entry]] = OrderedDict()
        self._loading: SingleFlight[int, list[Entry]] = SingleFlight()
        self._damage: dict[str, _Damage] = {}
        self._away = False
        self._closed = threading.Event()

    def close(self) -> None:
        """End all pauses."""
        self._closed.set()

    def zero_ranges(self, size: int) -> list[tuple[int, int]]:
        """Ranges (first, end) of chunks that are zeros according to the root alone.

        `size`: the volume's; past the end of the backup it is zeros.
        """
        ranges = [
            (chunks.start, chunks.stop)
            for chunks, ref in self._repository.segments_of(self._root)
            if ref is None and chunks
        ]
        chunks_stored, chunks_needed = self.geometry.chunks(self.size), self.geometry.chunks(size)
        if chunks_stored < chunks_needed:
            ranges.append((chunks_stored, chunks_needed))
        return ranges

    def entry(self, chunk: int, until: float) -> Entry:
        """The entry of a chunk; None: zeros, also past the end."""
        number, index = divmod(chunk, self.geometry.segment_chunks)
        if number >= len(self._root.segments) or self._root.segments[number] is None:
            return None
        entries = self._segment(number, until)
        return entries[index] if index < len(entries) else None

    def _segment(self, number: int, until: float) -> list[Entry]:
        with self._lock:
            entries = self._segments.get(number)
            if entries is not None:
                self._segments.move_to_end(number)
                return entries
        ref = self._root.segments[number]
        assert ref is not None
        chunks = self.geometry.chunks_in(number, self.size)

        def load() -> list[Entry]:
            return self._asked(lambda: self._repository.load_segment(ref, len(chunks)), until)

        try:
            entries = self._loading.run(number, load, until)
        except DAMAGE as error:
            size = self.geometry.chunk
            offset, end = chunks.start * size, min(chunks.stop * size, self.size)
            self._tell_damage(offset, end - offset, error)
            raise
        with self._lock:
            self._segments[number] = entries
            while len(self._segments) > _SEGMENTS:
                self._segments.popitem(last=False)
        return entries

    def chunk(self, chunk: int, until: float) -> Buffer | None:
        """All bytes of a chunk (those past the backup's end are missing); None: zeros.

        Raises:
            TimeoutError: the store was away until `until` (of time.monotonic).
            DAMAGE: an object can't be used; part of the chunk may be fine, see :meth:`blocks`.
        """
        count = -(-self.geometry.chunk // self.geometry.block)
        return self._blocks(chunk, 0, count, until)

    def blocks(self, chunk: int, first: int, count: int, until: float) -> Buffer | None:
        """The bytes of `count` blocks of a chunk, from `first` on; see :meth:`chunk`.

        Only what is needed for them is fetched. Damage is reported.
        """
        try:
            return self._blocks(chunk, first, count, until)
        except DAMAGE as error:
            block = self.geometry.block
            offset = chunk * self.geometry.chunk + first * block
            self._tell_damage(offset, min(count * block, self.size - offset), error)
            raise

    def _blocks(self, chunk: int, first: int, count: int, until: float) -> Buffer | None:
        entry = self.entry(chunk, until)
        if entry is None:
            return None
        length = self.geometry.chunk_length(chunk, self.size)
        needed = range(first, min(first + count, -(-length // self.geometry.block)))
        if not needed:
            return None
        return self._asked(
            lambda: load_range(self._repository, entry, length, self.geometry, needed), until
        )

    def _asked(self, request: Callable[[], T], until: float) -> T:
        """The result of `request`, which is repeated while the store is away."""
        pause = _FIRST_PAUSE
        while True:
            if time.monotonic() >= until:  # the caller waited for other threads or requests
                raise TimeoutError("the store takes too long")
            try:
                answer = request()
            except (errors.StoreUnavailable, errors.StoreRefused) as error:
                self._tell_store(str(error))
                left = until - time.monotonic()
                if left <= 0 or self._closed.wait(min(pause, left)):
                    raise TimeoutError(str(error)) from error
                pause = min(pause * 2, _LONGEST_PAUSE)
            else:
                self._tell_store(None)
                return answer

    def _tell_store(self, reason: str | None) -> None:
        away = reason is not None
        if away == self._away:
            return
        with self._lock:
            changed, self._away = away != self._away, away
        if changed:
            logger.warning("%s", reason or "The backup store answers again.")
            self._report("store", reason=reason)

    def _tell_damage(self, offset: int, length: int, error: LunrError) -> None:
        name = str(error.fields["name"])
        with self._lock:
            known = self._damage.get(name, _Damage(str(error), []))
            ranges = list(merge(sorted([*known.ranges, Extent(offset, offset + length)])))
            if ranges == known.ranges:
                return
            self._damage[name] = _Damage(known.reason, ranges)
            self._report("damaged", object=name, reason=known.reason, ranges=ranges)
        if not known.ranges:
            logger.error("%s", error)

    def clear_repaired_damage(
        self, absent: Callable[[int, int], Iterable[tuple[int, int]]]
    ) -> None:
        """Report damaged ranges that were written meanwhile; `absent` gives the unwritten parts."""
        with self._lock:
            for name, known in list(self._damage.items()):
                remaining = list(merge(part for extent in known.ranges for part in absent(*extent)))
                if remaining == known.ranges:
                    continue
                self._damage[name] = _Damage(known.reason, remaining)
                self._report("damaged", object=name, reason=known.reason, ranges=remaining)
                if not remaining:
                    del self._damage[name]
