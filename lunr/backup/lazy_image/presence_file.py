"""The two files of the presence map of a lazily restored volume.

**The live map** is the map itself, in a file mapped into memory (shared). It is changed
before a write is acknowledged. The kernel keeps it when the process dies. After a reboot it is
worthless: the kernel writes it to disk in any order, or never. So it names its boot, and is
best kept on a tmpfs such as /run. A header of 4096 bytes (magic ``LUNRLIVE``, version 1, the
map's id, the boot's id, BLAKE3 of these; byte 2048 is 1 after a sync of the data has
failed in that boot) is followed by the area of lunr/backup/lazy_image/presence.py.

**The disk map** survives a power cut. It claims only blocks that the disk has: its
claims are taken, then the data is synced, then the claims are written, then they
are synced. It is an array of sectors of 512 bytes, which a disk writes whole or
not at all: 504 bytes of content and the first 8 of the BLAKE3, keyed with the
map's id, of number (8 bytes, little-endian) and content. A sector that is all zeros was
never written and has zeros as content. Sector 0 is the header (magic ``LUNRMAP1``,
map id, volume size, chunk size, backup id), keyed with zeros; the
others hold the area. Claims are only ever added, and those of every sector are true.
So any mix of old and new sectors is a true map, and sectors need no order. A sector whose
checksum does not match is an error: its blocks were perhaps written and synced, and fetching
them again would overwrite them.

A chunk is PRESENT when its byte says so; else its bits alone count.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from lunr.backup.lazy_image.backing_file import BackingFile
from lunr.backup.lazy_image.presence import PARTIAL, PRESENT, ChunkLayout, Pieces, Presence
from lunr.common import files
from lunr.common.errors import LunrError
from lunr.common.linux import data_ranges

SECTOR = 512
CONTENT = 504
_DISK_HEADER = struct.Struct("<8s16sQQ64s")
_DISK_MAGIC = b"LUNRMAP1"
_LIVE_HEADER = struct.Struct("<8sQ16s36s")
_LIVE_MAGIC = b"LUNRLIVE"
_LOST_AT = 2048
_PAGE = 4096
_BATCH = 2048  # sectors read or written at once
#: For bytes.translate: all states but PRESENT are ABSENT.
_ONLY_PRESENT = bytes(state if state == PRESENT else 0 for state in range(256))


class MapCorrupt(LunrError):
    """The map {path} is corrupt: {reason} The local blocks of the volume are not known any more."""

    code = "map_corrupt"


class MapMismatch(LunrError):
    """The map {path} belongs to another volume: {reason}"""

    code = "map_mismatch"


class MapInUse(LunrError):
    """The map {path} is in use: another process still serves the volume."""

    code = "map_in_use"
    status = 409
    retry = True


@dataclass(frozen=True)
class Header:
    """The map's id, and the volume and backup that it belongs to."""

    id: bytes
    shape: ChunkLayout
    backup_id: str


