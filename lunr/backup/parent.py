"""What a save builds upon: the parent's objects, and the chunks that are stored already."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from lunr.backup import errors, parallel
from lunr.backup.extents import Extents
from lunr.backup.format.names import Geometry, Ref
from lunr.backup.format.roots import Root
from lunr.backup.format.segments import Entry, objects_of
from lunr.backup.repository import Repository

logger = logging.getLogger(__name__)

#: With a parent that fails like this, a save costs more but is none the worse.
UNUSABLE = (
    errors.BackupMissing,
    errors.ObjectMissing,
    errors.CorruptObject,
    errors.UnsupportedFormat,
    errors.WrongKey,
)

#: How many chunks a save remembers so as not to store them twice (2 TiB's
#: worth): beyond, equal chunks are only noticed where they were before.
_REMEMBERED = 1 << 19


class KnownChunks:
    """Chunk objects that the backup may refer to, by their content hash."""

    def __init__(self) -> None:
        self._tokens: dict[bytes, bytes] = {}
        self._lock = threading.Lock()

    def find(self, digest: bytes) -> Ref | None:
        """The object with this content, if it is known."""
        token = self._tokens.get(digest)
        return None if token is None else Ref(digest, token)

    def claim(self, ref: Ref) -> Ref | None:
        """The object to use instead of `ref`; None: nobody has claimed this content before.

        Who claims it first stores it. Another thread that meets the same chunk
        need not wait: if the first one fails, there will be no backup.
        """
        with self._lock:
            token = self._tokens.get(ref.hash)
            if token is not None:
                return Ref(ref.hash, token)
            if len(self._tokens) < _REMEMBERED:
                self._tokens[ref.hash] = ref.token
            return None


@dataclass(frozen=True)
class Before:
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
    """A backup to build upon, but not upon condemned names."""

    def __init__(self, repository: Repository, root: Root, condemned: frozenset[str]) -> None:
        self.root = root
        self._repository = repository
        self._condemned = condemned
        self._segments = dict(enumerate(repository.segments_of(root)))

    def learn(self, known: KnownChunks, threads: int, cancel: threading.Event | None) -> None:
        """Add all its chunk objects to `known`.

        Raises:
            errors of UNUSABLE: a segment can't be read.
        """

        def learn(segment: tuple[range, Ref | None]) -> None:
            chunks, ref = segment
            if ref is not None:
                for entry in self._repository.load_segment(ref, len(chunks)):
                    if isinstance(entry, Ref) and self._may_use(entry):
                        known.claim(entry)

        parallel.each(self._segments.values(), learn, threads, cancel)

    def _may_use(self, entry: Entry) -> bool:
        return not self._condemned or self._condemned.isdisjoint(objects_of(entry))

    def changes(self, changed: Sequence[Sequence[int]], size: int) -> Extents:
        """Outside of which ranges a source of `size` bytes is as this backup.

        That is `changed`, and all from the block on in which one of the two has ended.

        Raises:
            ValueError: `changed` is not in order.
        """
        ends = sorted([self.root.size_bytes, size])
        end = ends[0]
        if ends[0] != ends[1]:
            end -= end % self.root.geometry.block
        ranges = list(Extents(changed).within(0, end))
        if end < size:
            ranges.append((end, size))
        return Extents(ranges)

    def can_share(self, number: int, chunks: range) -> bool:
        """Whether a segment of the same `chunks` can be this one's, which need not be read."""
        there, _ = self._segments.get(number, (range(0), None))
        return len(there) == len(chunks) and not self._condemned

    def segment(self, number: int, chunks: range) -> Before:
        """What there is for `chunks`, which are those of segment `number` in the new backup."""
        there, ref = self._segments.get(number, (range(0), None))
        entries: list[Entry] = [None] * len(there)
        if ref is not None:
            try:
                entries = self._repository.load_segment(ref, len(there))
            except UNUSABLE as error:
                logger.warning("A segment of the parent can't be used: %s", error)
                return Before()
        # It has zeros where it has ended.
        usable = {**dict.fromkeys(chunks, None), **dict(zip(chunks, entries, strict=False))}
        return Before(ref, entries, {c: e for c, e in usable.items() if self._may_use(e)})


def load_parent(
    repository: Repository, backup_id: str, geometry: Geometry, condemned: frozenset[str]
) -> Parent | None:
    """The backup `backup_id`, if it can be built upon; else the log tells why it can't."""
    try:
        root = repository.load_root(backup_id)
    except UNUSABLE as error:
        logger.warning("Parent %s can't be used, saving in full: %s", backup_id, error)
        return None
    if root.geometry != geometry:
        logger.warning("Parent %s is cut by other sizes: saving in full.", backup_id)
        return None
    if root.key_id != repository.keys.id:
        logger.warning("Parent %s has another master key: saving in full.", backup_id)
        return None
    return Parent(repository, root, condemned)
