"""The presence map: which blocks of a lazily restored volume are local.

It has two levels. A chunk is ABSENT, PARTIAL or PRESENT, one byte each; the units
(4 KiB) of a PARTIAL chunk have a bit each. A unit only ever goes from absent to
present: a thread that has seen it present needs no lock.

The map is in one *area*, a mutable buffer: the bytes of all chunks, then the bits of
all chunks, the same number of bytes for each. The area is meant to be a sparse file mapped into
memory: untouched parts take no room. 10 TiB in chunks of 4 MiB have
2.5 MiB of bytes, and 128 bytes more for each chunk of which a part was written.
"""

from __future__ import annotations

import itertools
import mmap
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from lunr.common.extents import Extent, merge, ones

UNIT = 4096
ABSENT, PARTIAL, PRESENT = range(3)

Area = mmap.mmap | bytearray
#: The parts of an area that are not zeros: (offset, bytes), in order.
Pieces = Iterable[tuple[int, bytes | bytearray]]


@dataclass(frozen=True)
class ChunkLayout:
    """The division of a volume of `size` bytes into chunks of `chunk` bytes, and into units."""

    size: int
    chunk: int

    def __post_init__(self) -> None:
        if self.size <= 0 or self.chunk <= 0 or self.chunk % UNIT:
            raise ValueError(f"{self.size} bytes can't be cut into chunks of {self.chunk}")

    @property
    def chunks(self) -> int:
        """How many chunks there are; the last may be short."""
        return -(-self.size // self.chunk)

    @property
    def bits(self) -> int:
        """Bytes that the bits of a chunk take."""
        return -(-self.chunk // (UNIT * 8))

    @property
    def area(self) -> int:
        """Bytes of the area."""
        return self.chunks * (1 + self.bits)

    def units(self, chunk: int) -> int:
        """How many units a chunk has; the volume's last unit may be short."""
        return -(-min(self.chunk, self.size - chunk * self.chunk) // UNIT)

    def pieces(self, offset: int, end: int) -> Iterator[tuple[int, int, int]]:
        """For each chunk that a range of bytes touches: its number, and its first and end unit."""
        while offset < end:
            chunk, start = divmod(offset, self.chunk)
            stop = min(end - chunk * self.chunk, self.chunk)
            yield chunk, start // UNIT, -(-stop // UNIT)
            offset = (chunk + 1) * self.chunk

    def covered(self, offset: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """A range as (first chunk, end, first unit, end): many whole chunks are one item."""
        head = min(-(-offset // self.chunk) * self.chunk, end)
        tail = max(end // self.chunk * self.chunk, head)
        for chunk, first, last in self.pieces(offset, head):
            yield chunk, chunk + 1, first, last
        if tail - head > self.chunk:
            yield head // self.chunk, tail // self.chunk, 0, 0
            head = tail
        for chunk, first, last in self.pieces(head, end):
            yield chunk, chunk + 1, first, last


def area_with(shape: ChunkLayout, present: Iterable[tuple[int, int]]) -> Pieces:
    """The area in which these ranges (first, end) of chunks are present, and nothing else."""
    states = bytearray(shape.chunks)
    for first, end in present:
        states[first:end] = bytes([PRESENT]) * (end - first)
    return [(0, states)]


def area_without(shape: ChunkLayout, absent: Sequence[tuple[int, int]]) -> Pieces:
    """The area in which all but these ranges (first byte, end), in order, is present."""
    states = bytearray([PRESENT]) * shape.chunks
    for offset, end in absent:
        for first, last, _, _ in shape.covered(offset, end):
            states[first:last] = bytes(last - first)  # the bits show the parts that are present
    bits = ((shape.chunks + chunk * shape.bits, part) for chunk, part in _parts(shape, absent))
    return itertools.chain([(0, states)], bits)


def _parts(shape: ChunkLayout, absent: Iterable[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
    """The chunks that are absent in part, or alone, and their bits."""
    pieces = (
        (chunk, ((1 << (last - first)) - 1) << first)
        for offset, end in absent
        for chunk, stop, first, last in shape.covered(offset, end)
        if stop == chunk + 1
    )
    for chunk, missing in itertools.groupby(pieces, lambda piece: piece[0]):
        present = (1 << shape.units(chunk)) - 1
        for _, units in missing:
            present &= ~units
        yield chunk, present.to_bytes(shape.bits, "little")


class Presence:
    """The map in `area`, from byte `base` of it on. Any thread may call it.

    Attributes:
        shape: of the volume.
        present: how many chunks are PRESENT.
    """

    def __init__(
        self,
        shape: ChunkLayout,
        area: Area,
        base: int = 0,
        changed: Callable[[int, int], None] = lambda _start, _end: None,
    ) -> None:
        """Use an existing map.

        `changed` is called, with the lock held, before bytes of the area change, with their
        range (counted from `base`). It may raise OSError: then nothing changes.
        """
        self.shape = shape
        self.lock = threading.Lock()
        self._area = area
        self._base = base
        self._bits_base = base + shape.chunks
        # Used by every write.
        self._chunk, self._units = shape.chunk, shape.chunk // UNIT
        self._chunks, self._bits = shape.chunks, shape.bits
        self._changed = changed
        self.present = area[base : base + shape.chunks].count(PRESENT)

    @property
    def complete(self) -> bool:
        """Whether all chunks are PRESENT."""
        return self.present == self.shape.chunks

    def state(self, chunk: int) -> int:
        """ABSENT, PARTIAL or PRESENT."""
        return self._area[self._base + chunk]

    def has(self, offset: int, end: int) -> bool:
        """Whether all units that a range of bytes touches are present."""
        size = self._chunk
        chunk, start = divmod(offset, size)
        stop = end - chunk * size
        if stop <= size:  # nearly always
            state = self._area[self._base + chunk]
            if state == PRESENT:
                return True
            return state == PARTIAL and not self._missing(chunk, start // UNIT, -(-stop // UNIT))
        return all(
            self.state(number) == PRESENT or not self._missing(number, first, last)
            for number, first, last in self.shape.pieces(offset, end)
        )

    def absent(self, chunk: int, first: int, end: int) -> list[Extent]:
        """The runs (first unit, end) of absent units of a chunk, from `first` to `end`."""
        state = self.state(chunk)
        if state == PRESENT:
            return []
        return list(ones(self._missing(chunk, first, end), first))

    def _missing(self, chunk: int, first: int, end: int) -> int:
        """The absent units from `first` to `end` as the bits of a number, the first the lowest."""
        start = self._bits_base + chunk * self._bits
        low, high = start + (first >> 3), start + ((end + 7) >> 3)
        present = int.from_bytes(self._area[low:high], "little") >> (first & 7)
        return ~present & ((1 << (end - first)) - 1)

    def add(self, chunk: int, first: int, end: int) -> None:
        """Mark the units of a chunk from `first` to `end` as present.

        Raises:
            OSError: there is no room for the map; nothing changes.
        """
        units = self._units if chunk < self._chunks - 1 else self.shape.units(chunk)
        with self.lock:
            area, at = self._area, self._base + chunk
            if area[at] == PRESENT:
                return
            if first == 0 and end >= units:
                self._finish(chunk)
                return
            start = self._chunks + chunk * self._bits
            low, high = start + (first >> 3), start + ((end + 7) >> 3)
            self._changed(low, high)
            area[at] = PARTIAL  # first: bits count only in a PARTIAL chunk
            low, high = self._base + low, self._base + high
            more = ((1 << (end - first)) - 1) << (first & 7)
            if high - low == 1:  # nearly always: a few units
                area[low] = bits = area[low] | more
                if bits != 0xFF and end < units & ~7:
                    return
            else:
                merged = int.from_bytes(area[low:high], "little") | more
                area[low:high] = merged.to_bytes(high - low, "little")
            if not self._missing(chunk, 0, units):
                self._finish(chunk)

    def _finish(self, chunk: int) -> None:
        self._changed(chunk, chunk + 1)
        self._area[self._base + chunk] = PRESENT
        self.present += 1

    def add_chunks(self, first: int, end: int) -> None:
        """Mark all of the chunks from `first` to `end` as present; see :meth:`add`."""
        with self.lock:
            self._changed(first, end)
            low, high = self._base + first, self._base + end
            self.present += end - first - self._area[low:high].count(PRESENT)
            self._area[low:high] = bytes([PRESENT]) * (end - first)

    def find(self, state: int, chunk: int, end: int | None = None) -> int | None:
        """The first chunk in `state` from `chunk` on, and before `end`."""
        stop = self._base + (self.shape.chunks if end is None else end)
        at = self._area.find(bytes([state]), self._base + chunk, stop)
        return None if at < 0 else at - self._base

    def find_incomplete(self, chunk: int) -> int | None:
        """The first chunk from `chunk` on that is not PRESENT."""
        absent = self.find(ABSENT, chunk)
        partial = self.find(PARTIAL, chunk, absent)
        return absent if partial is None else partial

    def absent_extents(self) -> Iterator[Extent]:
        """The absent extents, in order, joined."""
        return merge(self._absent_pieces())

    def _absent_pieces(self) -> Iterator[tuple[int, int]]:
        shape = self.shape
        chunk = self.find_incomplete(0)
        while chunk is not None:
            offset = chunk * shape.chunk
            for first, last in self.absent(chunk, 0, shape.units(chunk)):
                yield offset + first * UNIT, min(offset + last * UNIT, shape.size)
            chunk = self.find_incomplete(chunk + 1)
