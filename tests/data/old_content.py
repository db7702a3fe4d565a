"""What volumes hold, and the digest of that."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

BLOCK = 4096


class Content:
    """The blocks of a volume that are not zeros."""

    def __init__(self, blocks: dict[int, bytes] | None = None) -> None:
        self.blocks = dict(blocks or {})
        self._changes = 0

    def copy(self) -> Content:
        """The same as it is now."""
        return Content(self.blocks)

    def change(self, seed: str, place: int, length: int = 2 * BLOCK) -> bytes:
        """Put new bytes at `place`: the half of them can be compressed."""
        self._changes += 1
        draw = random.Random(f"{seed} {place} {self._changes}")
        data = b"".join(
            draw.randbytes(BLOCK) if number % 2 else draw.randbytes(BLOCK // 16) * 16
            for number in range(length // BLOCK)
        )
        self.put(place, data)
        return data

    def put(self, place: int, data: bytes) -> None:
        """Put `data` at `place`; both are whole blocks."""
        for start in range(0, len(data), BLOCK):
            self.blocks[place + start] = data[start : start + BLOCK]

    def digest(self) -> str:
        """The same for equal bytes, whatever the size of the volume."""
        return _digest(sorted(self.blocks.items()))


def digest_of(path: Path) -> str:
    """The digest of the bytes of a file; its holes are not read."""
    with path.open("rb") as file:
        return _digest(_blocks(file.fileno()))


def _digest(blocks: Iterator[tuple[int, bytes]] | list[tuple[int, bytes]]) -> str:
    total = hashlib.sha256()
    for place, block in blocks:
        if block.strip(b"\0"):
            total.update(b"%d\n" % place + block)
    return total.hexdigest()


def _blocks(file: int) -> Iterator[tuple[int, bytes]]:
    """The blocks of a file that are no hole, in order."""
    size = os.fstat(file).st_size
    at = 0
    while at < size:
        try:
            at = os.lseek(file, at, os.SEEK_DATA) // BLOCK * BLOCK
        except OSError:  # nothing but a hole follows
            return
        end = min(size, -(-os.lseek(file, at, os.SEEK_HOLE) // BLOCK) * BLOCK)
        while at < end:
            part = os.pread(file, min(1 << 20, end - at), at)
            for start in range(0, len(part), BLOCK):
                yield at + start, part[start : start + BLOCK].ljust(BLOCK, b"\0")
            at += len(part)
