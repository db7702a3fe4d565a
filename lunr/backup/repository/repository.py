"""One account's objects in a store: loaded and stored, checked and named."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from lunr.backup import errors
from lunr.backup.format import blocks, roots, segments
from lunr.backup.format.names import Buffer, Kind, Ref, root_name
from lunr.backup.format.roots import Root
from lunr.backup.format.segments import Entry
from lunr.backup.keys.derive import Keys
from lunr.backup.stores.base import Store
from lunr.common import ids


class Repository:
    """One account's objects.

    Attributes:
        store: where they are.
        keys: the keys that write, check and read them.
        older: the keys of backups from before a change of the master key.
        clock: seconds since the epoch, for sessions and collections.
    """

    def __init__(
        self,
        store: Store,
        keys: Keys,
        clock: Callable[[], float] = time.time,
        older: Sequence[Keys] = (),
    ) -> None:
        self.store = store
        self.keys = keys
        self.older = tuple(older)
        self.clock = clock
        self._zero_hashes: dict[int, bytes] = {}

    def of(self, root: Root) -> Repository:
        """This repository with the keys that wrote `root` and all that it needs."""
        if root.key_id == self.keys.id:
            return self
        keys = next(keys for keys in self.older if keys.id == root.key_id)
        return Repository(self.store, keys, self.clock)

    # --- backups ---------------------------------------------------------------

    def backup_ids(self) -> Iterator[str]:
        """The ids of the backups, as far as the store lists them already."""
        for name, _ in self.store.list(f"{Kind.ROOT}/"):
            backup_id = name.partition("/")[2]
            if ids.is_valid(backup_id):  # else an unfinished file of a killed writer
                yield backup_id

    def load_root(self, backup_id: str) -> Root:
        """The root of a backup.

        Raises:
            errors.BackupMissing: there is no such backup.
            errors.CorruptObject, errors.UnsupportedFormat, errors.WrongKey: it can't be used.
        """
        name = root_name(ids.check(backup_id, "backup_id"))
        try:
            raw = self.store.get(name)
        except errors.ObjectMissing:
            raise errors.BackupMissing(id=backup_id) from None
        return roots.decode(bytes(raw), backup_id, name, self.keys, *self.older)

    def store_root(self, root: Root) -> None:
        """Write `root`, durably, and read it back: from now on the backup exists."""
        self.store.put(root_name(root.backup_id), roots.encode(root, self.keys), durable=True)
        if self.load_root(root.backup_id) != root:
            raise errors.CorruptObject(
                name=root_name(root.backup_id), reason="it does not read back as it was written."
            )

    def delete_root(self, backup_id: str) -> bool:
        """Delete a backup's root and return whether the store had it; a sweep deletes the rest.

        The request is sent in any case: Swift may answer 404 while an object's nodes are away.
        """
        name = root_name(ids.check(backup_id, "backup_id"))
        try:
            self.store.get(name)
            was_there = True
        except errors.ObjectMissing:
            was_there = False
        self.store.delete(name)
        self.store.sync()
        return was_there

    # --- segments --------------------------------------------------------------

    def load_segment(self, ref: Ref, chunks: int) -> list[Entry]:
        """The `chunks` entries of a segment; see :meth:`of` for segments of another key."""
        name = ref.name(Kind.SEGMENT)
        entries = segments.decode(self.store.get(name), ref, name, self.keys)
        if len(entries) != chunks:
            raise errors.CorruptObject(
                name=name, reason=f"it has {len(entries)} chunks instead of {chunks}."
            )
        return entries

    def segments_of(self, root: Root) -> Iterator[tuple[range, Ref | None]]:
        """The chunks of each segment of a backup, and the segment."""
        for number, ref in enumerate(root.segments):
            yield root.geometry.chunks_in(number, root.size_bytes), ref

    # --- chunks and patches -------------------------------------------------------

    def open(self, ref: Ref, kind: Kind, *, whole: bool, expect: int = 128) -> StoredObject:
        """Open a chunk or patch object, to read blocks of it.

        Args:
            ref: the object's.
            kind: chunk or patch.
            whole: fetch all of it now, in one request. Else only its index is fetched now, and
                each range of blocks when it is read.
            expect: how many blocks it likely has; more cost one more request.

        Raises:
            errors.CorruptObject, errors.UnsupportedFormat: it can't be used.
            errors.ObjectMissing: the store has lost it.
        """
        name = ref.name(kind)
        raw = memoryview(self.store.get(name, 0, None if whole else blocks.index_size(expect)))
        if not whole and (needed := blocks.read_header(raw, name)) > len(raw):
            raw = memoryview(self.store.get(name, 0, needed))
        index = blocks.read_index(raw, ref, name, self.keys)
        expected = blocks.ObjectKind.CHUNK if kind is Kind.CHUNK else blocks.ObjectKind.PATCH
        if index.kind != expected:
            raise errors.CorruptObject(name=name, reason="it is of another kind than its name.")
        if whole and len(raw) != index.ends[-1]:
            raise errors.CorruptObject(
                name=name, reason=f"it has {len(raw)} bytes where its index says {index.ends[-1]}."
            )
        return StoredObject(self, name, index, raw if whole else None)

    def zero_hash(self, length: int) -> bytes:
        """The hash of a block of `length` zeros."""
        if length not in self._zero_hashes:
            (self._zero_hashes[length],) = blocks.hash_blocks(
                memoryview(bytes(length)), length, self.keys
            )
        return self._zero_hashes[length]


class StoredObject:
    """A chunk or patch object, of which blocks can be read; see :meth:`Repository.open`.

    Attributes:
        name: in the store.
        index: its blocks.
    """

    def __init__(
        self, repository: Repository, name: str, index: blocks.Index, raw: memoryview | None
    ) -> None:
        self.name = name
        self.index = index
        self._repository = repository
        self._raw = raw

    @property
    def is_whole(self) -> bool:
        """Whether all of it was fetched: reading it takes no more requests."""
        return self._raw is not None

    def read(self, first: int, count: int) -> Buffer:
        """The plain bytes of `count` blocks from `first` on, every one checked.

        Raises:
            errors.CorruptObject: a block does not match its hash, or is missing.
            errors.ObjectMissing: the store has lost the object meanwhile.
        """
        self.check(first, count)
        start, end = self.index.ends[first], self.index.ends[first + count]
        if self._raw is None:
            frames = self._repository.store.get(self.name, start, end - start)
        else:
            frames = self._raw[start:end]
        return blocks.read_blocks(
            frames, self.index, first, count, self.name, self._repository.keys
        )

    def check(self, first: int, count: int) -> None:
        """Raise errors.CorruptObject unless it has `count` blocks from `first` on."""
        if first + count > len(self.index.hashes):
            raise errors.CorruptObject(
                name=self.name,
                reason=f"it has {len(self.index.hashes)} blocks, and its blocks {first} to "
                f"{first + count} are needed.",
            )
