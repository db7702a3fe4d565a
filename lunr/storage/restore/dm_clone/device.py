"""A device of device-mapper's target clone, through ``dmsetup``.

Such a device reads from its source what is not on its destination yet, writes to the
destination, and copies the rest behind: it *hydrates* regions
(Documentation/admin-guide/device-mapper/dm-clone.rst). Which ones are there is kept on a third
device, and is on its disk before a flush is answered.

Its name in device-mapper begins with the volume's. Its uuid begins with ``LVM-``: so no
command of LVM, nobody's, looks for a label in what belongs to a guest, or waits for it.
"""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from lunr.common import errors, files, ids, units
from lunr.storage import system

SECTOR = 512
#: Bytes of a region: a write that covers it needs nothing from the source.
REGION = 4 * units.KIB

#: linux/fs.h: _IO(0x12, 119)
_BLKDISCARD = 0x1277

#: Bytes that are hydrated in one go, and at once: chunks of a backup.
_BATCH = 4 * units.MIB
AT_ONCE = 4 * _BATCH

#: Seconds that a device is given to stand still.
_SUSPEND_TIMEOUT = 10.0


class CloneBroken(errors.LunrError):
    """The device {name}, which a restored volume is used through, is of no use any more: {reason}"""  # noqa: E501

    code = "clone_broken"


@dataclass(frozen=True)
class Status:
    """How far the device is, in regions."""

    hydrated: int
    total: int


@dataclass(frozen=True)
class DeviceState:
    """A device that is there.

    Attributes:
        target: "clone", "linear", or "": it was not made to its end.
        source: of a clone, MAJOR:MINOR of what it copies from; else "".
        open: how many have it open.
        suspended: whether I/O waits.
    """

    target: str
    source: str
    open: int
    suspended: bool


def available() -> bool:
    """Whether this machine's kernel has the target, and loop devices; modules are loaded."""
    system.run(["modprobe", "-q", "-a", "dm-clone", "loop"], accept=(0, 1))
    lines = system.run(["dmsetup", "targets"]).stdout.splitlines()
    has_target = any(line.split()[:1] == ["clone"] for line in lines)
    return has_target and Path("/dev/loop-control").exists()


def metadata_size(size: int) -> int:
    """Bytes that the third device needs for a volume of `size` bytes.

    A bit for each region, as many again while they are written anew, and what they hang on.
    """
    return 4 * units.MIB + size // REGION // 8 * 3


class CloneDevice:
    """The device `name`, of volume `volume_id`; it need not be there."""

    def __init__(self, name: str, volume_id: str) -> None:
        self.name = name
        self.path = Path("/dev/mapper") / name
        self._uuid = f"LVM-lunr-clone-{ids.check(volume_id)}"

    def look(self) -> DeviceState | None:
        """What is there; None: nothing."""
        if not self.path.exists():
            return None
        target, *words = self._dmsetup("table").split()[2:] or [""]
        opened, suspended = self._info().strip().split(":")
        source = words[2] if target == "clone" else ""
        return DeviceState(target, source, int(opened), suspended == "Suspended")

    def _info(self) -> str:
        columns = ("-c", "--noheadings", "--separator", ":", "-o", "open,suspended")
        return system.run(["dmsetup", "info", *columns, self.name]).stdout

    def make(self, metadata: Path, destination: Path, source: Path, size: int) -> None:
        """Make the device, of `size` bytes, which does not hydrate by itself.

        What a discard is about counts as there, and the destination is not told: it is zeros
        where nothing was written, and so a range that is known to be zeros is got rid of.
        """
        features = ("no_hydration", "no_discard_passdown")
        table = ["clone", metadata, destination, source, REGION // SECTOR, 2, *features]
        self._dmsetup("create", "--uuid", self._uuid, "--table", _line(size, table))

    def status(self) -> Status:
        """How far it is.

        Raises:
            CloneBroken: its metadata failed.
        """
        return parse_status(self._dmsetup("status", "--noflush"), self.name)

    def hydrate(self, on: bool) -> None:
        """Copy behind from now on, or don't. It does so only while nobody else waits for it."""
        self._message("enable_hydration" if on else "disable_hydration")

    def set_batch(self, one_by_one: bool) -> None:
        """Copy some chunks at once, or region by region: what is read at once fails as a whole."""
        batch, at_once = (REGION, REGION) if one_by_one else (_BATCH, AT_ONCE)
        self._message("hydration_batch_size", str(batch // REGION))
        self._message("hydration_threshold", str(at_once // REGION))

    def claim_zeros(self, start: int, end: int) -> None:
        """Count a range as there that is zeros on the source; what was written in it stays.

        Raises:
            OSError: it can't be.
        """
        file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(file, _BLKDISCARD, struct.pack("=2Q", start, end - start))
            os.fsync(file)  # so that there is never much of it to be noted at once
        finally:
            os.close(file)

    def flush(self) -> None:
        """Have all that is there, and that it is there, on the disk.

        Raises:
            OSError: it is not.
        """
        files.fsync(self.path)

    def suspend(self) -> None:
        """Have new I/O wait, when all that was under way is over; its metadata are on the disk.

        Raises:
            CommandTimeout: it is not over in time; it goes on as before.
        """
        self._dmsetup("suspend", timeout=_SUSPEND_TIMEOUT)

    def resume(self) -> None:
        """Let I/O go on."""
        self._dmsetup("resume")

    def replace_by_linear(self, destination: Path, size: int) -> None:
        """Be `destination` and nothing else, without anybody who has the device open noticing."""
        self.suspend()
        try:
            self._dmsetup("load", "--table", _line(size, ["linear", destination, 0]))
        finally:
            self.resume()

    def remove(self) -> None:
        """Remove the device.

        Raises:
            CommandFailed: somebody has it open; it was tried for some seconds.
        """
        self._dmsetup("remove", "--retry")

    def _message(self, *words: str) -> None:
        system.run(["dmsetup", "message", self.name, "0", *words])

    def _dmsetup(self, command: str, *words: str, timeout: float = 60.0) -> str:
        return system.run(["dmsetup", command, self.name, *words], timeout=timeout).stdout


def parse_status(line: str, name: str) -> Status:
    """The line that ``dmsetup status`` prints of the device `name`.

    Raises:
        CloneBroken: its metadata failed.
    """
    words = line.split()
    if len(words) < 8 or words[-1] != "rw":  # else "ro", "Fail", "Error"
        raise CloneBroken(name=name, reason=f"the kernel says {line.strip()!r}")
    hydrated, _, total = words[6].partition("/")
    return Status(int(hydrated), int(total))


def _line(size: int, words: list[object]) -> str:
    return " ".join(str(word) for word in (0, size // SECTOR, *words))
