"""A block device that can be made to fail, by device-mapper; for the VM."""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.initiator import sh

_MIB = 1 << 20
_SECTOR = 512


class FaultyDisk:
    """The part of the disk `below` behind its first MiB, as the device `path`.

    It is not all of it, else LVM would see the same label on both.

    Args:
        below: the disk.
        name: what device-mapper is to call it.
        size: bytes; 0: all there are.
    """

    _first = _MIB // _SECTOR

    def __init__(self, below: Path, name: str, size: int = 0) -> None:
        self.below, self.name = below, name
        self.path = Path("/dev/mapper", name)
        with below.open("rb") as file:
            self._sectors = (size or file.seek(0, os.SEEK_END) - _MIB) // _SECTOR
        self._dmsetup("create", name, table=self._linear(0, self._sectors))

    def spoil(self, sector: int) -> None:
        """Have it fail to read or write `sector`."""
        after = sector + 1
        table = (
            self._linear(0, sector),
            f"{sector} 1 error",
            self._linear(after, self._sectors - after),
        )
        self._reload("\n".join(table))

    @contextlib.contextmanager
    def writes_failing(self) -> Iterator[None]:
        """Have it fail all writes meanwhile."""
        always = "0 3600 1 error_writes"
        self._reload(f"0 {self._sectors} flakey {self.below} {self._first} {always}")
        try:
            yield
        finally:
            self.mend()

    def mend(self) -> None:
        """Have it work again."""
        self._reload(self._linear(0, self._sectors))

    def hang(self) -> None:
        """Have it answer nothing until it is mended."""
        self._dmsetup("suspend", "--nolockfs", self.name)

    def remove(self) -> None:
        """Leave only the disk below."""
        self._dmsetup("remove", "--retry", self.name)

    def sector_of(self, data: bytes) -> int:
        """Where `data` begins on the disk, whatever is in between."""
        file = os.open(self.below, os.O_RDONLY | os.O_DIRECT)
        try:
            with mmap.mmap(-1, 4 * _MIB) as buffer:
                for at in range(0, self._sectors * _SECTOR, len(buffer)):
                    os.preadv(file, [buffer], self._first * _SECTOR + at)
                    if (found := buffer.find(data)) >= 0:
                        assert found % _SECTOR == 0
                        return (at + found) // _SECTOR
        finally:
            os.close(file)
        raise AssertionError("it is not on the disk")

    def _linear(self, start: int, length: int) -> str:
        return f"{start} {length} linear {self.below} {self._first + start}"

    def _reload(self, table: str) -> None:
        self._dmsetup("load", self.name, table=table)
        self._dmsetup("suspend", "--nolockfs", self.name)
        self._dmsetup("resume", self.name)

    def _dmsetup(self, *words: str, table: str = "") -> None:
        subprocess.run(["dmsetup", *words], input=table.encode(), check=True, timeout=30)


@contextlib.contextmanager
def replaced(device: str, table: str) -> Iterator[None]:
    """Another table for a device-mapper device, for a while."""
    before = sh("dmsetup", "table", device)

    def load(table: str) -> None:
        sh("dmsetup", "suspend", "--noflush", "--nolockfs", device)
        sh("dmsetup", "load", device, "--table", table)
        sh("dmsetup", "resume", device)

    load(table)
    try:
        yield
    finally:
        load(before.strip())
