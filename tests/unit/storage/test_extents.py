"""What a save is told of a snapshot stays short, and is as exact as that allows."""

from __future__ import annotations

from lunr.common.extents import Extent, cover
from lunr.storage.jobs.backups import BLOCK, CHUNK, MOST_ALLOCATED, MOST_CHANGED
from tests.support.thorough import examples


def test_a_large_volume_with_a_hole_in_every_other_chunk_makes_a_short_list() -> None:
    chunks = examples(1 << 18, 1 << 20)  # of 1 TiB, or 4
    every_other = (Extent(at * CHUNK, at * CHUNK + 1) for at in range(0, chunks, 2))
    short = cover(every_other, MOST_ALLOCATED, chunks * CHUNK, CHUNK)
    assert 1 <= len(short) <= MOST_ALLOCATED
    assert (short[0].start, short[-1].end) == (0, chunks * CHUNK)


def test_a_hundredth_of_a_large_volume_is_told_to_the_block() -> None:
    blocks = examples(1 << 22, 1 << 25)  # of 128 GiB, or 1 TiB
    every_hundredth = [Extent(at * BLOCK, (at + 1) * BLOCK) for at in range(0, blocks, 100)]
    most = MOST_CHANGED * blocks >> 25
    assert cover(every_hundredth, most, blocks * BLOCK, BLOCK) == every_hundredth
