"""Where the blocks of thin devices are: what `thin_dump` says, read as a stream.

The output of ``thin_dump --dev-id N --format xml`` (thin_dump(8)) is::

    <superblock … data_block_size="128" …>                      in sectors
      <device dev_id="1" mapped_blocks="4" …>
        <single_mapping origin_block="0" data_block="7" …/>   block 0 is block 7 of the pool
        <range_mapping origin_begin="2" data_begin="9" length="3" …/>
      </device>
    </superblock>

Two of them are compared in :mod:`maps`. (thin_delta(8) would do that too, but it
holds both maps in memory, and up to its version 1.0.5 calls some changed blocks
the same: its CHANGES tell of 1.0.6, "Fix range mappings preprocessing in thin_delta".)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from xml.parsers import expat

from lunr.common import errors
from lunr.storage.pools.extent_maps import Run

_SECTOR = 512


class MapUnreadable(errors.LunrError):
    """The map of thin device {device} can't be read: {reason}"""

    code = "thin_map_unreadable"


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
