"""Block devices of the VM's, made in no time: parts of a disk, by device-mapper."""

from __future__ import annotations

from pathlib import Path

from tests.support.initiator import sh

_SECTOR = 512
#: Bytes of the disk that each slice may grow to.
_ROOM = 64 << 20
_PREFIX = "lunr-slice-"


class Slices:
    """Linear devices on `disk`; `close` removes them."""

    def __init__(self, disk: Path) -> None:
        self._disk = disk
        self._made: list[Path] = []

    def make(self, name: str, size: int) -> Path:
        """A device of `size` bytes."""
        path = Path("/dev/mapper", _PREFIX + name)
        sh("dmsetup", "create", path.name, "--table", self._table(size, len(self._made)))
        self._made.append(path)
        return path

    def grow(self, path: Path, size: int) -> None:
        """Make the device larger, as LVM does: whoever has it open goes on."""
        sh("dmsetup", "load", path.name, "--table", self._table(size, self._made.index(path)))
        sh("dmsetup", "resume", path.name)

    def close(self) -> None:
        """Remove all of them; it fails when one is still in use."""
        for path in self._made:
            sh("dmsetup", "remove", "--retry", path.name)

    def _table(self, size: int, place: int) -> str:
        return f"0 {size // _SECTOR} linear {self._disk} {place * _ROOM // _SECTOR}"
