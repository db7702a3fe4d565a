"""Stores that misbehave, sources in memory, and a repository small enough to look through."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Iterator, Sequence

from lunr.backup import errors
from lunr.backup.format import blocks, segments
from lunr.backup.format.blocks import Compression, ObjectKind
from lunr.backup.format.names import Buffer, Geometry, Kind, Ref
from lunr.backup.format.roots import Root, Statistics
from lunr.backup.format.segments import Entry, Patched, Piece
from lunr.backup.keys import derive
from lunr.backup.read.plan import load_range
from lunr.backup.repository.repository import Repository
from lunr.backup.save.save import Backup, save
from lunr.backup.stores.base import AT_ONCE, Slot, Store
from lunr.backup.stores.memory import MemoryStore

#: Four blocks a chunk, four chunks a segment.
SMALL = Geometry(block=64, chunk=256, segment_chunks=4)
KEYS = derive.derive(derive.PUBLIC_MASTER, "default")


class MemorySource:
    """Bytes to save, of which the chunks of zeros may be given as holes."""

    def __init__(self, data: bytes, holes: bool = False, chunk: int = SMALL.chunk) -> None:
        self._data = data
        self._holes = holes
        self._chunk = chunk
        self.size = len(data)
        self.reads = 0

    def data(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        for at in range(start, end, self._chunk):
            stop = min(at + self._chunk, end)
            if not self._holes or any(self._data[at:stop]):
                yield at, stop

    def read(self, buffer: mmap.mmap, offset: int, length: int) -> memoryview:
        self.reads += 1
        buffer[:length] = self._data[offset : offset + length]
        return memoryview(buffer)[:length]


class Faulty(Store):
    """Another store whose calls go through `before` first, which may raise or wait."""

    def __init__(self, store: Store, before: Callable[[str, str], None]) -> None:
        self.store = store
        self.before = before
        self.lag = store.lag  # type: ignore[misc]
        self.settle = store.settle  # type: ignore[misc]

    def put(self, name: str, *buffers: Buffer, durable: bool = False, slot: Slot = AT_ONCE) -> None:
        with slot:
            self.before("put", name)
            self.store.put(name, *buffers, durable=durable)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Buffer:
        self.before("get", name)
        return self.store.get(name, offset, length)

    def delete(self, name: str) -> None:
        self.before("delete", name)
        self.store.delete(name)

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        self.before("list", prefix)
        yield from self.store.list(prefix)

    def sync(self) -> None:
        self.before("sync", "")
        self.store.sync()

    def close(self) -> None:
        self.store.close()


class FailAfter:
    """For :class:`Faulty`: the calls from number `count` on fail, `times` of them."""

    def __init__(self, count: int, times: int = 1 << 30) -> None:
        self.calls = 0
        self.count = count
        self.times = times
        self._lock = threading.Lock()

    def __call__(self, call: str, name: str) -> None:
        with self._lock:
            self.calls += 1
            if self.count < self.calls <= self.count + self.times:
                raise errors.StoreUnavailable(store="test", reason=f"{call} {name} failed.")


def repository(store: Store | None = None) -> Repository:
    return Repository(store or MemoryStore(), KEYS)


def save_bytes(
    repo: Repository,
    data: bytes,
    backup_id: str,
    parent_id: str | None = None,
    *,
    volume_id: str = "volume",
    holes: bool = False,
    geometry: Geometry = SMALL,
    concurrency: int = 1,
    pending_deletion: tuple[str, ...] = (),
    compression: Compression = Compression.ZSTD,
    changed: Sequence[tuple[int, int]] | None = None,
    internal: bool = False,
    like: tuple[str, ...] = (),
    consistency_group: str | None = None,
) -> Root:
    return save(
        repo,
        MemorySource(data, holes, geometry.chunk),
        Backup(
            backup_id,
            volume_id,
            "2026-11-23T00:00:00Z",
            parent_id,
            pending_deletion=pending_deletion,
            changed=changed,
            geometry=geometry,
            internal=internal,
            like=like,
            consistency_group=consistency_group,
        ),
        concurrency=concurrency,
        compression=compression,
    )


def load_chunk(repo: Repository, entry: Entry, length: int, geometry: Geometry) -> bytes:
    """All of a chunk."""
    return bytes(load_range(repo, entry, length, geometry, range(-(-length // geometry.block))))


def load_bytes(repo: Repository, backup_id: str) -> bytes:
    """The content of a backup, read chunk by chunk."""
    root = repo.load_root(backup_id)
    parts: list[bytes] = []
    for chunks, ref in repo.segments_of(root):
        entries = repo.load_segment(ref, len(chunks)) if ref else [None] * len(chunks)
        for chunk, entry in zip(chunks, entries, strict=True):
            length = root.geometry.chunk_length(chunk, root.size_bytes)
            parts.append(
                bytes(length) if entry is None else load_chunk(repo, entry, length, root.geometry)
            )
    return b"".join(parts)


def block(number: int, length: int = SMALL.block) -> bytes:
    """A block of its own, which shrinks well."""
    return bytes([number]) * length


def build_patched(repo: Repository) -> bytes:
    """Write, by hand, the backup ``patched`` as later writers will; its content.

    Its chunks: one with pieces of two patches and a block of zeros over a base,
    one with a piece over zeros, a whole one, zeros, and a short last one with a
    patched tail.
    """
    token = b"\x01\x02\x03\x04\x05\x06\x07\x08"
    keys_ = repo.keys

    def put(kind: ObjectKind, data: bytes) -> Ref:
        view = memoryview(data)
        hashes = blocks.hash_blocks(view, SMALL.block, keys_)
        ref = Ref(blocks.content_hash(hashes, keys_), token)
        name = ref.name(Kind.CHUNK if kind is ObjectKind.CHUNK else Kind.PATCH)
        parts = blocks.encode(kind, ref, view, hashes, SMALL.block, Compression.ZSTD, keys_)
        repo.store.put(name, *parts)
        return ref

    def digest(data: bytes) -> bytes:
        hashes = blocks.hash_blocks(memoryview(data), SMALL.block, keys_)
        return blocks.content_hash(hashes, keys_)

    base = b"".join(map(block, (1, 2, 3, 4)))
    first = put(ObjectKind.PATCH, b"".join(map(block, (11, 12, 13, 14, 15))))
    second = put(ObjectKind.PATCH, block(21) + block(22, 10))
    chunks = [
        bytes(64) + block(12) + block(13) + block(21),
        bytes(128) + block(15) + bytes(64),
        base,
        bytes(256),
        block(1) + block(22, 10),
    ]
    whole = put(ObjectKind.CHUNK, base)
    short = put(ObjectKind.CHUNK, block(1) + block(9, 10))
    entries: list[Entry] = [
        Patched(
            digest(chunks[0]),
            whole,
            (Piece(0, 1, None, 0), Piece(1, 2, first, 1), Piece(3, 1, second, 0)),
        ),
        Patched(digest(chunks[1]), None, (Piece(2, 1, first, 4),)),
        whole,
        None,
    ]
    tail: list[Entry] = [Patched(digest(chunks[4]), short, (Piece(1, 1, second, 1),))]
    refs = []
    for part in (entries, tail):
        ref, raw = segments.encode(part, token, keys_)
        refs.append(ref)
        repo.store.put(ref.name(Kind.SEGMENT), raw)
    data = b"".join(chunks)
    root = Root(
        backup_id="patched",
        volume_id="volume",
        parent_id="base",
        size_bytes=len(data),
        created_at="2026-11-23T12:00:00Z",
        geometry=SMALL,
        segments=tuple(refs),
        key_id=keys_.id,
        consistency_group="group",
        statistics=Statistics(1, 2, 3, 4, 5, 0.5),
    )
    repo.store_root(root)
    return data
