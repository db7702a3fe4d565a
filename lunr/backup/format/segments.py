"""Segments: the entries of the chunks of 4 GiB of a volume.

An entry is ``None`` for a chunk of zeros, a :class:`Ref` for a chunk object, or
a :class:`Patched` for a chunk that consists of a base and pieces of patch objects.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import zstandard
from blake3 import blake3

from lunr.backup import errors
from lunr.backup.format.blocks import compressor, decompressor
from lunr.backup.format.cipher import TAG_SIZE, ObjectCipher
from lunr.backup.format.names import HASH_SIZE, TOKEN_SIZE, VERSION, Buffer, Kind, Ref
from lunr.backup.keys.derive import Cipher, Keys

MAGIC = b"LSEG"
#: magic, version, compression (1: zstd), cipher, reserved (zero), plain bytes of the body
HEADER = struct.Struct("<4sBBBBI")
ZSTD = 1
MAX_BODY = 1 << 26

_COUNTS = struct.Struct("<IHH")  # chunks, tokens, patches
_REF = struct.Struct("<32sH")  # content hash, number of its token
_PIECE = struct.Struct("<HHHI")  # first block, blocks, number of its patch, first block there
_COUNT = struct.Struct("<H")

_ZERO, _WHOLE, _PATCHED_BASE, _PATCHED_ZERO = range(4)

#: In place of the number of a patch: the blocks are zeros.
_NO_PATCH = 0xFFFF

#: Where a block of a patched chunk is: a patch object and the block there; None: it is zeros.
Place = tuple[Ref, int] | None


class Piece(NamedTuple):
    """`blocks` blocks of a chunk from `first` on: those of `patch` from `first_in_patch` on.

    Without a `patch` they are zeros, and `first_in_patch` is 0.
    """

    first: int
    blocks: int
    patch: Ref | None
    first_in_patch: int


class Patched(NamedTuple):
    """A chunk whose blocks come from `base` (None: zeros), except for the `pieces`."""

    hash: bytes
    base: Ref | None
    pieces: tuple[Piece, ...]


Entry = Ref | Patched | None


def objects_of(*entries: Entry) -> Iterator[str]:
    """The names of the objects that these chunks need, each once."""
    objects: set[tuple[Kind, Ref]] = set()
    for entry in entries:
        if isinstance(entry, Ref):
            objects.add((Kind.CHUNK, entry))
        elif entry is not None:
            if entry.base is not None:
                objects.add((Kind.CHUNK, entry.base))
            objects.update((Kind.PATCH, piece.patch) for piece in entry.pieces if piece.patch)
    for kind, ref in objects:
        yield ref.name(kind)


def places_of(entry: Entry) -> dict[int, Place]:
    """The places of the blocks of a chunk that its base does not give, by their number in it."""
    places: dict[int, Place] = {}
    if isinstance(entry, Patched):
        for first, blocks, patch, start in entry.pieces:
            for number in range(blocks):
                places[first + number] = None if patch is None else (patch, start + number)
    return places


def pieces_of(places: Mapping[int, Place]) -> tuple[Piece, ...]:
    """The inverse of :func:`places_of`: blocks adjacent in chunk and patch are one piece."""
    pieces: list[Piece] = []
    for block in sorted(places):
        place = places[block]
        patch, start = (None, 0) if place is None else place
        if pieces:
            last = pieces[-1]
            follows = patch is None or start == last.first_in_patch + last.blocks
            if block == last.first + last.blocks and patch == last.patch and follows:
                pieces[-1] = last._replace(blocks=last.blocks + 1)
                continue
        pieces.append(Piece(block, 1, patch, start))
    return tuple(pieces)


def encode(entries: Sequence[Entry], token: bytes, keys: Keys) -> tuple[Ref, bytes]:
    """The name of a segment with these `entries`, and the object that holds it.

    `token` is that of the writer session.

    Raises:
        ValueError: more than 65535 sessions or patches in one segment.
    """
    body = _body(entries)
    ref = Ref(blake3(body, key=keys.segment).digest(), token)
    header = HEADER.pack(MAGIC, VERSION, ZSTD, keys.writes, 0, len(body))
    frame = compressor().compress(body)
    if keys.writes is Cipher.AES_256_GCM:
        out = memoryview(bytearray(len(frame) + TAG_SIZE))
        ObjectCipher(header, ref, keys).encrypt(0, frame, out)
        return ref, header + out
    return ref, header + frame


def _body(entries: Sequence[Entry]) -> bytes:
    tokens: dict[bytes, int] = {}
    patches: dict[Ref, int] = {}
    parts: list[bytes] = []

    def pack(ref: Ref) -> bytes:
        return _REF.pack(ref.hash, tokens.setdefault(ref.token, len(tokens)))

    for entry in entries:
        if entry is None:
            parts.append(bytes([_ZERO]))
        elif isinstance(entry, Ref):
            parts.append(bytes([_WHOLE]) + pack(entry))
        else:
            if entry.base is None:
                parts.append(bytes([_PATCHED_ZERO]) + entry.hash)
            else:
                parts.append(bytes([_PATCHED_BASE]) + entry.hash + pack(entry.base))
            parts.append(_COUNT.pack(len(entry.pieces)))
            for first, blocks, patch, start in entry.pieces:
                number = _NO_PATCH if patch is None else patches.setdefault(patch, len(patches))
                parts.append(_PIECE.pack(first, blocks, number, start))
    table = [pack(ref) for ref in patches]
    if len(tokens) > 0xFFFF or len(patches) > _NO_PATCH:
        raise ValueError("a segment can't name more than 65535 sessions or patches")
    return b"".join(
        [_COUNTS.pack(len(entries), len(tokens), len(patches)), *tokens, *table, *parts]
    )


def decode(raw: Buffer, ref: Ref, name: str, keys: Keys) -> list[Entry]:
    """The entries in the segment object `raw`, checked against the hash in `ref`.

    Raises:
        errors.CorruptObject: the bytes do not match the hash in `ref`.
        errors.UnsupportedFormat: another version or compression.
    """
    view = memoryview(raw)
    if len(view) < HEADER.size or bytes(view[:4]) != MAGIC:
        raise errors.CorruptObject(name=name, reason="it does not begin like a segment.")
    _, version, compression, cipher, reserved, length = HEADER.unpack_from(view)
    if version != VERSION or compression != ZSTD or cipher not in tuple(Cipher) or reserved:
        raise errors.UnsupportedFormat(
            name=name, reason=f"version {version}, compression {compression}, cipher {cipher}."
        )
    frame = view[HEADER.size :]
    if cipher == Cipher.AES_256_GCM:
        frame = ObjectCipher(bytes(view[: HEADER.size]), ref, keys).decrypt(0, frame, name)
    try:
        if length > MAX_BODY or zstandard.frame_content_size(frame) != length:
            raise errors.CorruptObject(name=name, reason="the length in its header does not fit.")
        body = decompressor().decompress(frame, max_output_size=length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise errors.CorruptObject(name=name, reason=f"{error}.") from error
    if blake3(body, key=keys.segment).digest() != ref.hash:
        raise errors.CorruptObject(name=name, reason="its content does not match its name.")
    try:
        return _entries(body)
    except (struct.error, IndexError) as error:  # a writer's mistake: the hash was right
        raise errors.CorruptObject(name=name, reason=f"it makes no sense: {error}.") from error


def _entries(body: bytes) -> list[Entry]:
    count, token_count, patch_count = _COUNTS.unpack_from(body)
    at = _COUNTS.size
    tokens = [body[at + i * TOKEN_SIZE : at + (i + 1) * TOKEN_SIZE] for i in range(token_count)]
    at += token_count * TOKEN_SIZE

    def ref(offset: int) -> Ref:
        digest, number = _REF.unpack_from(body, offset)
        return Ref(digest, tokens[number])

    patches = [ref(at + i * _REF.size) for i in range(patch_count)]
    at += patch_count * _REF.size
    entries: list[Entry] = []
    for _ in range(count):
        kind = body[at]
        at += 1
        if kind == _ZERO:
            entries.append(None)
        elif kind == _WHOLE:
            entries.append(ref(at))
            at += _REF.size
        elif kind in (_PATCHED_BASE, _PATCHED_ZERO):
            digest = body[at : at + HASH_SIZE]
            at += HASH_SIZE
            base = None
            if kind == _PATCHED_BASE:
                base = ref(at)
                at += _REF.size
            (pieces,) = _COUNT.unpack_from(body, at)
            at += _COUNT.size
            entries.append(Patched(digest, base, tuple(_pieces(body, at, pieces, patches))))
            at += pieces * _PIECE.size
        else:
            raise IndexError(f"kind of chunk {kind}")
    if at != len(body):
        raise IndexError(f"{len(body) - at} bytes too many")
    return entries


def _pieces(body: bytes, at: int, count: int, patches: Sequence[Ref]) -> Iterator[Piece]:
    raw = body[at : at + count * _PIECE.size]
    if len(raw) != count * _PIECE.size:
        raise IndexError("it ends within a chunk")
    for first, blocks, patch, start in _PIECE.iter_unpack(raw):
        yield Piece(first, blocks, None if patch == _NO_PATCH else patches[patch], start)
