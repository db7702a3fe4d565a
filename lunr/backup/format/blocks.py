"""Chunk and patch objects: a header, an index, then one frame a block.

A chunk is known by its *content hash*: the keyed hash of the hashes of its
blocks. So the index of an object can be checked against the object's name, and any
range of blocks can be fetched and checked alone. When one block of a chunk has changed,
the parent's index and that block give the chunk's new hash, without its other bytes.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate

import zstandard
from blake3 import blake3

from lunr.backup import errors
from lunr.backup.format.cipher import INDEX, TAG_SIZE, ObjectCipher
from lunr.backup.format.names import HASH_SIZE, VERSION, Buffer, Ref
from lunr.backup.keys.derive import Cipher, Keys

MAGIC = b"LUNR"
#: magic, version, kind, cipher, compression, block size, blocks, plain size,
#: index length, reserved (zero)
HEADER = struct.Struct("<4sBBBBIIIII")
ENTRY_SIZE = HASH_SIZE + 4
#: Set in an entry's frame length when the frame is compressed.
COMPRESSED = 1 << 31
#: The largest plain size; a header with a larger one is refused before memory is allocated.
MAX_PLAIN = 1 << 28


class ObjectKind(IntEnum):
    """The content of an object: all of one chunk, or changed blocks of many."""

    CHUNK = 1
    PATCH = 2


class Compression(IntEnum):
    """The algorithm of the frames that are marked as compressed."""

    NONE = 0
    ZSTD = 1


@dataclass(frozen=True, slots=True)
class Index:
    """The header and index of an object, checked against the object's hash."""

    kind: ObjectKind
    block_size: int
    plain_size: int
    hashes: Sequence[bytes]
    #: ends[i], ends[i+1]: where frame i begins and ends in the object.
    ends: Sequence[int]
    compressed: Sequence[bool]
    #: Decrypts the frames; None: they are not encrypted.
    cipher: ObjectCipher | None

    def block_length(self, block: int) -> int:
        """The plain bytes of a block; the last may be short."""
        return min(self.block_size, self.plain_size - block * self.block_size)


_local = threading.local()  # zstandard's contexts are not for two threads at once


def compressor() -> zstandard.ZstdCompressor:
    """This thread's compressor: level 1, which is faster than any disk."""
    try:
        return _local.compressor  # type: ignore[no-any-return]
    except AttributeError:
        _local.compressor = zstandard.ZstdCompressor(level=1, write_checksum=False)
        return _local.compressor  # type: ignore[no-any-return]


def decompressor() -> zstandard.ZstdDecompressor:
    """This thread's decompressor."""
    try:
        return _local.decompressor  # type: ignore[no-any-return]
    except AttributeError:
        _local.decompressor = zstandard.ZstdDecompressor()
        return _local.decompressor  # type: ignore[no-any-return]


def hash_blocks(data: memoryview, block_size: int, keys: Keys) -> list[bytes]:
    """The hash of each block of `data`."""
    key = keys.block
    return [
        blake3(data[start : start + block_size], key=key).digest()
        for start in range(0, len(data), block_size)
    ]


def content_hash(hashes: Sequence[bytes], keys: Keys) -> bytes:
    """The hash of a chunk (or patch) with these blocks."""
    return blake3(b"".join(hashes), key=keys.chunk).digest()


