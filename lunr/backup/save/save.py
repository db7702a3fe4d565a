"""Save: read, hash, compare, compress and store, in parallel and in bounded memory.

Each thread takes one chunk through all steps, in a buffer of its own: while
one waits for the disk, another hashes and a third waits for the store.

If a few blocks of a chunk differ from the parent's, only these blocks are stored, in
patches. The hashes in the indexes of the parent's objects show which blocks differ; none
of the parent's bytes are fetched.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from lunr.backup import errors, parallel
from lunr.backup.format import blocks
from lunr.backup.format.blocks import Compression
from lunr.backup.format.names import Geometry, Kind, Ref
from lunr.backup.format.roots import Root, Statistics
from lunr.backup.format.segments import Entry, Place, places_of
from lunr.backup.repository.pending_deletion import load_names
from lunr.backup.repository.repository import Repository
from lunr.backup.repository.sessions import Writer
from lunr.backup.save.block_hashes import Indexes
from lunr.backup.save.block_source import Source
from lunr.backup.save.chunk_index import ChunkIndex
from lunr.backup.save.object_writer import Output
from lunr.backup.save.parent import UNUSABLE, Parent, ParentSegment, load_parent
from lunr.backup.save.patch_packer import PatchPacker, PendingBlock
from lunr.backup.save.patch_rewrite_policy import is_written_whole
from lunr.backup.save.segment_builder import SegmentBuilder
from lunr.backup.save.source_reader import Input, is_zero
from lunr.common.extents import Extents, runs
from lunr.common.linux import reuse_memory

logger = logging.getLogger(__name__)

#: Called with the bytes done and the bytes in all; from any thread.
Progress = Callable[[int, int], None]

#: How many segments of dedup candidates a save reads to find the chunks that are stored already
#: (a segment is 4 GiB): when it compares the whole volume, and when it knows what changed. The
#: second must not read a thousand times what it stores.
_READ_SEGMENTS = 256
_READ_SEGMENTS_IF_FEW_CHANGED = 16


@dataclass(frozen=True)
class Backup:
    """The backup that a save makes.

    Attributes:
        backup_id: its id.
        volume_id: the volume's id.
        created_at: ISO 8601 in UTC.
        parent_id: the backup to compare with, likely of the same volume; or None.
        like: the dedup candidates, the likeliest first: the save refers to their chunks instead
            of storing them again. It skips those that can't be used.
        pending_deletion: collections that the store may not list yet.
        changed: the ranges (first byte, end), in order and apart, outside of which the source
            reads as the parent; None: unknown. Ignored if the parent can't be used.
        consistency_group: see :class:`Root`.
        geometry: the sizes of its chunks, blocks and segments.
        internal: see :class:`Root`.
    """

    backup_id: str
    volume_id: str
    created_at: str
    parent_id: str | None = None
    like: tuple[str, ...] = ()
    pending_deletion: tuple[str, ...] = ()
    changed: Extents | Sequence[Sequence[int]] | None = None
    consistency_group: str | None = None
    geometry: Geometry = field(default_factory=Geometry)
    internal: bool = False


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
    """Store `source` as `backup`; if the backup exists, change nothing.

    Args:
        repository: where to.
        source: where from; it must not change meanwhile.
        backup: ids, parent and the like.
        concurrency: requests to the store at once; 1 does everything in this thread.
        compression: blocks that do not shrink are stored as they are.
        progress: called with the bytes done and in all.
        cancel: set to give up within a second, with Cancelled.

    Raises:
        errors.SourceError: the source can't be read; there is no backup then.
        errors.StoreUnavailable, errors.StoreFull, errors.StoreRefused: not all was stored.
        errors.SessionLost: it took too long between two signs of life; start again.
        errors.BackupExists: the id is taken by a backup of another volume or another time.
        ValueError: `backup.changed` is not in order.
    """
    reuse_memory()
    try:
        existing = repository.load_root(backup.backup_id)
    except errors.BackupMissing:
        pass
    else:
        if (existing.volume_id, existing.created_at) != (backup.volume_id, backup.created_at):
            raise errors.BackupExists(
                id=existing.backup_id, volume=existing.volume_id, created_at=existing.created_at
            )
        return existing
    with Writer(repository, backup.backup_id) as writer:
        pending_deletion, known = load_names(repository, backup.pending_deletion)
        writer.declare(known)
        output = Output(repository, backup.geometry, writer.token, compression, concurrency)
        run = _Save(repository, source, backup, output, pending_deletion, concurrency)
        root = run.run(progress, cancel)
        repository.store.sync()
        writer.renew()
        repository.store_root(root)
        return root


class _Save:
    def __init__(
        self,
        repository: Repository,
        source: Source,
        backup: Backup,
        output: Output,
        pending_deletion: frozenset[str],
        concurrency: int,
    ) -> None:
        self._repository = repository
        self._source = source
        self._backup = backup
        self._input = Input(repository, source, backup.geometry)
        self._geometry = backup.geometry
        self._output = output
        self._pending_deletion = pending_deletion
        self._concurrency = concurrency
        self._threads = parallel.threads_for(concurrency)
        self._lock = threading.Lock()
        self._most = self._geometry.chunk // self._geometry.block
        self._segments: list[Ref | None] = [None] * self._geometry.segments(source.size)
        self._zeros = self._done = 0

    def run(self, progress: Progress | None, cancel: threading.Event | None) -> Root:
        started = time.monotonic()
        parent_id, size = self._backup.parent_id, self._source.size
        parent = None if parent_id is None else self._load(parent_id)
        changes = None
        if parent is not None and self._backup.changed is not None:
            changed = self._backup.changed
            changed = changed if isinstance(changed, Extents) else Extents(changed)
            changes = parent.changes(changed, size)
        self._known = ChunkIndex(
            self._dedup_parents(parent),
            _READ_SEGMENTS if changes is None else _READ_SEGMENTS_IF_FEW_CHANGED,
            self._concurrency,
            self._output.slots,
            cancel,
        )
        self._progress = progress or (lambda _done, _total: None)
        shared = self._unchanged_segments(parent, changes, cancel)
        steps = self._steps(parent, changes, shared)
        parallel.each(steps, lambda step: step(), self._threads, cancel)
        return Root(
            backup_id=self._backup.backup_id,
            volume_id=self._backup.volume_id,
            parent_id=parent.root.backup_id if parent else None,
            size_bytes=size,
            created_at=self._backup.created_at,
            geometry=self._geometry,
            segments=tuple(self._segments),
            key_id=self._repository.keys.id,
            consistency_group=self._backup.consistency_group,
            internal=self._backup.internal,
            statistics=Statistics(
                bytes_read=self._input.bytes_read,
                bytes_stored=self._output.bytes_stored,
                objects_stored=self._output.objects,
                chunks=self._geometry.chunks(size),
                zero_chunks=self._zeros,
                seconds=round(time.monotonic() - started, 3),
            ),
        )

    def _load(self, backup_id: str) -> Parent | None:
        return load_parent(self._repository, backup_id, self._geometry, self._pending_deletion)

    def _dedup_parents(self, parent: Parent | None) -> Iterator[Parent]:
        """The parent, and the dedup candidates that can be used."""
        if parent is not None:
            yield parent
        for backup_id in self._backup.like:
            if (backup := self._load(backup_id)) is not None:
                yield backup

    # --- what there is to do -------------------------------------------------------

    def _range(self, segment: int) -> tuple[int, int]:
        """First byte and end of a segment."""
        chunks, unit = self._geometry.chunks_in(segment, self._source.size), self._geometry.chunk
        return chunks.start * unit, min(chunks.stop * unit, self._source.size)

    def _unchanged_segments(
        self, parent: Parent | None, changes: Extents | None, cancel: threading.Event | None
    ) -> set[int]:
        """The segments that the backup shares with its parent: neither read nor stored."""
        if parent is None or changes is None:
            return set()
        same = (
            (number, self._geometry.chunks_in(number, self._source.size))
            for number in range(len(self._segments))
            if not any(changes.within(*self._range(number)))
        )
        return parent.shareable(same, self._concurrency, cancel)

    def _steps(
        self, parent: Parent | None, changes: Extents | None, shared: Collection[int]
    ) -> Iterator[Callable[[], None]]:
        """The steps of the save, segment after segment. Only one thread at a time iterates."""
        unit = self._geometry.chunk
        for number in range(len(self._segments)):
            chunks = self._geometry.chunks_in(number, self._source.size)
            start, end = self._range(number)
            if parent is not None and number in shared:
                self._segments[number] = parent.root.segments[number]
                self._advance(end - start)
                continue
            chunks_to_save: list[int] = []
            for begin, stop in self._source.data(start, end):
                first = max(begin // unit, chunks_to_save[-1] + 1 if chunks_to_save else 0)
                chunks_to_save.extend(range(first, -(-stop // unit)))
            self._count_holes(chunks, chunks_to_save)
            if chunks_to_save:
                draft = SegmentBuilder(
                    number,
                    chunks,
                    ParentSegment() if parent is None else parent.segment(number, chunks),
                    Indexes(self._repository, self._geometry, self._output.slots),
                    PatchPacker(self._most, self._output.patch),
                )
                yield from self._steps_of(draft, chunks_to_save, changes)

    def _steps_of(
        self, draft: SegmentBuilder, chunks_to_save: Iterable[int], changes: Extents | None
    ) -> Iterator[Callable[[], None]]:
        todo: list[Callable[[], None]] = []
        for chunk in chunks_to_save:
            start = chunk * self._geometry.chunk
            end = start + self._geometry.chunk_length(chunk, self._source.size)
            if changes is None or chunk not in draft.before.usable:
                todo.append(partial(self._save_chunk, draft, chunk, None))
            elif ranges := list(changes.within(start, end)):
                todo.append(partial(self._save_chunk, draft, chunk, ranges))
            else:
                draft.set_entry(chunk, draft.before.usable[chunk])
                self._advance(end - start)
        draft.missing = len(todo)
        yield from todo or [partial(self._store_segment, draft)]

    def _count_holes(self, chunks: range, chunks_to_save: list[int]) -> None:
        holes = len(chunks) - len(chunks_to_save)
        with self._lock:
            self._zeros += holes
        self._advance(holes * self._geometry.chunk)

    def _advance(self, length: int) -> None:
        with self._lock:
            self._done += length
            done = min(self._done, self._source.size)
        self._progress(done, self._source.size)

    # --- one chunk -------------------------------------------------------------------

    def _save_chunk(
        self, draft: SegmentBuilder, chunk: int, ranges: Sequence[tuple[int, int]] | None
    ) -> None:
        """Save a chunk that may differ from the parent's only in `ranges`; None: everywhere."""
        if ranges is None:
            self._save_all(draft, chunk)
        else:
            try:
                self._save_ranges(draft, chunk, ranges)
            except UNUSABLE as error:
                logger.warning("Reading all of a chunk; the parent's can't be used: %s", error)
                self._save_all(draft, chunk)
        self._advance(self._geometry.chunk_length(chunk, self._source.size))
        if draft.done():
            self._store_segment(draft)

    def _save_all(self, draft: SegmentBuilder, chunk: int) -> None:
        keys = self._repository.keys
        length = self._geometry.chunk_length(chunk, self._source.size)
        data = self._input.read(chunk * self._geometry.chunk, length)
        if is_zero(data):
            self._set_entry(draft, chunk, None)
            return
        hashes = blocks.hash_blocks(data, self._geometry.block, keys)
        digest = blocks.content_hash(hashes, keys)
        if self._is_known(draft, chunk, digest):
            return
        before = self._hashes_before(draft, chunk, length)
        if before is not None:
            unit = self._geometry.block
            fresh = [
                PendingBlock(chunk, block, digest_, bytes(data[block * unit : (block + 1) * unit]))
                for block, digest_ in enumerate(hashes)
                if digest_ != before[block]
            ]
            if self._patch(draft, chunk, digest, fresh):
                return
        ref = Ref(digest, self._output.token)
        self._set_entry(
            draft, chunk, self._known.claim(ref) or self._output.chunk(ref, hashes, data)
        )

    def _hashes_before(
        self, draft: SegmentBuilder, chunk: int, length: int
    ) -> list[bytes | None] | None:
        """The hashes of the blocks of the parent's chunk; None: it can't be used."""
        if chunk not in draft.before.usable:
            return None
        try:
            return draft.indexes.hashes_of(draft.before.usable[chunk], length)
        except UNUSABLE as error:
            logger.warning("Storing all of a chunk; the parent's can't be used: %s", error)
            return None

    def _save_ranges(
        self, draft: SegmentBuilder, chunk: int, ranges: Sequence[tuple[int, int]]
    ) -> None:
        """Save a chunk, reading only its blocks in `ranges`.

        Raises:
            errors of UNUSABLE: the parent's objects, which have the other blocks, can't be used.
        """
        geometry, keys = self._geometry, self._repository.keys
        length = geometry.chunk_length(chunk, self._source.size)
        start = chunk * geometry.chunk
        hashes = draft.indexes.hashes_of(draft.before.usable[chunk], length)
        to_read = {block for block, digest in enumerate(hashes) if digest is None}
        for begin, end in ranges:
            first, stop = begin - start, -(-(end - start) // geometry.block)
            to_read.update(range(first // geometry.block, stop))
        fresh: list[PendingBlock] = []
        for first, stop in runs(to_read):
            at, end = first * geometry.block, min(stop * geometry.block, length)
            data = self._input.read(start + at, end - at)
            for block, digest in enumerate(
                blocks.hash_blocks(data, geometry.block, keys), start=first
            ):
                if digest != hashes[block]:
                    hashes[block] = digest
                    offset = block * geometry.block - at
                    piece = bytes(data[offset : offset + geometry.block])
                    fresh.append(PendingBlock(chunk, block, digest, piece))
        known = [digest for digest in hashes if digest is not None]
        if all(map(self._input.is_hash_of_zeros, known)):
            self._set_entry(draft, chunk, None)
            return
        digest = blocks.content_hash(known, keys)
        if self._is_known(draft, chunk, digest) or self._patch(draft, chunk, digest, fresh):
            return
        self._known.load()
        if not self._is_known(draft, chunk, digest):
            self._save_all(draft, chunk)

    def _is_known(self, draft: SegmentBuilder, chunk: int, digest: bytes) -> bool:
        """Set the entry of a chunk that is the parent's, or stored already; False if it is new."""
        entry = draft.before.usable.get(chunk)
        if entry is None or entry.hash != digest:
            entry = self._known.find(digest)
            if entry is None:
                return False
        self._set_entry(draft, chunk, entry)
        return True

    def _patch(
        self, draft: SegmentBuilder, chunk: int, digest: bytes, fresh: Sequence[PendingBlock]
    ) -> bool:
        """Store the `fresh` blocks of a chunk in a patch, unless it should be written whole."""
        length = self._geometry.chunk_length(chunk, self._source.size)
        count = -(-length // self._geometry.block)
        places: dict[int, Place] = {
            block: place
            for block, place in places_of(draft.before.usable[chunk]).items()
            if block < count
        }
        places.update((block.block, None) for block in fresh)
        if is_written_whole(len(places), count):
            return False
        stored = [block for block in fresh if not self._input.is_hash_of_zeros(block.hash)]
        draft.patch(chunk, digest, places, stored)
        return True

    def _set_entry(self, draft: SegmentBuilder, chunk: int, entry: Entry) -> None:
        with self._lock:
            self._zeros += entry is None
        draft.set_entry(chunk, entry)

    # --- storing a segment -------------------------------------------------------------

    def _store_segment(self, draft: SegmentBuilder) -> None:
        if draft.is_unchanged and draft.before.ref is not None:
            name = draft.before.ref.name(Kind.SEGMENT)
            if name not in self._pending_deletion:
                self._segments[draft.number] = draft.before.ref
                return
        entries = draft.finish(self._most, self._input.block)
        if any(entries):
            self._segments[draft.number] = self._output.segment(entries)
