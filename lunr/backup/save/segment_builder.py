"""A segment while it is being saved."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from lunr.backup.format.names import Ref
from lunr.backup.format.segments import Entry, Patched, Place, pieces_of, places_of
from lunr.backup.save.block_hashes import Indexes
from lunr.backup.save.parent import ParentSegment
from lunr.backup.save.patch_packer import PatchPacker, PendingBlock
from lunr.backup.save.patch_rewrite_policy import patches_to_rewrite


@dataclass
class _Patching:
    """A chunk that becomes `base` and patches. The `loose` blocks are still to be packed."""

    hash: bytes
    base: Ref | None
    places: dict[int, Place]
    loose: set[int]


class SegmentBuilder:
    """Collects the entries of the chunks of a segment. Any thread may set one.

    Attributes:
        number: the segment's.
        chunks: its chunks, by their number in the volume.
        before: the parent's segment.
        indexes: the hashes of the blocks of the parent's chunks.
    """

    def __init__(
        self,
        number: int,
        chunks: range,
        before: ParentSegment,
        indexes: Indexes,
        packer: PatchPacker,
    ) -> None:
        self.number = number
        self.chunks = chunks
        self.before = before
        self.indexes = indexes
        self.missing = 0
        self._entries: list[Entry] = [None] * len(chunks)
        self._patching: dict[int, _Patching] = {}
        self._packer = packer
        self._lock = threading.Lock()

    @property
    def is_unchanged(self) -> bool:
        """Whether every entry equals the parent's."""
        return not self._patching and self._entries == self.before.entries

    def set_entry(self, chunk: int, entry: Entry) -> None:
        """Make `entry` that of `chunk`."""
        self._entries[chunk - self.chunks.start] = entry

    def patch(
        self, chunk: int, digest: bytes, places: dict[int, Place], fresh: Sequence[PendingBlock]
    ) -> None:
        """Make `chunk`, with the content hash `digest`, of its base, `places` and `fresh`."""
        entry = self.before.usable[chunk]
        base = entry.base if isinstance(entry, Patched) else entry
        loose = {block.block for block in fresh}
        with self._lock:
            self._patching[chunk] = _Patching(digest, base, places, loose)
        self._packer.add(fresh)

    def done(self) -> bool:
        """Count a chunk as done and return whether it was the last."""
        with self._lock:
            self.missing -= 1
            return self.missing == 0

    def finish(self, capacity: int, read: Callable[[int, int], PendingBlock | None]) -> list[Entry]:
        """The entries of all chunks; call it when they are done.

        Args:
            capacity: how many blocks a patch object may have.
            read: reads a block of a chunk from the source; None: zeros.
        """
        if not self.is_unchanged:
            self._rewrite_patches(capacity, read)
        self._packer.flush()
        for chunk, patching in self._patching.items():
            stored = {block: self._packer.places[chunk, block] for block in patching.loose}
            pieces = pieces_of({**patching.places, **stored})
            self.set_entry(chunk, Patched(patching.hash, patching.base, pieces))
        return self._entries

    def _rewrite_patches(
        self, capacity: int, read: Callable[[int, int], PendingBlock | None]
    ) -> None:
        """Move the needed blocks out of older patch objects when there are too many of these."""
        patched = {
            chunk: entry
            for chunk, entry in zip(self.chunks, self._entries, strict=True)
            if isinstance(entry, Patched)
        }
        places = {chunk: places_of(entry) for chunk, entry in patched.items()}
        places.update((chunk, patching.places) for chunk, patching in self._patching.items())
        rewritten = patches_to_rewrite(
            _living(places.values()),
            sum(len(patching.loose) for patching in self._patching.values()),
            sum(entry is not None for entry in self._entries) + len(self._patching),
            capacity,
        )
        for chunk, blocks in places.items() if rewritten else ():
            moving = [block for block, place in blocks.items() if place and place[0] in rewritten]
            if not moving:
                continue
            if chunk in patched:
                entry = patched[chunk]
                self._patching[chunk] = _Patching(entry.hash, entry.base, blocks, set())
            for block in moving:
                fresh = read(chunk, block)
                if fresh is None:
                    blocks[block] = None
                else:
                    self._patching[chunk].loose.add(block)
                    self._packer.add([fresh])


def _living(places: Iterable[Mapping[int, Place]]) -> Counter[Ref]:
    """How many blocks of each patch object are needed."""
    return Counter(place[0] for blocks in places for place in blocks.values() if place)
