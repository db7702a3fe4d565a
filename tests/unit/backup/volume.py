"""A volume of a few small chunks, that is written to and saved."""

from __future__ import annotations

import os

from lunr.backup.format.names import Geometry
from lunr.backup.format.segments import Entry, Patched
from lunr.backup.repository.repository import Repository
from lunr.backup.stores.memory import MemoryStore
from tests.unit.backup.support import load_bytes, repository, save_bytes

#: 16 blocks a chunk, four chunks a segment.
GEOMETRY = Geometry(block=64, chunk=1024, segment_chunks=4)
CHUNKS = 8


def entries_of(repo: Repository, backup_id: str) -> list[Entry]:
    root = repo.load_root(backup_id)
    found: list[Entry] = []
    for chunks, ref in repo.segments_of(root):
        found += repo.load_segment(ref, len(chunks)) if ref else [None] * len(chunks)
    return found


def entry_of(repo: Repository, backup_id: str, chunk: int) -> Patched:
    entry = entries_of(repo, backup_id)[chunk]
    assert isinstance(entry, Patched)
    return entry


class Volume:
    """A volume, and a repository with its full backup ``b0``."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.store = store or MemoryStore()
        self.repo = repository(self.store)
        self.data = bytearray(os.urandom(CHUNKS * GEOMETRY.chunk))
        self.count = -1
        self.save()

    def write(self, chunk: int, first: int, count: int = 1, zeros: bool = False) -> None:
        """New bytes for some blocks."""
        start = chunk * GEOMETRY.chunk + first * GEOMETRY.block
        length = count * GEOMETRY.block
        self.data[start : start + length] = bytes(length) if zeros else os.urandom(length)

    def save(self, changed: list[tuple[int, int]] | None = None, **options):  # type: ignore[no-untyped-def]
        parent = f"b{self.count}" if self.count >= 0 else None
        self.count += 1
        root = save_bytes(
            self.repo,
            bytes(self.data),
            f"b{self.count}",
            parent,
            geometry=GEOMETRY,
            changed=changed,
            **options,
        )
        assert load_bytes(self.repo, f"b{self.count}") == self.data
        return root.statistics

    def newest(self, chunk: int) -> Patched:
        return entry_of(self.repo, f"b{self.count}", chunk)
