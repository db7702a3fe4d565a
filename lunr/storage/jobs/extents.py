"""Lists of extents that stay short."""

from __future__ import annotations

from collections.abc import Iterable

from lunr.common import units
from lunr.storage.pools.base import Extent

#: What the engine reads at once where it knows of no parent: to tell it more exactly of zeros
#: would save it nothing.
CHUNK = 4 * units.MIB
#: What it reads at least, where it knows what has changed since its parent.
BLOCK = 32 * units.KIB
#: At most so many extents, of either kind. Of zeros: a MiB of JSON or two, and a moment's work.
#: Of changes: 1 % of a TiB's blocks, anywhere in it, are 335 000. To tell them takes 10 MB of
#: JSON and 0.6 s in all, and to read twice as much in their place takes longer.
MOST_ALLOCATED = 1 << 16
MOST_CHANGED = 1 << 19


def coalesce(extents: Iterable[Extent], size: int, unit: int, most: int) -> list[Extent]:
    """Extents, in order, that hold all of `extents` within `size` bytes.

    They begin and end at multiples of `unit`, or of as much more as it takes
    for there to be at most `most`.

    Args:
        extents: in order.
        size: bytes; what is beyond is left out.
        unit: bytes.
        most: 1 or more.
    """
    short: list[Extent] = []
    for extent in extents:
        start, end = max(extent.start, 0), min(extent.end, size)
        if start >= end:
            continue
        _append(short, Extent(start, end), unit, size)
        while len(short) > most:
            unit *= 2
            finer, short = short, []
            for one in finer:
                _append(short, one, unit, size)
    return short


def _append(short: list[Extent], extent: Extent, unit: int, size: int) -> None:
    """Add `extent`, made larger to multiples of `unit`, to those that begin before it."""
    start, end = extent.start // unit * unit, min(-(-extent.end // unit) * unit, size)
    if short and start <= short[-1].end:
        short[-1] = Extent(short[-1].start, max(short[-1].end, end))
    else:
        short.append(Extent(start, end))
