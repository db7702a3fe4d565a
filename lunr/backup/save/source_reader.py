"""Reads the source of a save by chunks and blocks. Any thread may read."""

from __future__ import annotations

import mmap
import threading

from lunr.backup.format import blocks
from lunr.backup.format.names import Geometry
from lunr.backup.repository.repository import Repository
from lunr.backup.save.block_source import Source
from lunr.backup.save.patch_packer import PendingBlock

_ZEROS = bytes(64 << 10)


class Input:
    """The source of one save.

    Attributes:
        bytes_read: so far.
    """

    def __init__(self, repository: Repository, source: Source, geometry: Geometry) -> None:
        """Read `source`; `repository` has the key of the hashes, `geometry` the sizes."""
        self.bytes_read = 0
        self._repository = repository
        self._source = source
        self._geometry = geometry
        self._lock = threading.Lock()
        self._local = threading.local()

    def read(self, offset: int, length: int) -> memoryview:
        """Bytes of the source; valid until this thread reads again."""
        buffer: mmap.mmap | None = getattr(self._local, "buffer", None)
        if buffer is None:  # aligned to a page: a read past the page cache needs that
            buffer = self._local.buffer = mmap.mmap(-1, self._geometry.chunk)
        data = self._source.read(buffer, offset, length)
        with self._lock:
            self.bytes_read += length
        return data

    def block(self, chunk: int, block: int) -> PendingBlock | None:
        """A block of a chunk, or None if it is zeros."""
        geometry = self._geometry
        offset = block * geometry.block
        length = min(geometry.block, geometry.chunk_length(chunk, self._source.size) - offset)
        data = self.read(chunk * geometry.chunk + offset, length)
        (digest,) = blocks.hash_blocks(data, geometry.block, self._repository.keys)
        if self.is_hash_of_zeros(digest):
            return None
        return PendingBlock(chunk, block, digest, bytes(data))

    def is_hash_of_zeros(self, digest: bytes) -> bool:
        """Whether `digest` is the hash of a block of zeros, also of the short last one."""
        tail = self._source.size % self._geometry.block
        lengths = (self._geometry.block, tail) if tail else (self._geometry.block,)
        return any(digest == self._repository.zero_hash(length) for length in lengths)


def is_zero(data: memoryview) -> bool:
    """Whether `data` is all zeros."""
    # Comparing bytes is memcmp; comparing memoryviews is a hundred times slower.
    step = len(_ZEROS)
    for start in range(0, len(data), step):
        piece = bytes(data[start : start + step])
        if piece != _ZEROS[: len(piece)]:
            return False
    return True
