"""What a save builds upon: the objects of its parent, and of other backups of the account."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lunr.backup import errors, parallel
from lunr.backup.format.names import Geometry, Kind, Ref
from lunr.backup.format.roots import Root
from lunr.backup.format.segments import Entry, Patched, objects_of
from lunr.backup.repository.repository import Repository
from lunr.common.extents import Extents

logger = logging.getLogger(__name__)

#: With a parent that fails like this, a save costs more but is none the worse.
UNUSABLE = (
    errors.BackupMissing,
    errors.ObjectMissing,
    errors.CorruptObject,
    errors.UnsupportedFormat,
    errors.WrongKey,
)


@dataclass(frozen=True)
class ParentSegment:
    """A segment of the parent.

    Attributes:
        ref: of it; None: all zeros, or there is none.
        entries: its chunks.
        usable: what may be built upon, by chunk: its entry there. A chunk that is not in
            here must be written whole.
    """

    ref: Ref | None = None
    entries: list[Entry] = field(default_factory=list)
    usable: dict[int, Entry] = field(default_factory=dict)


class Parent:
    """A backup to build upon, but not upon listed names."""

    def __init__(
        self, repository: Repository, root: Root, pending_deletion: frozenset[str]
    ) -> None:
        self.root = root
        self._repository = repository
        self._pending_deletion = pending_deletion
        self._segments = dict(enumerate(repository.segments_of(root)))

    def segments(self) -> Iterator[tuple[Ref, int]]:
        """Its segments that are not all zeros, and how many chunks each has."""
        for chunks, ref in self._segments.values():
            if ref is not None:
                yield ref, len(chunks)

    def chunk_objects(self, ref: Ref, chunks: int) -> list[Ref]:
        """The chunk objects that its segment `ref` names and that may be referred to.

        Raises:
            errors of UNUSABLE: the segment can't be read.
        """
        entries = self._repository.load_segment(ref, chunks)
        found = (entry.base if isinstance(entry, Patched) else entry for entry in entries)
        return [one for one in found if one is not None and self._may_use(one)]

    def _may_use(self, *entries: Entry) -> bool:
        return not self._pending_deletion or self._pending_deletion.isdisjoint(objects_of(*entries))

    def changes(self, changed: Extents, size: int) -> Extents:
        """Outside of which ranges a source of `size` bytes is as this backup.

        That is `changed`, and all from the block on in which one of the two has ended. A source
        that has ended within a chunk has another chunk there, be it that no block of it changed.
        """
        end, geometry = min(self.root.size_bytes, size), self.root.geometry
        if size < self.root.size_bytes and size % geometry.chunk:
            end -= 1
        if size != self.root.size_bytes:
            end -= end % geometry.block
        rest = [(end, size)] if end < size else []
        return Extents(itertools.chain(changed.within(0, end), rest))

    def shareable(
        self,
        segments: Iterable[tuple[int, range]],
        threads: int,
        cancel: threading.Event | None = None,
    ) -> set[int]:
        """Which of `segments` (number and chunks), unread, can be those of the new backup, too.

        Nothing that they need is listed: only where anything is listed at all, it takes
        reading them to tell.
        """
        found = {
            number
            for number, chunks in segments
            if number in self._segments and len(self._segments[number][0]) == len(chunks)
        }
        if not self._pending_deletion:
            return found
        barred: set[int] = set()

        def look(number: int) -> None:
            if not self._is_free(number):
                barred.add(number)

        parallel.each(found, look, threads, cancel)
        return found - barred

    def _is_free(self, number: int) -> bool:
        """Whether a segment can be read and nothing that it needs is listed."""
        chunks, ref = self._segments[number]
        if ref is None:
            return True
        if ref.name(Kind.SEGMENT) in self._pending_deletion:
            return False
        try:
            return self._may_use(*self._repository.load_segment(ref, len(chunks)))
        except UNUSABLE:
            return False  # `segment` tells of it

    def segment(self, number: int, chunks: range) -> ParentSegment:
        """What there is for `chunks`, which are those of segment `number` in the new backup."""
        there, ref = self._segments.get(number, (range(0), None))
        entries: list[Entry] = [None] * len(there)
        if ref is not None:
            try:
                entries = self._repository.load_segment(ref, len(there))
            except UNUSABLE as error:
                logger.warning("A segment of the parent can't be used: %s", error)
                return ParentSegment()
        # It has zeros where it has ended.
        usable = {**dict.fromkeys(chunks, None), **dict(zip(chunks, entries, strict=False))}
        return ParentSegment(ref, entries, {c: e for c, e in usable.items() if self._may_use(e)})


def load_parent(
    repository: Repository, backup_id: str, geometry: Geometry, pending_deletion: frozenset[str]
) -> Parent | None:
    """The backup `backup_id`, if it can be built upon; else the log tells why it can't."""
    try:
        root = repository.load_root(backup_id)
    except UNUSABLE as error:
        logger.warning("Backup %s can't be built upon: %s", backup_id, error)
        return None
    if root.geometry != geometry:
        logger.warning("Backup %s can't be built upon: it is cut by other sizes.", backup_id)
        return None
    if root.key_id != repository.keys.id:
        logger.warning("Backup %s can't be built upon: it has another master key.", backup_id)
        return None
    return Parent(repository, root, pending_deletion)