def encode(
    kind: ObjectKind,
    ref: Ref,
    data: memoryview,
    hashes: Sequence[bytes],
    block_size: int,
    compression: Compression,
    keys: Keys,
) -> list[Buffer]:
    """The object `ref` that holds `data`, as the buffers to write one after the other.

    Args:
        kind: chunk or patch.
        ref: the content hash of `data`, and the token of the writer session.
        data: the plain bytes. The result may refer to them: they must not change.
        hashes: of its blocks, as :func:`hash_blocks` gives them.
        block_size: bytes of a block.
        compression: blocks that do not shrink are stored as they are.
        keys: the repository's; they say whether it is encrypted.
    """
    frames, marks = _frames(data, block_size, compression)
    tag = TAG_SIZE if keys.writes is Cipher.AES_256_GCM else 0
    header = HEADER.pack(
        MAGIC,
        VERSION,
        kind,
        keys.writes,
        compression,
        block_size,
        len(hashes),
        len(data),
        len(hashes) * ENTRY_SIZE + tag,
        0,
    )
    index = b"".join(
        digest + (len(frame) + tag | mark).to_bytes(4, "little")
        for digest, frame, mark in zip(hashes, frames, marks, strict=True)
    )
    if tag:
        return [header, _encrypted(ObjectCipher(header, ref, keys), index, frames)]
    if not any(marks):
        frames = [data]  # all at once: one buffer to write instead of many
    return [header, index, *frames]


def _encrypted(cipher: ObjectCipher, index: bytes, frames: Sequence[Buffer]) -> Buffer:
    out = memoryview(bytearray(len(index) + sum(map(len, frames)) + TAG_SIZE * (1 + len(frames))))
    at = len(index) + TAG_SIZE
    cipher.encrypt(INDEX, index, out[:at])
    for number, frame in enumerate(frames):
        end = at + len(frame) + TAG_SIZE
        cipher.encrypt(number, frame, out[at:end])
        at = end
    return out


def _frames(
    data: memoryview, block_size: int, compression: Compression
) -> tuple[list[Buffer], list[int]]:
    """The frame of each block before encryption, and its mark in the index."""
    starts = range(0, len(data), block_size)
    frames: list[Buffer] = [data[start : start + block_size] for start in starts]
    marks = [0] * len(frames)
    if compression is Compression.ZSTD and _shrinks(data, starts, block_size):
        compress = compressor().compress
        for number, start in enumerate(starts):
            frame = compress(data[start : start + block_size])
            if len(frame) < len(frames[number]):
                frames[number] = frame
                marks[number] = COMPRESSED
    return frames, marks


