"""The hashes of the blocks of the parent's chunks, without their bytes."""

from __future__ import annotations

import threading
from concurrent.futures import Future

from lunr.backup import errors
from lunr.backup.format.names import HASH_SIZE, Geometry, Kind, Ref
from lunr.backup.format.segments import Entry, Patched, places_of
from lunr.backup.repository.repository import Repository


class Indexes:
    """The block hashes in the objects of one segment; each object is read once.

    A read fetches only the object's header and index. Any thread may call it. A segment
    takes a few MiB at most.
    """

    def __init__(
        self, repository: Repository, geometry: Geometry, slots: threading.Semaphore
    ) -> None:
        """`slots` bounds the requests to the store."""
        self._repository = repository
        self._geometry = geometry
        self._slots = slots
        self._most = geometry.chunk // geometry.block
        self._lock = threading.Lock()
        self._found: dict[tuple[Kind, Ref], Future[tuple[bytes, int]]] = {}

    def hashes_of(self, entry: Entry, length: int) -> list[bytes | None]:
        """The hash of each block of `entry`, read as a chunk of `length` bytes.

        None: the block was stored with another length; its hash must be computed from its bytes.

        Raises:
            errors.CorruptObject, errors.ObjectMissing, errors.UnsupportedFormat: an object
                that the chunk needs can't be used; it is named.
        """
        size, zero_hash = self._geometry.block, self._repository.zero_hash
        lengths = [min(size, length - start) for start in range(0, length, size)]
        hashes: list[bytes | None] = [zero_hash(each) for each in lengths]
        base = entry.base if isinstance(entry, Patched) else entry
        if base is not None:
            raw, plain = self._load(Kind.CHUNK, base)
            for number in range(min(len(lengths), -(-plain // size))):
                is_same = min(size, plain - number * size) == lengths[number]
                # Else the block is cut, or continued with zeros.
                hashes[number] = _pick(raw, number) if is_same else None
        for number, place in places_of(entry).items():
            if number >= len(lengths):
                continue
            if place is None:
                hashes[number] = zero_hash(lengths[number])
                continue
            ref, index = place
            hashes[number] = _pick(self._load(Kind.PATCH, ref)[0], index)
            if not hashes[number]:
                raise errors.CorruptObject(
                    name=ref.name(Kind.PATCH), reason=f"it has no block {index}."
                )
        return hashes

    def _load(self, kind: Kind, ref: Ref) -> tuple[bytes, int]:
        """The hashes of an object's blocks, one after the other, and its plain bytes."""
        own: Future[tuple[bytes, int]] = Future()
        with self._lock:
            future = self._found.setdefault((kind, ref), own)
        if future is own:
            try:
                own.set_result(self._fetch(kind, ref))
            except BaseException as error:  # for the threads that wait for the result
                own.set_exception(error)
                raise
        return future.result()

    def _fetch(self, kind: Kind, ref: Ref) -> tuple[bytes, int]:
        with self._slots:
            opened = self._repository.open(ref, kind, whole=False, expect=self._most)
        if opened.index.block_size != self._geometry.block:
            raise errors.CorruptObject(name=opened.name, reason="its blocks have another size.")
        return b"".join(opened.index.hashes), opened.index.plain_size


def _pick(hashes: bytes, number: int) -> bytes:
    return hashes[number * HASH_SIZE : (number + 1) * HASH_SIZE]
