"""Save: read, hash, compare, compress and store, in parallel and in bounded memory.

Each thread takes one chunk through all of it, in a buffer of its own: while
one waits for the disk, another hashes and a third waits for the store.
"""

from __future__ import annotations

import logging
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from lunr.backup import errors, parallel
from lunr.backup.condemned import load_names
from lunr.backup.format import blocks, segments
from lunr.backup.format.blocks import Compression, ObjectKind
from lunr.backup.format.names import Buffer, Geometry, Kind, Ref
from lunr.backup.format.roots import Root, Statistics
from lunr.backup.format.segments import Entry, Patched, objects_of
from lunr.backup.repository import Repository
from lunr.backup.sessions import Writer
from lunr.backup.sources import Source
from lunr.common.errors import IdInUse

logger = logging.getLogger(__name__)

#: Called with the bytes done and the bytes in all; from any thread.
Progress = Callable[[int, int], None]

#: How many chunks a save remembers so as not to store them twice (2 TiB's
#: worth): beyond, equal chunks are only noticed where they were before.
_REMEMBERED = 1 << 19
_ZEROS = bytes(64 << 10)

#: With a parent that fails like this, a save costs more but is none the worse.
_UNUSABLE = (
    errors.BackupMissing,
    errors.ObjectMissing,
    errors.CorruptObject,
    errors.UnsupportedFormat,
    errors.WrongKey,
)


@dataclass(frozen=True)
class Backup:
    """What to save, and as what.

    Attributes:
        backup_id: the new backup's id.
        volume_id: what it is a backup of.
        created_at: ISO 8601 in UTC.
        parent_id: a backup to compare with, likely of the same volume; or None.
        condemned: collections that may not be listed yet.
        consistency_group: see :class:`Root`.
        geometry: the sizes to cut it by.
    """

    backup_id: str
    volume_id: str
    created_at: str
    parent_id: str | None = None
    condemned: tuple[str, ...] = ()
    consistency_group: str | None = None
    geometry: Geometry = field(default_factory=Geometry)


