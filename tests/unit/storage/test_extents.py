"""Lists of extents that stay short and leave nothing out."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from lunr.storage.jobs.extents import MOST, coalesce
from lunr.storage.pools.base import Extent

MIB = 1 << 20
UNIT = 4 * MIB


@st.composite
def in_order(draw: st.DrawFn) -> list[Extent]:
    edges = sorted(draw(st.sets(st.integers(0, 200 * MIB), max_size=60)))
    return [Extent(*pair) for pair in zip(edges[::2], edges[1::2], strict=False)]


@given(in_order(), st.integers(0, 220 * MIB), st.integers(1, 8))
def test_all_that_is_allocated_is_in_few_extents(
    extents: list[Extent], size: int, most: int
) -> None:
    short = coalesce(extents, size, most)
    assert len(short) <= most
    for one, following in itertools.pairwise(short):
        assert one.end < following.start
    for one in short:
        assert one.start % UNIT == 0
        assert one.start < one.end <= size
        assert one.end % UNIT == 0 or one.end == size
    for extent in extents:
        if extent.start < size:
            end = min(extent.end, size)
            assert any(one.start <= extent.start and end <= one.end for one in short)


@given(in_order())
def test_with_room_for_them_nothing_is_told_that_has_no_part_in_it(extents: list[Extent]) -> None:
    size = 200 * MIB
    told = {
        at for one in coalesce(extents, size) for at in range(one.start // UNIT, one.end // UNIT)
    }
    assert told == {
        at for one in extents for at in range(one.start // UNIT, (one.end - 1) // UNIT + 1)
    }


def test_a_large_volume_with_a_hole_in_every_other_chunk_makes_a_short_list() -> None:
    chunks = 1 << 20  # 4 TiB
    every_other = (Extent(at * UNIT, at * UNIT + 1) for at in range(0, chunks, 2))
    short = coalesce(every_other, chunks * UNIT)
    assert 1 <= len(short) <= MOST
    assert (short[0].start, short[-1].end) == (0, chunks * UNIT)
