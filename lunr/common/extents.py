"""Ranges of bytes, in order and apart."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence


class Extents:
    """Ranges (first byte, end) of a volume: 16 bytes of memory for each."""

    def __init__(self, ranges: Iterable[Sequence[int]]) -> None:
        """Raise ValueError if `ranges` are anything but pairs in order and apart.

        Out of order, some of them would be overlooked, and bytes taken for what they are not.
        """
        self._starts, self._ends = array("Q"), array("Q")
        last = 0
        for start, end in ranges:
            if not last <= start < end < 1 << 64:
                raise ValueError(f"the extent {start} to {end} is out of order")
            self._starts.append(start)
            self._ends.append(end)
            last = end

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def __len__(self) -> int:
        return len(self._ends)

    def within(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """What of them lies in `start` to `end`."""
        for number in range(bisect_right(self._ends, start), len(self._ends)):
            begin, stop = self._starts[number], self._ends[number]
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
