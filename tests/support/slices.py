"""Block devices of the VM's, made in no time: parts of a disk, by device-mapper."""

from __future__ import annotations

from pathlib import Path

from tests.support.initiator import sh

_SECTOR = 512
#: Bytes of the disk that each slice may grow to.
_ROOM = 64 << 20
#: Where they are, like the volumes of a pool.
SLICES = Path("/dev/mapper")


class Slices:
    """Linear devices on `disk`; `close` removes them."""

    def __init__(self, disk: Path) -> None:
        self._disk = disk
        #: The sizes of those that were made, in the order of their places on the disk.
        self._sizes: dict[Path, int] = {}

    def make(self, name: str, size: int) -> Path:
        """A device of `size` bytes; the same one for the same name."""
        path = SLICES / f"lunr-slice-{name}"
        if path in self._sizes:
            self.resize(path, size)
        else:
            self._sizes[path] = size
            sh("dmsetup", "create", path.name, "--table", self._table(path))
        return path

    def resize(self, path: Path, size: int) -> None:
        """Give the device another size, as LVM does: whoever has it open goes on."""
        if self._sizes[path] != size:
            self._sizes[path] = size
            sh("dmsetup", "load", path.name, "--table", self._table(path))
            sh("dmsetup", "resume", path.name)

    def close(self) -> None:
        """Remove all of them; it fails when one is still in use."""
        for path in self._sizes:
            sh("dmsetup", "remove", "--retry", path.name)

    def _table(self, path: Path) -> str:
        place = list(self._sizes).index(path) * _ROOM
        return f"0 {self._sizes[path] // _SECTOR} linear {self._disk} {place // _SECTOR}"
