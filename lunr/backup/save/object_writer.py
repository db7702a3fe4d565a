"""The objects that a save writes: named, counted, and with a limit of requests at once."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from lunr.backup.format import blocks, segments
from lunr.backup.format.blocks import Compression, ObjectKind
from lunr.backup.format.names import Buffer, Geometry, Kind, Ref
from lunr.backup.format.segments import Entry
from lunr.backup.repository.repository import Repository


class Output:
    """Writes the objects of one save. Any thread may call it.

    Attributes:
        token: the writer session's; a part of every name.
        slots: bound the requests to the store.
        objects: how many were written.
        bytes_stored: the bytes in them.
    """

    def __init__(
        self,
        repository: Repository,
        geometry: Geometry,
        token: bytes,
        compression: Compression,
        concurrency: int,
    ) -> None:
        """Write to `repository`.

        Args:
            repository: where to, and the keys.
            geometry: the sizes of chunks and blocks.
            token: the writer session's.
            compression: blocks that do not shrink are stored as they are.
            concurrency: requests at once.
        """
        self.token = token
        self.slots = threading.Semaphore(concurrency)
        self.objects = self.bytes_stored = 0
        self._repository = repository
        self._geometry = geometry
        self._compression = compression
        self._lock = threading.Lock()

    def chunk(self, ref: Ref, hashes: Sequence[bytes], data: memoryview) -> Ref:
        """Store the chunk `data`, whose blocks have these `hashes`, as `ref`."""
        return self._object(ObjectKind.CHUNK, ref, hashes, data)

    def patch(self, hashes: Sequence[bytes], data: memoryview) -> Ref:
        """Store an object of blocks with these `hashes`."""
        digest = blocks.content_hash(hashes, self._repository.keys)
        return self._object(ObjectKind.PATCH, Ref(digest, self.token), hashes, data)

    def segment(self, entries: Sequence[Entry]) -> Ref:
        """Store a segment."""
        ref, raw = segments.encode(entries, self.token, self._repository.keys)
        self._put(ref.name(Kind.SEGMENT), [raw])
        return ref

    def _object(self, kind: ObjectKind, ref: Ref, hashes: Sequence[bytes], data: memoryview) -> Ref:
        size, keys = self._geometry.block, self._repository.keys
        name = ref.name(Kind.CHUNK if kind is ObjectKind.CHUNK else Kind.PATCH)
        self._put(name, blocks.encode(kind, ref, data, hashes, size, self._compression, keys))
        return ref

    def _put(self, name: str, buffers: Sequence[Buffer]) -> None:
        self._repository.store.put(name, *buffers, slot=self.slots)
        with self._lock:
            self.objects += 1
            self.bytes_stored += sum(map(len, buffers))
