"""Where the bytes of a volume or snapshot lie, and in which of them two such maps may differ.

What two of them share is written to only after one got a copy of its own. So
they differ at most where their maps lead to different places.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from lunr.common.extents import Extent, clip, merge


class Run(NamedTuple):
    """The bytes from `start` up to, not including, `end` are at `data` in the pool, and after.

    None: nobody can say where, so that they are never taken for the same as others.
    """

    start: int
    end: int
    data: int | None


#: What comes after the last run.
_NO_MORE = Run(sys.maxsize, sys.maxsize, 0)


def allocated(runs: Iterable[Run], size: int) -> Iterator[Extent]:
    """The extents of a volume of `size` bytes that have a place; all else reads as zeros."""
    return merge(clip(((run.start, run.end) for run in runs), size))


def changed(
    old: Iterator[Run], old_size: int, new: Iterator[Run], new_size: int
) -> Iterator[Extent]:
    """The extents of `new` that may differ from `old`, in order; sizes are the volumes' in bytes.

    What is past the end of `old` counts as different.
    """
    return within_both(_differences(old, new), old_size, new_size)


def within_both(differ: Iterable[Extent], old_size: int, new_size: int) -> Iterator[Extent]:
    """The extents `differ` of what both have, and all of the new one past the end of the old."""
    common = min(old_size, new_size)
    beyond = [Extent(common, new_size)] if common < new_size else []
    return merge(itertools.chain(clip(differ, common), beyond))


def _differences(old: Iterator[Run], new: Iterator[Run]) -> Iterator[Extent]:
    left, right = next(old, _NO_MORE), next(new, _NO_MORE)
    while (start := min(left.start, right.start)) < _NO_MORE.start:
        if left.start == right.start:
            end = min(left.end, right.end)
            if left.data is None or left.data != right.data:
                yield Extent(start, end)
        else:  # in one of them only, as far as to where the other's next run starts
            first, second = sorted((left, right), key=lambda run: run.start)
            end = min(first.end, second.start)
            yield Extent(start, end)
        if left.start == start:
            left = _past(end, left, old)
        if right.start == start:
            right = _past(end, right, new)


def _past(point: int, run: Run, rest: Iterator[Run]) -> Run:
    """What of `run` lies past `point`, or the next run of `rest`."""
    if point < run.end:
        data = None if run.data is None else run.data + point - run.start
        return Run(point, run.end, data)
    return next(rest, _NO_MORE)
