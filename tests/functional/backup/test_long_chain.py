"""What a long chain of incremental backups costs at most, whatever is written.

With small blocks: what is counted as stored are the blocks in chunks and patches, without
their indexes and without segments, which are small only beside blocks of a real size
(tools/bench chains has these).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lunr.backup.format import blocks
from lunr.backup.format.names import Buffer, Geometry
from lunr.backup.read.restore import restore
from lunr.backup.repository.collect import collect, sweep
from lunr.backup.repository.repository import Repository
from lunr.backup.stores.base import AT_ONCE, Slot
from lunr.backup.stores.memory import MemoryStore
from tests.support.thorough import examples
from tests.unit.backup.support import KEYS, save_bytes

#: As in life 128 blocks a chunk, but small ones.
GEOMETRY = Geometry(block=1024, chunk=128 << 10, segment_chunks=64)
CHUNKS = 64
BLOCKS = CHUNKS * 128
SIZE = CHUNKS * GEOMETRY.chunk

BLOCKS_OF = ("chunks/", "patches/")

#: Gives the blocks that are written before each backup.
Pattern = Callable[[random.Random], Iterator[set[int]]]


class Counting(MemoryStore):
    """A store that counts the requests for chunks and patches, and their bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.written = self.gets = self.read = 0

    def put(self, name: str, *buffers: Buffer, durable: bool = False, slot: Slot = AT_ONCE) -> None:
        super().put(name, *buffers, durable=durable, slot=slot)
        if name.startswith(BLOCKS_OF):
            self.written += blocks.HEADER.unpack_from(b"".join(buffers))[7]  # plain bytes

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Buffer:
        data = super().get(name, offset, length)
        if name.startswith(BLOCKS_OF):
            self.gets += 1
            self.read += len(data)
        return data


def uniform(share: float) -> Pattern:
    def pattern(chance: random.Random) -> Iterator[set[int]]:
        while True:
            yield set(chance.sample(range(BLOCKS), max(1, int(BLOCKS * share))))

    return pattern


def hot_and_cold(chance: random.Random) -> Iterator[set[int]]:
    """Each backup has the same hot blocks and a few that are never written again."""
    hot = set(chance.sample(range(BLOCKS), 60))
    cold = chance.sample(range(BLOCKS), BLOCKS)
    while True:
        yield hot | {cold.pop() for _ in range(min(10, len(cold)))}


def database(chance: random.Random) -> Iterator[set[int]]:
    """Half of the writes to a twentieth of it, a quarter anywhere, a quarter is a log."""
    end = 0
    while True:
        log = {(BLOCKS // 2 + end + number) % BLOCKS for number in range(20)}
        end += 20
        hot = {chance.randrange(BLOCKS // 20) for _ in range(40)}
        yield log | hot | {chance.randrange(BLOCKS) for _ in range(20)}


def write(volume: bytearray, numbers: set[int], chance: random.Random) -> list[tuple[int, int]]:
    """New bytes for some blocks of `volume`; where they are."""
    ranges = []
    for block in sorted(numbers):
        start, end = block * GEOMETRY.block, (block + 1) * GEOMETRY.block
        volume[start:end] = chance.randbytes(GEOMETRY.block)
        ranges.append((start, end))
    return ranges


@pytest.mark.parametrize(
    ("pattern", "saves", "most_stored"),
    [
        (uniform(0.01), examples(120, 500), 2.5),
        (uniform(0.0005), examples(60, 200), 2.5),
        (hot_and_cold, examples(50, 200), 1.5),
        (database, examples(60, 200), 2.5),
    ],
    ids=["uniform", "few", "hot and cold", "database"],
)
def test_a_long_chain_is_stored_and_restored_cheaply(
    pattern: Pattern, saves: int, most_stored: float, tmp_path: Path
) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    store = Counting()
    repo = Repository(store, KEYS)
    volume = bytearray(chance.randbytes(SIZE))
    save_bytes(repo, bytes(volume), "b0", geometry=GEOMETRY)
    full = store.written
    assert full == SIZE
    changed = 0
    todo = pattern(chance)
    for number in range(1, saves + 1):
        ranges = write(volume, next(todo), chance)
        changed += len(ranges) * GEOMETRY.block
        save_bytes(
            repo,
            bytes(volume),
            f"b{number}",
            f"b{number - 1}",
            geometry=GEOMETRY,
            changed=ranges if number % 5 else None,
        )
    assert store.written - full <= most_stored * changed

    store.gets = store.read = 0
    restore(repo, f"b{saves}", tmp_path / "last", create=True)
    assert (tmp_path / "last").read_bytes() == volume
    assert store.read <= 2 * full
    assert store.gets <= 3 * CHUNKS

    for number in range(saves):
        repo.delete_root(f"b{number}")
    found = collect(repo)
    assert found.collection is not None
    sweep(repo, found.collection)
    held = sum(size for name, size in store.list() if name.startswith(BLOCKS_OF))
    assert held <= 2 * full  # with their indexes, too
    restore(repo, f"b{saves}", tmp_path / "last")
    assert (tmp_path / "last").read_bytes() == volume
    print(f"stored {(store.written - full) / changed:.2f}x, held {held / full:.2f}x")
