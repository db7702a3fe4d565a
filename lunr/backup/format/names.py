"""The names of objects, and the sizes of blocks, chunks and segments."""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from lunr.common.units import KIB, MIB

VERSION = 1
HASH_SIZE = 32
TOKEN_SIZE = 8

#: Bytes, wherever they are.
Buffer = bytes | bytearray | memoryview | mmap.mmap


class Kind(StrEnum):
    """The first part of an object's name."""

    CHUNK = "chunks"
    PATCH = "patches"
    SEGMENT = "segments"
    ROOT = "roots"
    SESSION = "sessions"
    CONDEMNED = "condemned"
    BAD = "bad"


class Ref(NamedTuple):
    """One chunk, patch or segment object: the hash of its content and the writer's token.

    The token is that of the writer session. With it no name is ever used twice: a sweep that
    stalls between its decision and the deletion can't delete a younger object with the same
    content.
    """

    hash: bytes
    token: bytes

    def name(self, kind: Kind) -> str:
        """``<kind>/<first byte>/<hash>.<token>``, all in hexadecimal."""
        digits = self.hash.hex()
        return f"{kind}/{digits[:2]}/{digits}.{self.token.hex()}"

    def short(self) -> str:
        """``<hash>.<token>``: how a root names its segments."""
        return f"{self.hash.hex()}.{self.token.hex()}"


_SHORT = re.compile(r"([0-9a-f]{64})\.([0-9a-f]{16})")


def parse_short(text: str) -> Ref:
    """The inverse of :meth:`Ref.short`; ValueError if `text` has another form."""
    match = _SHORT.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not <hash>.<token>")
    return Ref(bytes.fromhex(match[1]), bytes.fromhex(match[2]))


def token_of(name: str) -> bytes | None:
    """The token in the name of an object; None: the name has none."""
    match = _SHORT.fullmatch(name.rpartition("/")[2])
    return bytes.fromhex(match[2]) if match else None


_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)


def is_name(text: object) -> bool:
    """Whether `text` may be the name of an object, a path below the store's folder.

    No part of it is empty or begins with a dot: it can't lead out of the folder.
    """
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def root_name(backup_id: str) -> str:
    """The name of the root of a backup."""
    return f"{Kind.ROOT}/{backup_id}"


def session_name(token: bytes) -> str:
    """The name of a writer session."""
    return f"{Kind.SESSION}/{token.hex()}"


def condemned_name(collection: str) -> str:
    """The name of a list of objects pending deletion."""
    return f"{Kind.CONDEMNED}/{collection}"


@dataclass(frozen=True)
class Geometry:
    """The sizes of a backup's parts: bytes of a block and a chunk, chunks of a segment."""

    block: int = 32 * KIB
    chunk: int = 4 * MIB
    segment_chunks: int = 1024

    def __post_init__(self) -> None:
        if not (0 < self.block <= self.chunk <= 64 * MIB and self.chunk % self.block == 0):
            raise ValueError(f"chunks of {self.chunk} bytes can't be cut into {self.block}")
        if not 0 < self.segment_chunks <= 65536:
            raise ValueError(f"a segment can't have {self.segment_chunks} chunks")

    def chunks(self, size: int) -> int:
        """How many chunks `size` bytes have; the last may be short."""
        return -(-size // self.chunk)

    def segments(self, size: int) -> int:
        """How many segments `size` bytes have."""
        return -(-self.chunks(size) // self.segment_chunks)

    def chunk_length(self, index: int, size: int) -> int:
        """The bytes of chunk `index` of a volume of `size` bytes."""
        return min(self.chunk, size - index * self.chunk)

    def chunks_in(self, segment: int, size: int) -> range:
        """The indexes of the chunks of `segment`."""
        first = segment * self.segment_chunks
        return range(first, min(first + self.segment_chunks, self.chunks(size)))
