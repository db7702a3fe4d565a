"""Changed blocks of many chunks, packed into patch objects as they come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import NamedTuple

from lunr.backup.format.names import Ref


class PendingBlock(NamedTuple):
    """A block on its way into a patch object; `chunk` and `block` say where it belongs."""

    chunk: int
    block: int
    hash: bytes
    data: bytes


_place = attrgetter("chunk", "block")


class PatchPacker:
    """Packs the blocks of one segment. Any thread may add some.

    The chunks of a save are done in the order of the volume but for those under
    way, and so are the patch objects. Never more than one object's worth of
    blocks waits, whatever the segment's size.

    Attributes:
        places: where each stored block is (object, number in it), by chunk and block.
    """

    def __init__(self, capacity: int, store: Callable[[Sequence[bytes], memoryview], Ref]) -> None:
        """Pack up to `capacity` blocks into an object; `store` is given their hashes and bytes."""
        self.places: dict[tuple[int, int], tuple[Ref, int]] = {}
        self._capacity = capacity
        self._store = store
        self._waiting: list[PendingBlock] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many blocks wait for more."""
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
        """Store what waits."""
        with self._lock:
            rest, self._waiting = self._waiting, []
        if rest:
            self._put(rest)

    def _put(self, blocks: list[PendingBlock]) -> None:
        # In order, the volume's short last block is the object's last, as it must be.
        blocks.sort(key=_place)
        data = b"".join(block.data for block in blocks)
        ref = self._store([block.hash for block in blocks], memoryview(data))
        with self._lock:
            for number, block in enumerate(blocks):
                self.places[block.chunk, block.block] = (ref, number)