def _shrinks(data: memoryview, starts: Sequence[int], block_size: int) -> bool:
    # Eight blocks are a good enough sample: media, archives and encrypted file systems
    # do not shrink anywhere.
    compress = compressor().compress
    for start in starts[:: max(1, len(starts) // 8)]:
        block = data[start : start + block_size]
        if len(compress(block)) < len(block) - len(block) // 16:
            return True
    return False


def index_size(blocks: int) -> int:
    """The most bytes that header and index of `blocks` blocks take."""
    return HEADER.size + blocks * ENTRY_SIZE + TAG_SIZE


def read_header(raw: Buffer, name: str) -> int:
    """Check the header in `raw` and return how many bytes header and index take.

    Raises:
        errors.UnsupportedFormat: this reader does not know version, kind, cipher or compression.
        errors.CorruptObject: the header makes no sense.
    """
    if len(memoryview(raw)) < HEADER.size:
        raise errors.CorruptObject(name=name, reason="it is shorter than its header.")
    magic, version, kind, cipher, compression, block_size, blocks, plain, index, reserved = (
        HEADER.unpack_from(raw)
    )
    if magic != MAGIC:
        raise errors.CorruptObject(name=name, reason="it does not begin like a chunk or patch.")
    if version != VERSION:
        raise errors.UnsupportedFormat(name=name, reason=f"format version {version}.")
    if cipher not in tuple(Cipher):
        raise errors.UnsupportedFormat(name=name, reason=f"cipher {cipher}.")
    if kind not in tuple(ObjectKind) or compression not in tuple(Compression) or reserved:
        raise errors.UnsupportedFormat(
            name=name, reason=f"kind {kind}, compression {compression}, reserved {reserved}."
        )
    if (
        not 0 < plain <= MAX_PLAIN
        or not block_size
        or blocks != -(-plain // block_size)
        or index != blocks * ENTRY_SIZE + (TAG_SIZE if cipher else 0)
    ):
        raise errors.CorruptObject(name=name, reason="the sizes in its header do not fit.")
    return int(HEADER.size + index)


def read_index(raw: Buffer, ref: Ref, name: str, keys: Keys) -> Index:
    """Header and index at the start of `raw`, checked against the hash in `ref`.

    Raises:
        errors.CorruptObject: they do not belong to the object `ref`, or make no sense.
        errors.UnsupportedFormat: see :func:`read_header`.
    """
    end = read_header(raw, name)
    view = memoryview(raw)
    if len(view) < end:
        raise errors.CorruptObject(name=name, reason="it ends within its index.")
    _, _, kind, encrypted, compression, block_size, blocks, plain, _, _ = HEADER.unpack_from(view)
    cipher = ObjectCipher(bytes(view[: HEADER.size]), ref, keys) if encrypted else None
    stored = view[HEADER.size : end]
    entries = bytes(stored if cipher is None else cipher.decrypt(INDEX, stored, name))
    hashes = [entries[start : start + HASH_SIZE] for start in range(0, len(entries), ENTRY_SIZE)]
    if content_hash(hashes, keys) != ref.hash:
        raise errors.CorruptObject(name=name, reason="its index does not match its name.")
    lengths = [
        int.from_bytes(entries[start + HASH_SIZE : start + ENTRY_SIZE], "little")
        for start in range(0, len(entries), ENTRY_SIZE)
    ]
    compressed = [bool(length & COMPRESSED) for length in lengths]
    if compression == Compression.NONE and any(compressed):
        raise errors.CorruptObject(
            name=name, reason="a frame is compressed, but its header says that none is."
        )
    ends = list(accumulate((length & ~COMPRESSED for length in lengths), initial=end))
    assert len(hashes) == blocks
    return Index(ObjectKind(kind), block_size, plain, hashes, ends, compressed, cipher)


def read_blocks(
    frames: Buffer, index: Index, first: int, count: int, name: str, keys: Keys
) -> Buffer:
    """The plain bytes of blocks `first` to `first + count`, every one checked.

    Args:
        frames: exactly the bytes ``index.ends[first]`` to ``index.ends[first + count]``.
        index: the object's.
        first: the first block to read.
        count: how many.
        name: the object's, for the error.
        keys: the repository's.

    Raises:
        errors.CorruptObject: a block does not match its hash.
    """
    view = memoryview(frames)
    base = index.ends[first]
    blocks = range(first, first + count)
    if len(view) != index.ends[first + count] - base:
        raise errors.CorruptObject(
            name=name,
            reason=f"it has {len(view)} bytes of frames where its index says "
            f"{index.ends[first + count] - base}.",
        )
    if index.cipher is None and not any(index.compressed[first : first + count]):
        out = view
    else:
        out = memoryview(bytearray(sum(map(index.block_length, blocks))))
    at = 0
    key = keys.block
    for block in blocks:
        frame = view[index.ends[block] - base : index.ends[block + 1] - base]
        length = index.block_length(block)
        plain = out[at : at + length]
        at += length
        if index.compressed[block]:
            if index.cipher is not None:
                frame = index.cipher.decrypt(block, frame, name)
            plain[:] = _decompress(frame, length, block, name)
        elif index.cipher is not None:
            index.cipher.decrypt(block, frame, name, plain)
        elif len(frame) != length:
            raise errors.CorruptObject(name=name, reason=f"block {block} has the wrong length.")
        elif out is not view:
            plain[:] = frame
        if blake3(plain, key=key).digest() != index.hashes[block]:
            raise errors.CorruptObject(
                name=name, reason=f"the bytes of block {block} do not match their hash."
            )
    return out


def _decompress(frame: memoryview, length: int, block: int, name: str) -> bytes:
    try:
        # Check first: the library would allocate whatever a forged frame claims.
        if zstandard.frame_content_size(frame) != length:
            raise errors.CorruptObject(name=name, reason=f"block {block} has the wrong length.")
        return decompressor().decompress(frame, max_output_size=length)
    except zstandard.ZstdError as error:
        raise errors.CorruptObject(name=name, reason=f"block {block}: {error}.") from error