class DiskMap:
    """A disk map, open. Only one thread at a time may use it.

    Attributes:
        header: its volume and backup.
    """

    def __init__(self, file: BackingFile) -> None:
        """Read the header.

        Raises:
            MapCorrupt: its checksum or sizes are wrong.
        """
        self._file = file
        self._key = bytes(32)
        (raw,) = self._read(0, 1)
        magic, id_, size, chunk, backup_id = _DISK_HEADER.unpack_from(raw)
        if magic != _DISK_MAGIC:
            raise MapCorrupt(path=file.path, reason="it does not begin like a map.")
        self.header = Header(id_, ChunkLayout(size, chunk), backup_id.rstrip(b"\0").decode())
        if file.size != _sectors(self.header.shape) * SECTOR:
            raise MapCorrupt(path=file.path, reason=f"it has {file.size} bytes.")
        self._key = id_ * 2

    def contents(self) -> Iterator[tuple[int, bytes]]:
        """Number and content of the sectors that were ever written, without the header.

        Raises:
            MapCorrupt: a checksum does not match.
        """
        end = _sectors(self.header.shape)
        at = SECTOR
        while at < end * SECTOR:
            start = self._file.seek(at, os.SEEK_DATA) // SECTOR
            stop = min(-(-self._file.seek(start * SECTOR, os.SEEK_HOLE) // SECTOR), end)
            for first in range(max(start, 1), stop, _BATCH):
                batch = self._read(first, min(_BATCH, stop - first))
                yield from ((n, raw) for n, raw in enumerate(batch, first) if any(raw))
            at = max(stop, start) * SECTOR

    def write(self, sectors: Iterable[tuple[int, bytes]]) -> None:
        """Write contents, by number in order; they survive a power cut after :meth:`sync`."""
        run: list[bytes] = []
        start = 0
        for number, content in sectors:
            if run and (number != start + len(run) or len(run) == _BATCH):
                self._file.write(start * SECTOR, memoryview(b"".join(run)))
                run = []
            if not run:
                start = number
            run.append(_sealed(number, content, self._key))
        if run:
            self._file.write(start * SECTOR, memoryview(b"".join(run)))

    def sync(self) -> None:
        """Return when all writes survive a power cut."""
        self._file.sync()

    def _read(self, first: int, count: int) -> list[bytes]:
        raw = self._file.read(first * SECTOR, memoryview(bytearray(count * SECTOR)))
        return [
            self._checked(number, bytes(raw[at : at + SECTOR]))
            for number, at in enumerate(range(0, count * SECTOR, SECTOR), first)
        ]

    def _checked(self, number: int, sector: bytes) -> bytes:
        content = sector[:CONTENT]
        if sector != _sealed(number, content, self._key) and (not number or any(sector)):
            raise MapCorrupt(path=self._file.path, reason=f"sector {number} does not check.")
        return content


def _sealed(number: int, content: bytes, key: bytes) -> bytes:
    content = content.ljust(CONTENT, b"\0")
    return content + blake3(number.to_bytes(8, "little") + content, key=key).digest(length=8)


def _sectors(shape: ChunkLayout) -> int:
    return 1 + -(-shape.area // CONTENT)


def create(path: Path, shape: ChunkLayout, backup_id: str, area: Pieces) -> None:
    """Create the disk map `path`, durably, whole or not at all.

    Args:
        path: the file's.
        shape: the volume's.
        backup_id: the backing backup.
        area: its first claims: see lunr/backup/lazy_image/presence.py.
    """
    new = path.with_name(path.name + ".new")
    header = Header(secrets.token_bytes(16), shape, backup_id)
    packed = _DISK_HEADER.pack(
        _DISK_MAGIC, header.id, shape.size, shape.chunk, header.backup_id.encode()
    )
    with new.open("wb") as raw:
        os.fchmod(raw.fileno(), 0o600)
        raw.write(_sealed(0, packed, bytes(32)))
        raw.truncate(_sectors(shape) * SECTOR)
    with contextlib.closing(BackingFile(new)) as file:
        disk = DiskMap(file)
        disk.write(_in_sectors(area))
        disk.sync()
    new.replace(path)
    files.fsync(path.parent)


def _in_sectors(area: Pieces) -> Iterator[tuple[int, bytes]]:
    """Number and content of the sectors of an area that are not all zeros."""
    number, content = 1, bytearray(CONTENT)
    for at, piece in area:
        rest = memoryview(piece)
        while rest:
            index, start = divmod(at, CONTENT)
            if index + 1 != number:
                if any(content):
                    yield number, bytes(content)
                number, content = index + 1, bytearray(CONTENT)
            part = rest[: CONTENT - start]
            content[start : start + len(part)] = part
            rest, at = rest[len(part) :], at + len(part)
    if any(content):
        yield number, bytes(content)


class Maps:
    """Both maps of one volume, open.

    Attributes:
        presence: the map.
        survived: whether it is that of a killed process of this boot.
    """

    def __init__(self, file: BackingFile, live: Path) -> None:
        """Open the disk map in `file`, and open or create the live map at `live`.

        `file` is locked until it is closed: two processes with the same volume would
        overwrite each other's writes.

        Raises:
            MapInUse: another process has it open.
            MapCorrupt: the disk map is damaged.
            OSError: there is no room for the live map.
        """
        try:
            fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MapInUse(path=file.path) from error
        self._disk = DiskMap(file)
        header = self._disk.header
        self._shape = header.shape
        self._live, self.survived = self._open_live(live, header)
        try:
            size = _live_size(self._shape)
            self._mapped = mmap.mmap(self._live, size)
        except BaseException:
            os.close(self._live)
            raise
        self._dirty: set[int] = set()
        #: Pages of the area with allocated room: without it a page fault kills the process.
        self._roomy = bytearray(size // _PAGE)
        self.presence = Presence(self._shape, self._mapped, _PAGE, self._changing)
        if self.survived:
            self._dirty.update(self._used_sectors())

    @property
    def header(self) -> Header:
        """The volume and backup of the maps."""
        return self._disk.header

    def _open_live(self, path: Path, header: Header) -> tuple[int, bool]:
        expected = _live_header(header.id)
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            right_size = os.fstat(fd).st_size == _live_size(self._shape)
            if right_size and os.pread(fd, len(expected), 0) == expected:
                return fd, True
            os.close(fd)  # of an earlier boot, or of another volume
        new = path.with_name(path.name + ".new")
        fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(fd, _live_size(self._shape))
            os.posix_fallocate(fd, 0, _PAGE + self._shape.chunks)
            self._fill_live(fd)
            os.pwrite(fd, expected, 0)
            new.replace(path)
        except BaseException:
            os.close(fd)
            raise
        return fd, False

    def _fill_live(self, fd: int) -> None:
        """Write the claims of the disk map to a new live map."""
        shape = self._shape
        states = bytearray(shape.chunks)
        for number, content in self._disk.contents():
            at = (number - 1) * CONTENT
            head, tail = content[: max(0, shape.chunks - at)], content[: shape.area - at]
            states[at : at + len(head)] = head
            if len(tail) > len(head):
                os.pwrite(fd, tail[len(head) :], _PAGE + at + len(head))
        # Only bits count here: the byte of a PARTIAL chunk may be older or younger than its bits.
        states = states.translate(_ONLY_PRESENT)
        for chunk, bits in self._bits(fd):
            if states[chunk] != PRESENT and any(bits):
                states[chunk] = PARTIAL
        os.pwrite(fd, states, _PAGE)

    def _bits(self, fd: int) -> Iterator[tuple[int, bytes]]:
        """The chunks that may have bits set, and these bits."""
        shape = self._shape
        base = _PAGE + shape.chunks
        done = 0
        for start, end in data_ranges(fd, base):
            first = max(done, (start - base) // shape.bits)
            done = min(-(-(end - base) // shape.bits), shape.chunks)
            for chunk in range(first, done):
                yield chunk, os.pread(fd, shape.bits, base + chunk * shape.bits)

    def _used_sectors(self) -> Iterator[int]:
        for start, end in data_ranges(self._live, _PAGE):
            last = min(-(-(end - _PAGE) // CONTENT), _sectors(self._shape) - 1)
            yield from range(1 + (start - _PAGE) // CONTENT, 1 + last)

    def _changing(self, start: int, end: int) -> None:
        """Allocate room in the live map, and note the sectors of the disk map that change."""
        first, last = 1 + start // _PAGE, 1 + (end - 1) // _PAGE
        if not (first == last and self._roomy[first]):
            for page in range(first, last + 1):
                os.posix_fallocate(self._live, page * _PAGE, _PAGE)
                self._roomy[page] = 1
        first, last = 1 + start // CONTENT, 1 + (end - 1) // CONTENT
        self._dirty.add(first)
        if last > first:
            self._dirty.update(range(first + 1, last + 1))

    @property
    def lost(self) -> bool:
        """Whether :meth:`lose` was called in this boot, perhaps by an earlier process."""
        return self._mapped[_LOST_AT] != 0

    def lose(self) -> None:
        """Note that a sync of the data failed: the disk may lack any of it."""
        self._mapped[_LOST_AT] = 1

    def flush(self, sync_data: Callable[[], None]) -> None:
        """Call `sync_data`, then add what was present before to the claims of the disk map.

        Only one thread at a time may call it.

        Raises:
            OSError: a write or sync failed; the disk map has none or some of the new claims.
        """
        with self.presence.lock:
            numbers = sorted(self._dirty)
            self._dirty = set()
            claims = [(number, self._content(number)) for number in numbers]
        try:
            sync_data()
            if claims:
                self._disk.write(claims)
                self._disk.sync()
        except BaseException:
            with self.presence.lock:
                self._dirty.update(numbers)
            raise

    def _content(self, number: int) -> bytes:
        start = (number - 1) * CONTENT
        return self._mapped[_PAGE + start : _PAGE + min(start + CONTENT, self._shape.area)]

    def close(self) -> None:
        """Close the live map. The file stays for the next process of this boot."""
        self._mapped.close()
        os.close(self._live)


def _live_size(shape: ChunkLayout) -> int:
    """Bytes of a live map: whole pages, so that allocating one does not change its size."""
    return _PAGE + -(-shape.area // _PAGE) * _PAGE


def _live_header(map_id: bytes) -> bytes:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().encode()
    packed = _LIVE_HEADER.pack(_LIVE_MAGIC, 1, map_id, boot)
    return packed + blake3(packed).digest()
