"""Lists of extents that stay short."""

from __future__ import annotations

from collections.abc import Iterable

from lunr.common import units
from lunr.storage.pools.base import Extent

#: What the engine reads at once: to tell it more exactly would save it nothing.
_UNIT = 4 * units.MIB
#: At most so many extents: a MiB of JSON or two, and a moment's work.
MOST = 1 << 16


def coalesce(extents: Iterable[Extent], size: int, most: int = MOST) -> list[Extent]:
    """Extents, in order, that hold all of `extents` within `size` bytes.

    They begin and end at multiples of 4 MiB, or of as much more as it takes
    for there to be at most `most`.

    Args:
        extents: in order.
        size: bytes; what is beyond is left out.
        most: 1 or more.
    """
    unit = _UNIT
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
