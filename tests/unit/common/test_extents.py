"""Arithmetic of extents against sets of bytes, and lists that stay short and leave nothing out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunr.common import extents
from lunr.common.extents import Extent, Extents, clip, complement, cover, merge

MOST = 100
SIZES = st.integers(0, MOST + 10)
NUMBERS = st.sets(st.integers(0, MOST - 1))


@st.composite
def in_order(draw: st.DrawFn, edges: int = 24, scale: int = 1) -> list[Extent]:
    """Extents in order and apart; some touch."""
    places = draw(st.lists(st.integers(0, MOST * scale), max_size=edges).map(sorted))
    pairs = zip(places[::2], places[1::2], strict=False)
    return [Extent(start, end) for start, end in pairs if start < end]


@st.composite
def by_their_start(draw: st.DrawFn) -> list[Extent]:
    """Extents in order that may overlap."""
    pairs = st.tuples(st.integers(0, MOST), st.integers(1, 20))
    return [Extent(at, at + length) for at, length in sorted(draw(st.lists(pairs, max_size=12)))]


def bytes_of(extents: Iterable[tuple[int, int]]) -> set[int]:
    return {byte for start, end in extents for byte in range(start, end)}


def are_apart(extents: list[Extent]) -> bool:
    ends = itertools.pairwise(extents)
    return all(x.start < x.end for x in extents) and all(x.end < y.start for x, y in ends)


@given(st.lists(by_their_start(), min_size=1, max_size=3))
def test_merged_lists_are_all_of_them_with_gaps_between(lists: list[list[Extent]]) -> None:
    merged = list(merge(*lists))
    assert bytes_of(merged) == set().union(*map(bytes_of, lists))
    assert are_apart(merged)


@given(by_their_start(), SIZES)
def test_what_is_clipped_ends_at_the_size(extents: list[Extent], size: int) -> None:
    clipped = list(clip(extents, size))
    assert bytes_of(clipped) == bytes_of(extents) & set(range(size))
    assert all(extent.start < extent.end for extent in clipped)


@given(in_order(), SIZES)
def test_a_complement_is_the_rest(extents: list[Extent], size: int) -> None:
    rest = list(complement(extents, size))
    assert bytes_of(rest) == set(range(size)) - bytes_of(extents)
    assert are_apart(rest)


@given(in_order(), SIZES, SIZES)
def test_what_is_within_a_range(extents: list[Extent], start: int, end: int) -> None:
    kept = Extents(extents)
    assert (list(kept), len(kept)) == (extents, len(extents))
    assert bytes_of(kept.within(start, end)) == bytes_of(extents) & set(range(start, end))


@pytest.mark.parametrize("pairs", [[(5, 9), (0, 2)], [(4, 4)], [(0, 5), (3, 9)], [(-1, 3)]])
def test_what_is_out_of_order_is_refused(pairs: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="out of order"):
        Extents(pairs)


@given(NUMBERS)
def test_runs_are_of_neighbours(numbers: set[int]) -> None:
    runs = list(extents.runs(numbers))
    assert bytes_of(runs) == numbers
    assert are_apart(runs)


@given(NUMBERS, st.integers(0, 9))
def test_ones_of_a_number(numbers: set[int], at: int) -> None:
    runs = list(extents.ones(sum(1 << number for number in numbers), at))
    assert bytes_of(runs) == {at + number for number in numbers}
    assert are_apart(runs)


@given(st.lists(st.sampled_from([0, 0xFF, 0x0A, 1, 0x80]) | st.integers(0, 255)))
def test_ones_in_a_bitmap(values: list[int]) -> None:
    bitmap = bytes(values)
    expected = {at for at in range(8 * len(bitmap)) if bitmap[at >> 3] >> (at & 7) & 1}
    runs = list(extents.ones_in(bitmap))
    assert bytes_of(runs) == expected
    assert sum(run.end - run.start for run in runs) == len(expected)
    assert runs == sorted(runs)


def test_a_stream_is_not_read_ahead() -> None:
    """Of a thousand million extents no more than one is taken before the first is given."""
    taken = itertools.count()
    endless = ((2 * number, 2 * number + 1) for number in taken)
    stream = complement(merge(clip(endless, 1 << 60)), 1 << 60)
    assert [next(stream) for _ in range(3)] == [(1, 2), (3, 4), (5, 6)]
    assert next(taken) <= 6


@given(by_their_start(), st.integers(1, 8), SIZES, st.sampled_from([1, 2, 16]))
def test_a_short_list_leaves_nothing_out(
    extents: list[Extent], most: int, size: int, unit: int
) -> None:
    short = cover(extents, most, size, unit)
    assert len(short) <= most
    assert are_apart(short)
    assert bytes_of(short) >= bytes_of(extents) & set(range(size))
    assert all(x.start % unit == 0 and (x.end % unit == 0 or x.end == size) for x in short)
    assert all(x.end <= size for x in short)


@given(by_their_start(), SIZES, st.sampled_from([1, 2, 16]))
def test_with_room_for_them_nothing_is_told_that_has_no_part_in_it(
    extents: list[Extent], size: int, unit: int
) -> None:
    short = cover(extents, 1000, size, unit)
    touched = {byte // unit for byte in bytes_of(extents) if byte < size}
    assert bytes_of(short) == {byte for byte in range(size) if byte // unit in touched}


@given(in_order(edges=60, scale=1 << 20), st.integers(1, 8))
def test_extents_grow_no_more_than_they_must(extents: list[Extent], most: int) -> None:
    size = MOST << 20
    enough = (cover(extents, 1000, size, 32 << 10 << doublings) for doublings in range(13))
    short = cover(extents, most, size, 32 << 10)
    assert short == next(wanted for wanted in enough if len(wanted) <= most)
