"""What dm-snapshot keeps of a snapshot: its COW area's table, and what the kernel says of it.

Before a chunk of the origin is overwritten for the first time, the kernel
copies it to the COW area and writes an *exception* about it, both on the disk
before the origin's write begins. So the exceptions say what has changed since.

The area, by drivers/md/dm-snap-persistent.c: chunk 0 is the header (four
little-endian 32-bit words: magic, valid, version, sectors of a chunk). Then
come areas, each a chunk of exceptions (pairs of 64-bit words: the origin's
chunk, the COW's chunk) and as many chunks of data as that holds. COW chunks
are handed out in order; an exception whose second word is 0 ends the table.

The device is read with O_DIRECT: the kernel writes to it below the page cache.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lunr.common import files, units
from lunr.common.extents import Extent, ones_in
from lunr.storage.pools.extent_maps import within_both

#: Bytes of a chunk in the snapshots that lunr makes: the block of backups, so that what has
#: changed is told just as fine. Measured, a writer pays about a third for sequential writes of
#: what it pays with 4 KiB, and hardly more than with larger ones, which fill the area faster.
CHUNK = 32 * units.KIB

_MAGIC = 0x70416E53  # SNAP_MAGIC
_VERSION = 1
_HEADER = struct.Struct("<4I")
_EXCEPTION = struct.Struct("<2Q")
_SECTOR = 512
#: Largest chunk that the kernel takes (lvcreate(8) allows 512 KiB).
_CHUNK_MAX = units.MIB

#: Chunks that may hold data and have no exception yet when the machine dies: the kernel lets
#: a new copy begin while DEFAULT_COW_THRESHOLD = 2048 of them are under way (dm-snap.c), and
#: writes exceptions in the order of their chunks. Twice that, for writers that race past it
#: and the chunks of exceptions among them.
_UNTOLD = 2 * 2048

#: Reads `length` bytes at `offset` of a COW area; less at its end.
Read = Callable[[int, int], bytes]


class CowUnreadable(ValueError):
    """The table can't be used: the kernel gave the snapshot up, or it is none."""


@dataclass(frozen=True)
class Exceptions:
    """The table of one COW area.

    Attributes:
        chunk: bytes of a chunk.
    """

    chunk: int
    _read: Read

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Pairs of chunk numbers (of the origin, of the COW area), in the order they were made."""
        per_area = self.chunk // _EXCEPTION.size
        place = self.chunk
        while True:
            area = self._read(place, self.chunk)
            if len(area) < self.chunk:  # the COW area ends here
                return
            for old, new in _EXCEPTION.iter_unpack(area):
                if new == 0:
                    return
                yield old, new
            place += (per_area + 1) * self.chunk


def exceptions(read: Read) -> Exceptions:
    """The table of the COW area that `read` reads.

    Raises:
        CowUnreadable: there is none that is valid.
    """
    header = read(0, 4096)
    if len(header) < _HEADER.size:
        raise CowUnreadable("it is too short")
    magic, valid, version, sectors = _HEADER.unpack_from(header)
    chunk = sectors * _SECTOR
    if magic != _MAGIC or version != _VERSION:
        raise CowUnreadable("there is no header")
    if not valid:
        raise CowUnreadable("the kernel gave the snapshot up")
    if chunk & (chunk - 1) or not 4096 <= chunk <= _CHUNK_MAX:
        raise CowUnreadable(f"chunks of {chunk} bytes")
    return Exceptions(chunk, read)


def changed(table: Exceptions, old_size: int, new_size: int) -> Iterator[Extent]:
    """The extents, in order, in which an origin of now `new_size` bytes differs from its snapshot.

    Takes one bit of memory a chunk: with 32 KiB ones 4 MiB for a TiB.

    Args:
        table: of the snapshot's COW area.
        old_size: bytes of the snapshot; what is past them counts as different.
        new_size: bytes that are asked about.
    """
    common = min(old_size, new_size)
    bits = bytearray(-(-common // table.chunk) // 8 + 1)
    for old, _ in table:
        if old * table.chunk < common:
            bits[old >> 3] |= 1 << (old & 7)

    unit = table.chunk
    chunks = (Extent(first * unit, end * unit) for first, end in ones_in(bits))
    return within_both(chunks, old_size, new_size)


def end_of_use(table: Exceptions) -> int:
    """Bytes from the start of a COW area that may have been written, ever; beyond, it is untouched.

    The area must not be in use by the kernel.
    """
    last = max((new for _, new in table), default=1)
    return (last + 1 + _UNTOLD) * table.chunk


def room_for(size: int) -> int:
    """Bytes of COW area with which a snapshot of `size` bytes never overflows."""
    chunks = -(-size // CHUNK)
    areas = -(-chunks // (CHUNK // _EXCEPTION.size)) + 1
    return (1 + chunks + areas) * CHUNK


def reader(file: int) -> Read:
    """How a COW area's device, opened with O_DIRECT, is read."""

    def read(offset: int, length: int) -> bytes:
        with mmap.mmap(-1, length) as buffer:  # aligned, as O_DIRECT wants it
            return bytes(buffer[: os.preadv(file, [buffer], offset)])

    return read


def opened_area(path: Path) -> contextlib.AbstractContextManager[int]:
    """A descriptor of a COW area's device for `reader`."""
    return files.opened(path, os.O_RDONLY | os.O_DIRECT)


# --- what the kernel says ------------------------------------------------------------


@dataclass(frozen=True)
class Status:
    """How a snapshot is.

    Attributes:
        used: share (0 to 1) of its COW area that is full.
        lost: why its bytes are gone, or "".
    """

    used: float
    lost: str


_LOST = {
    "Invalid": "it ran out of room for what was overwritten, or its disk failed",
    "Overflow": "it ran out of room for what was overwritten",
    "Merge failed": "merging it into its volume failed",
}


def parse_status(text: str) -> dict[str, Status]:
    """What ``dmsetup status --target snapshot`` says: states by device-mapper name.

    A line is ``NAME: 0 SECTORS snapshot USED/ALL METADATA``, or a word in the
    place of the numbers (snapshot_status in drivers/md/dm-snap.c).
    """
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition(": ")
        words = rest.split(maxsplit=3)
        if len(words) < 4 or words[2] != "snapshot":
            continue
        usage = re.match(r"(\d+)/(\d+)\b", words[3])
        if usage:
            found[name] = Status(int(usage[1]) / max(int(usage[2]), 1), "")
        else:
            said = words[3].strip()
            found[name] = Status(1.0, _LOST.get(said, f"the kernel says {said!r} of it"))
    return found
