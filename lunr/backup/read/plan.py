"""How to read chunks of which parts are in patches: every object once, in any order.

A :class:`ReadPlan` of some chunks (all of a segment, or one) lists the objects
that they need, in the order of the volume, and the blocks to copy from each. Objects can
be fetched in any order and in parallel. Each block is checked and can be written to its
place at once, without putting chunks together in memory. The plan keeps only the hashes of
the blocks of a patched chunk; at the end they must give the chunk's hash.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from lunr.backup import errors
from lunr.backup.format import blocks
from lunr.backup.format.names import HASH_SIZE, Buffer, Geometry, Kind, Ref
from lunr.backup.format.segments import Entry, Patched, objects_of, places_of
from lunr.backup.repository.repository import Repository, StoredObject

#: More parts of an object than these cost more requests than its other bytes are worth.
_FEW_PARTS = 3


class BlockCopy(NamedTuple):
    """Copies `blocks` blocks, from `start` on in an object, to `chunk` from `first` on."""

    chunk: int
    first: int
    blocks: int
    start: int


@dataclass
class ObjectFetch:
    """An object, and the blocks to copy from it. Without a `ref`: zeros."""

    kind: Kind
    ref: Ref | None
    uses: list[BlockCopy] = field(default_factory=list)

    @property
    def blocks(self) -> int:
        """How many blocks are copied from it."""
        return sum(use.blocks for use in self.uses)


class _Check:
    """The block hashes of a patched chunk, as far as they are known."""

    def __init__(self, entry: Patched, blocks: int) -> None:
        self.entry = entry
        self.hashes = bytearray(blocks * HASH_SIZE)
        self.missing = blocks


class ReadPlan:
    """The plan to read `chunks` (by their number in the volume) of a backup of `size` bytes.

    Attributes:
        fetches: the objects to fetch, in the order of the volume.
    """

    def __init__(
        self, repository: Repository, chunks: Mapping[int, Entry], size: int, geometry: Geometry
    ) -> None:
        self._repository = repository
        self._size = size
        self._geometry = geometry
        self._lock = threading.Lock()
        self._checks: dict[int, _Check] = {}
        fetches: dict[tuple[Kind, Ref | None], ObjectFetch] = {}
        for chunk, entry in chunks.items():
            count = -(-geometry.chunk_length(chunk, size) // geometry.block)
            if isinstance(entry, Patched):
                self._checks[chunk] = _Check(entry, count)
            for kind, ref, use in _uses(chunk, entry, count):
                fetches.setdefault((kind, ref), ObjectFetch(kind, ref)).uses.append(use)
        self.fetches = list(fetches.values())

    def read(self, fetch: ObjectFetch) -> Iterator[tuple[int, Buffer | None, int]]:
        """Fetch an object: offsets in the volume, the bytes there (None: zeros), how many.

        The object is fetched whole when much of it, or many parts of it, are needed.

        Raises:
            errors.CorruptObject: it, or a chunk that it completes, differs from what was stored.
            errors.ObjectMissing, errors.UnsupportedFormat: it can't be used.
        """
        opened = self.open(fetch)
        self.check(fetch, opened)
        yield from self.parts(fetch, opened)

    def open(self, fetch: ObjectFetch) -> StoredObject | None:
        """Fetch an object for :meth:`read`; None for zeros."""
        if fetch.ref is None:
            return None
        most = self._geometry.chunk // self._geometry.block
        whole = 4 * fetch.blocks >= most or len(fetch.uses) > _FEW_PARTS
        return self._repository.open(fetch.ref, fetch.kind, whole=whole, expect=most)

    def parts(
        self, fetch: ObjectFetch, opened: StoredObject | None
    ) -> Iterator[tuple[int, Buffer | None, int]]:
        """Like :meth:`read`, without the check of whole chunks."""
        for use in fetch.uses:
            offset, end = self._range(use)
            stored = 0 if opened is None else self._count_stored(use, opened, fetch.kind)
            if opened is not None and stored:
                data = memoryview(opened.read(use.start, stored))[: end - offset]
                yield offset, data, len(data)
                offset += len(data)
            if offset < end:  # zeros, or the base was stored when the volume was smaller
                yield offset, None, end - offset

    def check(self, fetch: ObjectFetch, opened: StoredObject | None) -> None:
        """Note the hashes of the blocks in `opened`, and check the chunks that are complete.

        Raises:
            errors.CorruptObject: blocks are missing, or a chunk differs from what was stored.
        """
        for use in fetch.uses:
            if opened is None:
                numbers = range(use.first, use.first + use.blocks)
                lengths = (self._length(use.chunk, number) for number in numbers)
                hashes = [self._repository.zero_hash(length) for length in lengths]
            else:
                hashes = self._hashes(use, opened, fetch.kind)
            if use.chunk in self._checks:
                self._add_hashes(use, hashes)

    def _hashes(self, use: BlockCopy, opened: StoredObject, kind: Kind) -> list[bytes]:
        """The hashes of the chunk's blocks that come from `opened`."""
        index = opened.index
        stored = self._count_stored(use, opened, kind)
        hashes = list(index.hashes[use.start : use.start + stored])
        for number in range(use.blocks):
            length = self._length(use.chunk, use.first + number)
            if number >= stored:
                hashes.append(self._repository.zero_hash(length))
                continue
            if (stored_length := index.block_length(use.start + number)) == length:
                continue
            if kind is Kind.PATCH:
                raise errors.CorruptObject(
                    name=opened.name, reason="its blocks do not fit their chunk."
                )
            # The base's last block, stored when the volume had another size.
            data = bytes(opened.read(use.start + number, 1))
            changed = data[:length] if length < stored_length else data.ljust(length, b"\0")
            (hashes[number],) = blocks.hash_blocks(
                memoryview(changed), length, self._repository.keys
            )
        return hashes

    def _count_stored(self, use: BlockCopy, opened: StoredObject, kind: Kind) -> int:
        """How many of the blocks the object has; only a patched chunk's base may lack some."""
        if opened.index.block_size != self._geometry.block:
            raise errors.CorruptObject(name=opened.name, reason="its blocks have another size.")
        if kind is Kind.CHUNK and use.chunk in self._checks:
            return max(0, min(use.blocks, len(opened.index.hashes) - use.start))
        length = self._geometry.chunk_length(use.chunk, self._size)
        if kind is Kind.CHUNK and opened.index.plain_size != length:
            raise errors.CorruptObject(
                name=opened.name, reason="it has another size than its chunk."
            )
        opened.check(use.start, use.blocks)
        return use.blocks

    def _range(self, use: BlockCopy) -> tuple[int, int]:
        start = use.chunk * self._geometry.chunk
        end = start + self._geometry.chunk_length(use.chunk, self._size)
        first = start + use.first * self._geometry.block
        return first, min(first + use.blocks * self._geometry.block, end)

    def _length(self, chunk: int, block: int) -> int:
        """The plain bytes of a block of a chunk."""
        length = self._geometry.chunk_length(chunk, self._size)
        return min(self._geometry.block, length - block * self._geometry.block)

    def _add_hashes(self, use: BlockCopy, hashes: list[bytes]) -> None:
        check = self._checks[use.chunk]
        start = use.first * HASH_SIZE
        with self._lock:
            check.hashes[start : start + len(hashes) * HASH_SIZE] = b"".join(hashes)
            check.missing -= use.blocks
            if check.missing:
                return
        if blocks.content_hash([bytes(check.hashes)], self._repository.keys) != check.entry.hash:
            raise errors.CorruptObject(
                name=", ".join(sorted(objects_of(check.entry))),
                reason="put together they are not the chunk that was stored.",
            )


