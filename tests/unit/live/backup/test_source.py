"""Lists of ranges: what is kept short may grow, and never loses a byte."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from lunr.live.backup.source import bounded, joined, union

numbers = st.sets(st.integers(0, 200))


def runs(blocks: set[int]) -> list[tuple[int, int]]:
    return [(block << 15, (block + 1) << 15) for block in sorted(blocks)]


def covered(ranges: list[tuple[int, int]]) -> set[int]:
    return {block for start, end in ranges for block in range(start >> 15, end >> 15)}


@given(numbers)
def test_neighbours_become_one(blocks: set[int]) -> None:
    found = list(joined(runs(blocks)))
    assert covered(found) == blocks
    assert all(one[1] < other[0] for one, other in itertools.pairwise(found))


@given(numbers, st.integers(1, 20))
def test_a_short_list_covers_all(blocks: set[int], most: int) -> None:
    found = bounded(runs(blocks), most)
    assert len(found) <= most
    assert covered(found) >= blocks
    if len(list(joined(runs(blocks)))) <= most:
        assert covered(found) == blocks


@given(numbers, numbers)
def test_a_union_is_both(one: set[int], other: set[int]) -> None:
    assert covered(union(runs(one), runs(other))) == one | other


def test_a_range_within_another_does_not_shorten_it() -> None:
    assert union([(0, 100)], [(10, 20), (90, 120)]) == [(0, 120)]
