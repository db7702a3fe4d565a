"""Where the blocks of thin devices are: what `thin_dump` says, read as a stream.

The output of ``thin_dump --dev-id N --format xml`` (thin_dump(8)) is::

    <superblock … data_block_size="128" …>                      in sectors
      <device dev_id="1" mapped_blocks="4" …>
        <single_mapping origin_block="0" data_block="7" …/>   block 0 is block 7 of the pool
        <range_mapping origin_begin="2" data_begin="9" length="3" …/>
      </device>
    </superblock>

A block that two devices share is written to only after one of them got a copy
of its own. So two devices differ at most where their maps lead to different
blocks of the pool. (thin_delta(8) would say so too, but it holds both maps in
memory, and up to its version 1.0.5 calls some changed blocks the same: its
CHANGES tell of 1.0.6, "Fix range mappings preprocessing in thin_delta".)
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple
from xml.parsers import expat

from lunr.common import errors
from lunr.storage.pools.base import Extent

_SECTOR = 512


class MapUnreadable(errors.LunrError):
    """The map of thin device {device} can't be read: {reason}"""

    code = "thin_map_unreadable"


class Run(NamedTuple):
    """The device's bytes from `start` up to, not including, `end` are at `data` in the pool."""

    start: int
    end: int
    data: int


#: What comes after the last run.
_NO_MORE = Run(sys.maxsize, sys.maxsize, 0)


def parse(xml: Iterable[bytes], device: int) -> Iterator[Run]:
    """The runs of thin device number `device`, in order; memory is bounded by the pieces of `xml`.

    Raises:
        MapUnreadable: `xml` is not the whole map of this device alone.
    """
    reader = _Reader(device)
    parser = expat.ParserCreate()
    parser.StartElementHandler = reader.start
    try:
        for piece in xml:
            parser.Parse(piece)
            yield from reader.take()
        parser.Parse(b"", True)
    except (expat.ExpatError, KeyError, ValueError) as error:
        raise MapUnreadable(device=device, reason=repr(error)) from error
    reader.check_complete()


class _Reader:
    """Gathers the runs of one device, and holds thin_dump to what it says of them."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._runs: list[Run] = []
        self._block = 0
        self._end = 0
        #: Blocks that are still to come; None before the device does.
        self._missing: int | None = None

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        match tag:
            case "superblock":
                self._block = int(attributes["data_block_size"]) * _SECTOR
            case "device" if self._missing is None and int(attributes["dev_id"]) == self._device:
                self._missing = int(attributes["mapped_blocks"])
            case "single_mapping":
                self._add(int(attributes["origin_block"]), int(attributes["data_block"]), 1)
            case "range_mapping":
                origin, data = int(attributes["origin_begin"]), int(attributes["data_begin"])
                self._add(origin, data, int(attributes["length"]))
            case _:
                raise ValueError(f"<{tag}> of {attributes} was not expected")

    def _add(self, origin: int, data: int, length: int) -> None:
        start, end = origin * self._block, (origin + length) * self._block
        if self._missing is None or not self._end <= start < end:
            raise ValueError(f"{length} blocks at {origin} were not expected")
        self._runs.append(Run(start, end, data * self._block))
        self._missing -= length
        self._end = end

    def take(self) -> list[Run]:
        runs, self._runs = self._runs, []
        return runs

    def check_complete(self) -> None:
        if self._missing is None:
            raise MapUnreadable(device=self._device, reason="it is not there")
        if self._missing:
            raise MapUnreadable(
                device=self._device, reason=f"{self._missing} more blocks ought to be mapped"
            )


def allocated(runs: Iterable[Run], size: int) -> Iterator[Extent]:
    """The extents of a device of `size` bytes that are mapped; all else reads as zeros."""
    return _merged(_clipped((Extent(run.start, run.end) for run in runs), size))


def changed(
    old: Iterator[Run], old_size: int, new: Iterator[Run], new_size: int
) -> Iterator[Extent]:
    """The extents of `new` that may differ from `old`, in order; sizes are the devices' in bytes.

    What is past the end of `old` counts as different.
    """
    common = min(old_size, new_size)
    beyond = [Extent(common, new_size)] if common < new_size else []
    return _merged(itertools.chain(_clipped(_differences(old, new), common), beyond))


def _differences(old: Iterator[Run], new: Iterator[Run]) -> Iterator[Extent]:
    left, right = next(old, _NO_MORE), next(new, _NO_MORE)
    while (start := min(left.start, right.start)) < _NO_MORE.start:
        if left.start == right.start:
            end = min(left.end, right.end)
            if left.data != right.data:
                yield Extent(start, end)
        else:  # mapped in one of them only, as far as to where the other's next run starts
            first, second = sorted((left, right))
            end = min(first.end, second.start)
            yield Extent(start, end)
        if left.start == start:
            left = _past(end, left, old)
        if right.start == start:
            right = _past(end, right, new)


def _past(point: int, run: Run, rest: Iterator[Run]) -> Run:
    """What of `run` lies past `point`, or the next run of `rest`."""
    if point < run.end:
        return Run(point, run.end, run.data + point - run.start)
    return next(rest, _NO_MORE)


def _clipped(extents: Iterable[Extent], size: int) -> Iterator[Extent]:
    """`extents` up to `size`: a device may end in the middle of a block, or have been larger."""
    for extent in extents:
        if extent.start >= size:
            return
        yield Extent(extent.start, min(extent.end, size))


def _merged(extents: Iterable[Extent]) -> Iterator[Extent]:
    """`extents`, those that touch made one."""
    last: Extent | None = None
    for extent in extents:
        if last is not None and last.end == extent.start:
            last = Extent(last.start, extent.end)
            continue
        if last is not None:
            yield last
        last = extent
    if last is not None:
        yield last
