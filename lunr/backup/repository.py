"""One account's objects in a store: loaded and stored, checked and named."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from lunr.backup import errors
from lunr.backup.format import blocks, roots, segments
from lunr.backup.format.names import Buffer, Geometry, Kind, Ref, root_name
from lunr.backup.format.roots import Root
from lunr.backup.format.segments import Entry, Patched
from lunr.backup.keys import Keys
from lunr.backup.stores.base import Store
from lunr.common import ids


class Repository:
    """One account's objects.

    Attributes:
        store: where they are.
        keys: what writes, checks and reads them.
        older: keys that backups from before a change of the master key need.
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

    def of(self, root: Root) -> Repository:
        """This repository with the keys that `root`, and so all it needs, was written with."""
        if root.key_id == self.keys.id:
            return self
        keys = next(keys for keys in self.older if keys.id == root.key_id)
        return Repository(self.store, keys, self.clock)

    # --- backups ---------------------------------------------------------------

    def backup_ids(self) -> Iterator[str]:
        """The ids of the backups, as far as the store lists them already."""
        for name, _ in self.store.list(f"{Kind.ROOT}/"):
            backup_id = name.partition("/")[2]
            if ids.is_valid(backup_id):  # else a root that a killed writer left unfinished
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
                name=root_name(root.backup_id), reason="it does not read as it was written."
            )

    def delete_root(self, backup_id: str) -> bool:
        """Delete a backup (not yet what only it needs); whether there was one."""
        try:
            self.store.get(root_name(ids.check(backup_id, "backup_id")))
        except errors.ObjectMissing:
            return False
        self.store.delete(root_name(backup_id))
        self.store.sync()
        return True

    # --- segments --------------------------------------------------------------

    def load_segment(self, ref: Ref, chunks: int) -> list[Entry]:
        """The entries of a segment, which must be `chunks`; for another key's see :meth:`of`."""
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

    # --- chunks ----------------------------------------------------------------

    def load_object(self, ref: Ref, kind: Kind) -> tuple[blocks.Index, Buffer]:
        """Index and plain bytes of a whole chunk or patch object."""
        name = ref.name(kind)
        raw = memoryview(self.store.get(name))
        index = self._index(raw, ref, kind, name)
        data = blocks.read_blocks(
            raw[index.ends[0] :], index, 0, len(index.hashes), name, self.keys
        )
        return index, data

    def load_blocks(
        self, ref: Ref, kind: Kind, first: int, count: int, expect: int = 128
    ) -> tuple[blocks.Index, Buffer]:
        """Index and the plain bytes of `count` blocks from `first` on, and no more than that.

        `expect` is how many blocks the object likely has; more cost one more request.
        """
        name = ref.name(kind)
        raw = self.store.get(name, 0, blocks.index_size(expect))
        needed = blocks.read_header(raw, name)
        if needed > len(raw):
            raw = self.store.get(name, 0, needed)
        index = self._index(raw, ref, kind, name)
        if first + count > len(index.hashes):
            raise errors.CorruptObject(
                name=name,
                reason=f"blocks {first} to {first + count} of {len(index.hashes)} were wanted.",
            )
        start, end = index.ends[first], index.ends[first + count]
        frames = self.store.get(name, start, end - start)
        return index, blocks.read_blocks(frames, index, first, count, name, self.keys)

    def _index(self, raw: Buffer, ref: Ref, kind: Kind, name: str) -> blocks.Index:
        index = blocks.read_index(raw, ref, name, self.keys)
        wanted = blocks.ObjectKind.CHUNK if kind is Kind.CHUNK else blocks.ObjectKind.PATCH
        if index.kind != wanted:
            raise errors.CorruptObject(name=name, reason="it is of another kind than its name.")
        return index

    def load_chunk(self, entry: Ref | Patched, length: int, geometry: Geometry) -> Buffer:
        """The plain bytes of a chunk of `length` bytes, every one checked.

        Raises:
            errors.CorruptObject: the bytes are not those that were stored; it names the object.
            errors.ObjectMissing: the store has lost it.
        """
        if isinstance(entry, Patched):
            return self._load_patched(entry, length, geometry)
        name = entry.name(Kind.CHUNK)
        index, data = self.load_object(entry, Kind.CHUNK)
        if index.block_size != geometry.block or index.plain_size != length:
            raise errors.CorruptObject(name=name, reason="it has another size than its chunk.")
        return data

    def _load_patched(self, entry: Patched, length: int, geometry: Geometry) -> Buffer:
        size = geometry.block
        count = -(-length // size)
        if entry.base is None:
            data = bytearray(length)
            hashes = blocks.hash_blocks(memoryview(data), size, self.keys)
        else:
            base, plain = self.load_object(entry.base, Kind.CHUNK)
            if base.block_size != size:
                raise errors.CorruptObject(
                    name=entry.base.name(Kind.CHUNK), reason="its blocks have another size."
                )
            # The volume, and with it its last chunk, may have grown since.
            data = bytearray(plain)[:length].ljust(length, b"\0")
            hashes = list(base.hashes[:count])
            whole = min(base.plain_size, length) // size
            hashes[whole:] = blocks.hash_blocks(memoryview(data)[whole * size :], size, self.keys)
        for piece in entry.pieces:
            index, plain = self.load_blocks(
                piece.patch, Kind.PATCH, piece.first_in_patch, piece.blocks
            )
            start, end = piece.first * size, min((piece.first + piece.blocks) * size, length)
            if end - start != len(plain) or index.block_size != size:
                raise errors.CorruptObject(
                    name=piece.patch.name(Kind.PATCH), reason="its blocks do not fit their chunk."
                )
            data[start:end] = plain
            hashes[piece.first : piece.first + piece.blocks] = index.hashes[
                piece.first_in_patch : piece.first_in_patch + piece.blocks
            ]
        if blocks.content_hash(hashes, self.keys) != entry.hash:
            raise errors.CorruptObject(
                name=", ".join(dict.fromkeys(segments.objects_of(entry))),
                reason="put together they are not the chunk that was stored.",
            )
        return data