def _uses(chunk: int, entry: Entry, count: int) -> Iterator[tuple[Kind, Ref | None, BlockCopy]]:
    """The objects of the `count` blocks of a chunk, in runs."""
    if entry is None:
        return
    if isinstance(entry, Ref):
        yield Kind.CHUNK, entry, BlockCopy(chunk, 0, count, 0)
        return
    places = places_of(entry)
    last: tuple[Kind, Ref | None, BlockCopy] | None = None
    for block in range(count):
        kind, ref, start = Kind.CHUNK, entry.base, block
        if block in places:
            kind, (ref, start) = Kind.PATCH, places[block] or (None, 0)
        if ref is None:
            kind = Kind.CHUNK  # zeros are zeros
        if last is not None and last[:2] == (kind, ref):
            use = last[2]
            if ref is None or use.start + use.blocks == start:
                last = kind, ref, use._replace(blocks=use.blocks + 1)
                continue
        if last is not None:
            yield last
        last = kind, ref, BlockCopy(chunk, block, 1, start)
    if last is not None:
        yield last


def load_range(
    repository: Repository, entry: Entry, length: int, geometry: Geometry, blocks: range
) -> Buffer:
    """The plain bytes of `blocks` of a chunk of `length` bytes, every block checked.

    Objects are fetched in part where that is not dearer. When `blocks` are all blocks of the
    chunk, its hash is checked, too.

    Raises:
        errors.CorruptObject: the bytes differ from those stored; it names the object.
        errors.ObjectMissing: the store has lost it.
    """
    start, end = blocks.start * geometry.block, min(blocks.stop * geometry.block, length)
    data: bytearray | None = None
    reading = ReadPlan(repository, {0: entry}, length, geometry)
    whole = len(blocks) * geometry.block >= length
    for fetch in reading.fetches:
        if whole:
            parts = reading.read(fetch)
        else:
            some = ObjectFetch(fetch.kind, fetch.ref, list(_cut(fetch.uses, blocks)))
            parts = reading.parts(some, reading.open(some) if some.uses else None)
        for offset, part, count in parts:
            if part is None:
                continue
            if count == end - start:  # nearly always; a copy would take as long as the check
                return part
            data = bytearray(end - start) if data is None else data
            data[offset - start : offset - start + count] = part
    return bytearray(end - start) if data is None else data


def _cut(uses: Iterable[BlockCopy], blocks: range) -> Iterator[BlockCopy]:
    """The parts of `uses` that lie in `blocks`."""
    for use in uses:
        first, stop = max(use.first, blocks.start), min(use.first + use.blocks, blocks.stop)
        if first < stop:
            yield BlockCopy(use.chunk, first, stop - first, use.start + first - use.first)
