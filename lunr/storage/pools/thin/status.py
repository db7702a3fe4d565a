"""How a thin pool is: what the kernel says of it, and what is wrong with that.

The status line of the target thin-pool is in the kernel's
``Documentation/admin-guide/device-mapper/thin-provisioning.rst``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

_SECTOR = 512


class Mode(StrEnum):
    """What the kernel does with the pool."""

    #: All is well.
    WRITE = "rw"
    #: Writes that need a new block wait (60 seconds, or as long as the kernel's module is
    #: told to) and then fail; or fail at once, as the pool was told to.
    OUT_OF_DATA = "out_of_data_space"
    #: The metadata can't be written: they are full or damaged. So are writes to new blocks.
    READ_ONLY = "ro"
    #: The pool can't even be read.
    FAILED = "Fail"


@dataclass(frozen=True)
class ThinStatus:
    """A thin pool at one moment.

    Attributes:
        device: the device-mapper name of the pool's device, which takes its messages.
        size: bytes of data that it has room for.
        data: share (0 to 1) of that which is used.
        metadata: the same of the metadata.
        held: whether a metadata snapshot is reserved.
        mode: what the kernel does with it.
        needs_check: whether the metadata were damaged; it then stays read-only.
    """

    device: str
    size: int
    data: float
    metadata: float
    held: bool
    mode: Mode
    needs_check: bool

    @property
    def free(self) -> int:
        """Bytes of data that are not used."""
        return int(self.size * (1 - self.data))

    @property
    def broken(self) -> bool:
        """Whether nothing can be made, changed or deleted in it before it is mended."""
        return self.needs_check or self.mode in (Mode.READ_ONLY, Mode.FAILED)


def parse(text: str, devices: Collection[str]) -> ThinStatus | None:
    """The status of the thin pool that is one of `devices`, from ``dmsetup status``; None: none is.

    Raises:
        ValueError: a line is not as the kernel's documentation says.
    """
    for line in text.splitlines():
        device, _, rest = line.partition(": ")
        if device not in devices:
            continue
        match rest.split():
            case [_, sectors, "thin-pool", "Fail" | "Error"]:
                size = int(sectors) * _SECTOR
                return ThinStatus(device, size, 1.0, 1.0, False, Mode.FAILED, True)
            case [_, sectors, "thin-pool", _, metadata, data, held, mode, _, _, check, *_]:
                return ThinStatus(
                    device=device,
                    size=int(sectors) * _SECTOR,
                    data=_share(data),
                    metadata=_share(metadata),
                    held=held != "-",
                    mode=Mode(mode),
                    needs_check=check != "-",
                )
            case _:
                raise ValueError(f"not the status of a thin pool: {line}")
    return None


def why_full(status: ThinStatus, full_at: float, pool: str) -> str:
    """Why no new volume is to be placed in the pool GROUP/NAME, and what to do; "": it may be.

    `full_at` is the share (0 to 1) of data or metadata that may be used.
    """
    if status.broken:
        return (
            f"the metadata of the thin pool {pool} are full or damaged and it takes no writes: "
            f"detach its volumes and stop lunr-storage; `vgchange -an {pool.partition('/')[0]}` "
            f"(the next activation checks it), if need be `lvconvert --repair {pool}` or "
            f"`lvextend --poolmetadatasize +SIZE {pool}`; start lunr-storage"
        )
    if status.mode is Mode.OUT_OF_DATA:
        return f"the thin pool {pool} is full and writes fail: `lvextend -L +SIZE {pool}`"
    if status.data > full_at:
        return f"the thin pool {pool} is {status.data:.0%} full: `lvextend -L +SIZE {pool}`"
    if status.metadata > full_at:
        return (
            f"the metadata of the thin pool {pool} are {status.metadata:.0%} full: "
            f"`lvextend --poolmetadatasize +SIZE {pool}`"
        )
    return ""


def _share(text: str) -> float:
    used, total = map(int, text.split("/"))
    return used / total
