"""The backups that a save refers to: its parent, and its dedup candidates."""

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

#: Errors of a parent after which the save goes on without it, at a higher cost.
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
        ref: its name; None: all zeros, or the parent has no such segment.
        entries: its chunks.
        usable: the entries that the new backup may refer to, by chunk. Every other chunk must be
            written whole.
    """

    ref: Ref | None = None
    entries: list[Entry] = field(default_factory=list)
    usable: dict[int, Entry] = field(default_factory=dict)


class Parent:
    """A backup whose objects a save may refer to, except for those pending deletion."""

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
        """The chunk objects of its segment `ref` that a save may refer to.

        Raises:
            errors of UNUSABLE: the segment can't be read.
        """
        entries = self._repository.load_segment(ref, chunks)
        refs = (entry.base if isinstance(entry, Patched) else entry for entry in entries)
        return [
            chunk_ref for chunk_ref in refs if chunk_ref is not None and self._may_use(chunk_ref)
        ]

    def _may_use(self, *entries: Entry) -> bool:
        return not self._pending_deletion or self._pending_deletion.isdisjoint(objects_of(*entries))

    def changes(self, changed: Extents, size: int) -> Extents:
        """The ranges in which a source of `size` bytes may differ from this backup.

        They are `changed`, and everything from the block on in which the shorter of the two ends.
        If the source is shorter and ends within a chunk, that chunk differs even if none of its
        blocks does.
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
        """Which of the unchanged `segments` (number and chunks) the new backup can refer to.

        Nothing that they need may be pending deletion. They are read to check that, unless
        nothing is pending.
        """
        same = {
            number
            for number, chunks in segments
            if number in self._segments and len(self._segments[number][0]) == len(chunks)
        }
        if not self._pending_deletion:
            return same
        barred: set[int] = set()

        def check_segment(number: int) -> None:
            if not self._is_free(number):
                barred.add(number)

        parallel.each(same, check_segment, threads, cancel)
        return same - barred

    def _is_free(self, number: int) -> bool:
        """Whether a segment can be read and nothing that it needs is pending deletion."""
        chunks, ref = self._segments[number]
        if ref is None:
            return True
        if ref.name(Kind.SEGMENT) in self._pending_deletion:
            return False
        try:
            return self._may_use(*self._repository.load_segment(ref, len(chunks)))
        except UNUSABLE:
            return False  # `segment` logs it

    def segment(self, number: int, chunks: range) -> ParentSegment:
        """The parent's segment `number`, for the `chunks` of that segment in the new backup."""
        parent_chunks, ref = self._segments.get(number, (range(0), None))
        entries: list[Entry] = [None] * len(parent_chunks)
        if ref is not None:
            try:
                entries = self._repository.load_segment(ref, len(parent_chunks))
            except UNUSABLE as error:
                logger.warning("A segment of the parent can't be used: %s", error)
                return ParentSegment()
        # The parent reads as zeros past its end.
        usable = {**dict.fromkeys(chunks, None), **dict(zip(chunks, entries, strict=False))}
        return ParentSegment(ref, entries, {c: e for c, e in usable.items() if self._may_use(e)})


def load_parent(
    repository: Repository, backup_id: str, geometry: Geometry, pending_deletion: frozenset[str]
) -> Parent | None:
    """The backup `backup_id`; None, with a line in the log, if a save can't refer to it."""
    try:
        root = repository.load_root(backup_id)
    except UNUSABLE as error:
        logger.warning("Backup %s can't be the parent: %s", backup_id, error)
        return None
    if root.geometry != geometry:
        logger.warning(
            "Backup %s can't be the parent: its chunks or blocks have other sizes.", backup_id
        )
        return None
    if root.key_id != repository.keys.id:
        logger.warning("Backup %s can't be the parent: it has another master key.", backup_id)
        return None
    return Parent(repository, root, pending_deletion)
