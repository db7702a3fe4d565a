"""Lists of extents that stay short and leave nothing out."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from lunr.storage.jobs.extents import BLOCK, CHUNK, MOST_ALLOCATED, MOST_CHANGED, coalesce
from lunr.storage.pools.base import Extent
from tests.support.thorough import examples

MIB = 1 << 20
UNITS = st.sampled_from([BLOCK, CHUNK])


@st.composite
def in_order(draw: st.DrawFn) -> list[Extent]:
    edges = sorted(draw(st.sets(st.integers(0, 200 * MIB), max_size=60)))
    return [Extent(*pair) for pair in zip(edges[::2], edges[1::2], strict=False)]


@given(in_order(), st.integers(0, 220 * MIB), UNITS, st.integers(1, 8))
def test_nothing_is_left_out_and_there_are_few_extents(
    extents: list[Extent], size: int, unit: int, most: int
) -> None:
    short = coalesce(extents, size, unit, most)
    assert len(short) <= most
    for one, following in itertools.pairwise(short):
        assert one.end < following.start
    for one in short:
        assert one.start % unit == 0
        assert one.start < one.end <= size
        assert one.end % unit == 0 or one.end == size
    for extent in extents:
        if extent.start < size:
            end = min(extent.end, size)
            assert any(one.start <= extent.start and end <= one.end for one in short)


@given(in_order(), UNITS)
def test_with_room_for_them_nothing_is_told_that_has_no_part_in_it(
    extents: list[Extent], unit: int
) -> None:
    short = coalesce(extents, 200 * MIB, unit, 1000)
    assert {at for one in short for at in range(one.start // unit, one.end // unit)} == {
        at for one in extents for at in range(one.start // unit, (one.end - 1) // unit + 1)
    }


def test_a_large_volume_with_a_hole_in_every_other_chunk_makes_a_short_list() -> None:
    chunks = examples(1 << 18, 1 << 20)  # of 1 TiB, or 4
    every_other = (Extent(at * CHUNK, at * CHUNK + 1) for at in range(0, chunks, 2))
    short = coalesce(every_other, chunks * CHUNK, CHUNK, MOST_ALLOCATED)
    assert 1 <= len(short) <= MOST_ALLOCATED
    assert (short[0].start, short[-1].end) == (0, chunks * CHUNK)


def test_a_hundredth_of_a_large_volume_is_told_to_the_block() -> None:
    blocks = examples(1 << 22, 1 << 25)  # of 128 GiB, or 1 TiB
    every_hundredth = [Extent(at * BLOCK, (at + 1) * BLOCK) for at in range(0, blocks, 100)]
    most = MOST_CHANGED * blocks >> 25
    assert coalesce(every_hundredth, blocks * BLOCK, BLOCK, most) == every_hundredth
