"""Ranges of bytes, in order and apart."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence


class Extents:
    """Ranges (first byte, end) of a volume."""

    def __init__(self, ranges: Sequence[Sequence[int]]) -> None:
        """Raise ValueError if `ranges` are anything but pairs in order and apart.

        Out of order, some of them would be overlooked, and bytes taken for what they are not.
        """
        self._ranges = [(start, end) for start, end in ranges]
        last = 0
        for start, end in self._ranges:
            if not last <= start < end:
                raise ValueError(f"the extent {start} to {end} is out of order")
            last = end

    def within(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """What of them lies in `start` to `end`."""
        first = bisect_right(self._ranges, start, key=lambda extent: extent[1])
        for begin, stop in itertools.islice(self._ranges, first, None):
            if begin >= end:
                return
            yield max(begin, start), min(stop, end)


def runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The runs (first, end) of neighbours in `numbers`."""
    run: tuple[int, int] | None = None
    for number in sorted(numbers):
        if run is not None and run[1] == number:
            run = run[0], number + 1
            continue
        if run is not None:
            yield run
        run = number, number + 1
    if run is not None:
        yield run
