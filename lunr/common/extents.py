"""Ranges of bytes.

A function from iterator to iterator holds at most one extent in memory.
"""

from __future__ import annotations

import heapq
import re
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

#: The smallest unit that extents are rounded to when a list gets too long.
_COARSE = 32 << 10
#: Bytes that are all ones, or have ones and zeros.
_ONES = re.compile(rb"\xff+|[^\x00]", re.DOTALL)


class Extent(NamedTuple):
    """The bytes from `start` up to, not including, `end`."""

    start: int
    end: int


class Extents:
    """Extents of a volume, in order and apart: 16 bytes of memory for each."""

    def __init__(self, extents: Iterable[Sequence[int]]) -> None:
        """Raise ValueError unless `extents` are pairs, in order and apart.

        In another order some extents would be overlooked.
        """
        self._starts, self._ends = array("Q"), array("Q")
        last = 0
        for start, end in extents:
            if not last <= start < end < 1 << 64:
                raise ValueError(f"the extent {start} to {end} is out of order")
            self._starts.append(start)
            self._ends.append(end)
            last = end

    def __iter__(self) -> Iterator[Extent]:
        return map(Extent, self._starts, self._ends)

    def __len__(self) -> int:
        return len(self._ends)

    def within(self, start: int, end: int) -> Iterator[Extent]:
        """The parts of them from `start` to `end`."""
        for number in range(bisect_right(self._ends, start), len(self._ends)):
            begin, stop = self._starts[number], self._ends[number]
            if begin >= end:
                return
            yield Extent(max(begin, start), min(stop, end))


def merge(*lists: Iterable[tuple[int, int]]) -> Iterator[Extent]:
    """The extents of all `lists`, each of which is in order; those that touch are joined."""
    run: Extent | None = None
    for start, end in heapq.merge(*lists) if len(lists) > 1 else lists[0]:
        if run is not None and start <= run.end:
            run = Extent(run.start, max(run.end, end))
            continue
        if run is not None:
            yield run
        run = Extent(start, end)
    if run is not None:
        yield run


def clip(extents: Iterable[tuple[int, int]], size: int) -> Iterator[Extent]:
    """The parts of `extents`, which are in order, in the first `size` bytes."""
    for start, end in extents:
        if start >= size:
            return
        if start < end:
            yield Extent(start, min(end, size))


def complement(extents: Iterable[tuple[int, int]], size: int) -> Iterator[Extent]:
    """The parts of the first `size` bytes outside of `extents`, which are in order and apart."""
    at = 0
    for start, end in clip(extents, size):
        if at < start:
            yield Extent(at, start)
        at = end
    if at < size:
        yield Extent(at, size)


def cover(
    extents: Iterable[tuple[int, int]], most: int, size: int = sys.maxsize, unit: int = 1
) -> list[Extent]:
    """At most `most` extents that cover `extents`; never twice as many are in memory.

    They begin and end at multiples of `unit`, or of a larger unit if there would be more than
    `most`.

    Args:
        extents: in order.
        most: 1 or more.
        size: bytes; parts beyond are left out.
        unit: bytes.
    """
    short: list[Extent] = []
    for extent in clip(extents, size):
        _append(short, extent, unit, size)
        while len(short) > most:
            unit = max(2 * unit, _COARSE)
            finer, short = short, []
            for finer_extent in finer:
                _append(short, finer_extent, unit, size)
    return short


def _append(short: list[Extent], extent: Extent, unit: int, size: int) -> None:
    """Add `extent`, extended to multiples of `unit`, to those that begin before it."""
    start, end = extent.start // unit * unit, min(-(-extent.end // unit) * unit, size)
    if short and start <= short[-1].end:
        short[-1] = Extent(short[-1].start, max(short[-1].end, end))
    else:
        short.append(Extent(start, end))


def runs(numbers: Iterable[int]) -> Iterator[Extent]:
    """The runs of neighbours in `numbers`."""
    return merge((number, number + 1) for number in sorted(numbers))


def ones(bits: int, at: int = 0) -> Iterator[Extent]:
    """The runs of ones in a number; the lowest bit counts as `at`."""
    while bits:
        zeros = (bits & -bits).bit_length() - 1
        bits >>= zeros
        at += zeros
        length = (~bits & (bits + 1)).bit_length() - 1
        yield Extent(at, at + length)
        bits >>= length
        at += length


def ones_in(bitmap: bytes | bytearray) -> Iterator[Extent]:
    """The runs of ones in `bitmap`, the lowest bit of a byte first; some may touch."""
    for run in _ONES.finditer(bitmap):
        byte = bitmap[run.start()]
        if byte == 0xFF:
            yield Extent(run.start() * 8, run.end() * 8)
        else:
            yield from ones(byte, run.start() * 8)