def save(
    repository: Repository,
    source: Source,
    backup: Backup,
    *,
    concurrency: int = 4,
    compression: Compression = Compression.ZSTD,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> Root:
    """Store `source` as `backup`; the same again, when it is there already, changes nothing.

    Args:
        repository: where to.
        source: what from; nobody may write to it meanwhile.
        backup: ids, parent and the like.
        concurrency: requests to the store at once; 1 does everything in this thread.
        compression: blocks that do not shrink are stored as they are.
        progress: told what is done.
        cancel: set to give up within a second, with Cancelled.

    Raises:
        errors.SourceError: the source can't be read; nothing is a backup then.
        errors.StoreUnavailable, errors.StoreFull, errors.StoreRefused: not all was stored.
        errors.SessionLost: it took too long between two signs of life; start again.
        IdInUse: the id is taken by a backup of another volume.
    """
    try:
        there = repository.load_root(backup.backup_id)
    except errors.BackupMissing:
        pass
    else:
        if there.volume_id != backup.volume_id:
            raise IdInUse(kind="backup", id=backup.backup_id, differs="volume_id")
        return there
    with Writer(repository, backup.backup_id) as writer:
        condemned, known = load_names(repository, backup.condemned)
        writer.declare(known)
        run = _Save(repository, source, backup, writer.token, condemned, compression, concurrency)
        root = run.run(progress, cancel)
        repository.store.sync()
        writer.renew()
        repository.store_root(root)
        return root


class _Segment:
    """A segment under way: done when all its chunks are."""

    def __init__(self, number: int, chunks: range, ref: Ref | None, parent: list[Entry]) -> None:
        self.number = number
        self.first = chunks.start
        self.entries: list[Entry] = [None] * len(chunks)
        self.parent_ref = ref
        self.parent = parent
        self.missing = 0


class _Save:
    def __init__(
        self,
        repository: Repository,
        source: Source,
        backup: Backup,
        token: bytes,
        condemned: frozenset[str],
        compression: Compression,
        concurrency: int,
    ) -> None:
        self._repository = repository
        self._source = source
        self._backup = backup
        self._geometry = backup.geometry
        self._token = token
        self._condemned = condemned
        self._compression = compression
        self._threads = 1 if concurrency == 1 else concurrency + (os.cpu_count() or 1)
        self._slots = threading.Semaphore(concurrency)
        self._lock = threading.Lock()
        self._local = threading.local()
        self._known: dict[bytes, bytes] = {}
        self._segments: list[Ref | None] = [None] * self._geometry.segments(source.size)
        self._bytes_read = self._bytes_stored = self._objects = self._zeros = self._done = 0

    def run(self, progress: Progress | None, cancel: threading.Event | None) -> Root:
        started = time.monotonic()
        parent = self._load_parent(cancel)
        size = self._source.size
        self._progress = progress or (lambda _done, _total: None)
        parallel.each(self._chunks(parent), self._save_chunk, self._threads, cancel)
        return Root(
            backup_id=self._backup.backup_id,
            volume_id=self._backup.volume_id,
            parent_id=parent.backup_id if parent else None,
            size_bytes=size,
            created_at=self._backup.created_at,
            geometry=self._geometry,
            segments=tuple(self._segments),
            key_id=self._repository.keys.id,
            consistency_group=self._backup.consistency_group,
            statistics=Statistics(
                bytes_read=self._bytes_read,
                bytes_stored=self._bytes_stored,
                objects_stored=self._objects,
                chunks=self._geometry.chunks(size),
                zero_chunks=self._zeros,
                seconds=round(time.monotonic() - started, 3),
            ),
        )

    # --- the parent --------------------------------------------------------------

    def _load_parent(self, cancel: threading.Event | None) -> Root | None:
        """The parent's root, if it is of use; what it holds is then known."""
        parent_id = self._backup.parent_id
        if parent_id is None:
            return None
        try:
            parent = self._repository.load_root(parent_id)
            if parent.geometry != self._geometry:
                logger.warning("Parent %s is cut by other sizes: saving in full.", parent_id)
                return None
            if parent.key_id != self._repository.keys.id:
                logger.warning("Parent %s has another master key: saving in full.", parent_id)
                return None
            parallel.each(self._repository.segments_of(parent), self._learn, self._threads, cancel)
        except _UNUSABLE as error:
            logger.warning("Parent %s can't be used, saving in full: %s", parent_id, error)
            self._known.clear()
            return None
        return parent

    def _learn(self, segment: tuple[range, Ref | None]) -> None:
        chunks, ref = segment
        if ref is None or len(self._known) >= _REMEMBERED:
            return
        for entry in self._repository.load_segment(ref, len(chunks)):
            if isinstance(entry, Ref) and self._may_use(entry):
                self._known.setdefault(entry.hash, entry.token)

    def _may_use(self, entry: Ref | Patched) -> bool:
        return not self._condemned or self._condemned.isdisjoint(objects_of(entry))

    # --- what there is to do -------------------------------------------------------

    def _chunks(self, parent: Root | None) -> Iterator[tuple[_Segment, int]]:
        """The chunks that may hold data, segment after segment. One thread at a time is here."""
        size, unit = self._source.size, self._geometry.chunk
        before = dict(enumerate(self._repository.segments_of(parent))) if parent else {}
        for number in range(len(self._segments)):
            chunks = self._geometry.chunks_in(number, size)
            wanted: list[int] = []
            for start, end in self._source.data(chunks.start * unit, min(chunks.stop * unit, size)):
                first = max(start // unit, wanted[-1] + 1 if wanted else 0)
                wanted.extend(range(first, -(-end // unit)))
            self._count_holes(chunks, wanted)
            if not wanted:
                continue
            there, ref = before.get(number, (range(0), None))
            entries: list[Entry] = []
            if ref is not None:
                try:
                    entries = self._repository.load_segment(ref, len(there))
                except _UNUSABLE as error:
                    logger.warning("A segment of the parent can't be used: %s", error)
            segment = _Segment(number, chunks, ref, entries)
            segment.missing = len(wanted)
            for chunk in wanted:
                yield segment, chunk

    def _count_holes(self, chunks: range, wanted: list[int]) -> None:
        holes = len(chunks) - len(wanted)
        with self._lock:
            self._zeros += holes
            self._done += holes * self._geometry.chunk
            done = min(self._done, self._source.size)
        self._progress(done, self._source.size)

    # --- one chunk -------------------------------------------------------------------

    def _save_chunk(self, item: tuple[_Segment, int]) -> None:
        segment, chunk = item
        length = self._geometry.chunk_length(chunk, self._source.size)
        data = self._source.read(self._buffer(), chunk * self._geometry.chunk, length)
        entry = None if _is_zero(data) else self._store_chunk(segment, chunk, data)
        with self._lock:
            segment.entries[chunk - segment.first] = entry
            segment.missing -= 1
            complete = segment.missing == 0
            self._zeros += entry is None
            self._bytes_read += length
            self._done += length
            done = min(self._done, self._source.size)
        self._progress(done, self._source.size)
        if complete:
            self._store_segment(segment)

    def _buffer(self) -> mmap.mmap:
        buffer: mmap.mmap | None = getattr(self._local, "buffer", None)
        if buffer is None:  # aligned to a page, as reading past the page cache needs it
            buffer = self._local.buffer = mmap.mmap(-1, self._geometry.chunk)
        return buffer

    def _store_chunk(self, segment: _Segment, chunk: int, data: memoryview) -> Entry:
        keys = self._repository.keys
        hashes = blocks.hash_blocks(data, self._geometry.block, keys)
        digest = blocks.content_hash(hashes, keys)
        position = chunk - segment.first
        if position < len(segment.parent):
            before = segment.parent[position]
            if before is not None and before.hash == digest and self._may_use(before):
                return before
        with self._lock:
            token = self._known.get(digest)
            if token is not None:
                return Ref(digest, token)
            # Another thread that meets the same chunk need not wait: if this
            # one fails to store it, there will be no backup.
            if len(self._known) < _REMEMBERED:
                self._known[digest] = self._token
        ref = Ref(digest, self._token)
        self._put(
            ref.name(Kind.CHUNK),
            blocks.encode(
                ObjectKind.CHUNK, ref, data, hashes, self._geometry.block, self._compression, keys
            ),
        )
        return ref

    def _store_segment(self, segment: _Segment) -> None:
        if not any(segment.entries):
            return
        if segment.entries == segment.parent and segment.parent_ref is not None:
            name = segment.parent_ref.name(Kind.SEGMENT)
            if name not in self._condemned:
                self._segments[segment.number] = segment.parent_ref
                return
        ref, raw = segments.encode(segment.entries, self._token, self._repository.keys)
        self._put(ref.name(Kind.SEGMENT), [raw])
        self._segments[segment.number] = ref

    def _put(self, name: str, buffers: Iterable[Buffer]) -> None:
        parts = list(buffers)
        with self._slots:
            self._repository.store.put(name, *parts)
        with self._lock:
            self._objects += 1
            self._bytes_stored += sum(len(part) for part in parts)


def _is_zero(data: memoryview) -> bool:
    # Comparing bytes is memcmp; comparing memoryviews is a hundred times slower.
    step = len(_ZEROS)
    for start in range(0, len(data), step):
        piece = bytes(data[start : start + step])
        if piece != _ZEROS[: len(piece)]:
            return False
    return True
