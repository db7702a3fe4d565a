"""A store that answers with a small object that claims to be a large one gets no memory for it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator

import pytest
import zstandard

from lunr.backup import errors
from lunr.backup.format import blocks, segments
from lunr.backup.format.blocks import Compression, ObjectKind
from lunr.backup.format.names import Ref, condemned_name
from lunr.backup.keys.derive import Cipher
from lunr.backup.repository import pending_deletion
from tests.unit.backup.support import KEYS, SMALL, repository

#: More than any of them may take.
MOST = 4 << 20
#: The most that any of them may claim.
MOST_CLAIMED = max(segments.MAX_BODY, pending_deletion.MAX_SIZE)


def compress_zeros(size: int) -> bytes:
    """A frame of `size` zeros, in a few kilobytes."""
    stream = zstandard.ZstdCompressor(level=1).compressobj(size=size)
    zeros = bytes(1 << 20)
    return b"".join([*(stream.compress(zeros) for _ in range(size >> 20)), stream.flush()])


@pytest.fixture(scope="module")
def frame() -> bytes:
    """A frame of more than a chunk, a segment or a list may have."""
    return compress_zeros(MOST_CLAIMED + (1 << 20))


@pytest.fixture
def is_small() -> Iterator[Callable[[], bool]]:
    """A function that says whether little memory was taken since the test began."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1] < MOST
    tracemalloc.stop()


def test_a_block(frame: bytes, is_small: Callable[[], bool]) -> None:
    hashes = blocks.hash_blocks(memoryview(bytes(SMALL.block)), SMALL.block, KEYS)
    ref = Ref(blocks.content_hash(hashes, KEYS), bytes(8))
    sizes = (SMALL.block, 1, SMALL.block, blocks.ENTRY_SIZE, 0)
    raw = b"".join(
        [
            blocks.HEADER.pack(b"LUNR", 1, ObjectKind.CHUNK, Cipher.NONE, Compression.ZSTD, *sizes),
            hashes[0],
            (len(frame) | blocks.COMPRESSED).to_bytes(4, "little"),
        ]
    )
    index = blocks.read_index(raw, ref, "it", KEYS)
    with pytest.raises(errors.CorruptObject, match="wrong length"):
        blocks.read_blocks(frame, index, 0, 1, "it", KEYS)
    assert is_small()


def test_an_object() -> None:
    size = blocks.MAX_PLAIN + 1
    sizes = (size, 1, size, blocks.ENTRY_SIZE, 0)
    kinds = (1, ObjectKind.CHUNK, Cipher.NONE, Compression.ZSTD)
    with pytest.raises(errors.CorruptObject, match="sizes in its header"):
        blocks.read_header(blocks.HEADER.pack(b"LUNR", *kinds, *sizes), "it")


def test_a_segment(frame: bytes, is_small: Callable[[], bool]) -> None:
    size = zstandard.frame_content_size(frame)
    header = segments.HEADER.pack(segments.MAGIC, 1, segments.ZSTD, Cipher.NONE, 0, size)
    with pytest.raises(errors.CorruptObject, match="length in its header"):
        segments.decode(header + frame, Ref(bytes(32), bytes(8)), "it", KEYS)
    assert is_small()


def test_a_list_of_condemned_names(frame: bytes, is_small: Callable[[], bool]) -> None:
    repo = repository()
    repo.store.put(condemned_name("c1"), frame)
    with pytest.raises(errors.CorruptObject, match="too large"):
        pending_deletion.load(repo, "c1")
    assert is_small()
