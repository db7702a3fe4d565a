"""Changed blocks of many chunks, packed into patch objects as they come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import NamedTuple

from lunr.backup.format.names import Ref


class PendingBlock(NamedTuple):
    """A block that waits for its patch object; `chunk` and `block` are its place."""

    chunk: int
    block: int
    hash: bytes
    data: bytes


_place = attrgetter("chunk", "block")


class PatchPacker:
    """Packs the blocks of one segment. Any thread may add some.

    Chunks are saved nearly in the order of the volume, and so are the patch objects. At most
    one object's worth of blocks waits, whatever the segment's size.

    Attributes:
        places: where each stored block is (object, number in it), by chunk and block.
    """

    def __init__(self, capacity: int, store: Callable[[Sequence[bytes], memoryview], Ref]) -> None:
        """Pack up to `capacity` blocks into an object; `store` gets their hashes and bytes."""
        self.places: dict[tuple[int, int], tuple[Ref, int]] = {}
        self._capacity = capacity
        self._store = store
        self._waiting: list[PendingBlock] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many blocks wait until an object is full."""
        return len(self._waiting)

    def add(self, blocks: Iterable[PendingBlock]) -> None:
        """Pack `blocks`; the objects that they fill are stored when this returns."""
        with self._lock:
            self._waiting += blocks
            full = []
            while len(self._waiting) >= self._capacity:
                full.append(self._waiting[: self._capacity])
                del self._waiting[: self._capacity]
        for each in full:
            self._put(each)

    def flush(self) -> None:
        """Store the blocks that wait."""
        with self._lock:
            rest, self._waiting = self._waiting, []
        if rest:
            self._put(rest)

    def _put(self, blocks: list[PendingBlock]) -> None:
        # Only an object's last block may be short: sorted, it is the volume's last one.
        blocks.sort(key=_place)
        data = b"".join(block.data for block in blocks)
        ref = self._store([block.hash for block in blocks], memoryview(data))
        with self._lock:
            for number, block in enumerate(blocks):
                self.places[block.chunk, block.block] = (ref, number)
