"""What every pool can do.

Every operation can be run twice with the same end, and the process can be
killed at any point of it: what is half done has a name that `clean` knows.
Who calls sees to it that only one job works on a volume at a time.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from lunr.common import errors


class PoolUnusable(errors.LunrError):
    """The pool at {path} can't be used: {reason}"""

    code = "pool_unusable"


class PoolFull(errors.LunrError):
    """The pool at {path} is full ({free} are free): delete volumes or snapshots, or enlarge it."""

    code = "pool_full"
    status = 507
    retry = True


class Purpose(StrEnum):
    """What a snapshot is for."""

    #: A user's.
    USER = "snapshots"
    #: What a running backup reads; nobody but the backup's job knows of it.
    BACKUP = "backups"


@dataclass(frozen=True)
class Snapshot:
    """A snapshot of `volume_id`; its `id` is the user's snapshot's or the backup's."""

    volume_id: str
    id: str
    purpose: Purpose = Purpose.USER


@dataclass(frozen=True)
class Capacity:
    """Bytes that may be promised to volumes in all, and bytes that are really free now."""

    capacity_bytes: int
    free_bytes: int


class Pool(abc.ABC):
    """Keeps volumes and their snapshots. Sizes are in bytes, ids are those of the records."""

    #: What the configuration and the API call this driver.
    name: str

    @abc.abstractmethod
    def check(self) -> None:
        """Make the pool ready for use, or say exactly what is missing.

        Raises:
            PoolUnusable: it can't be used; the message says what to do.
        """

    @abc.abstractmethod
    def clean(self) -> None:
        """Remove what a killed process left half done. Nothing else may work on the pool."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of the pool, as the end of the process would; what is mounted stays."""

    @abc.abstractmethod
    def capacity(self) -> Capacity:
        """How much may be promised, and how much is free.

        Raises:
            PoolUnusable: the pool does not say.
        """

    @abc.abstractmethod
    def volumes(self) -> frozenset[str]:
        """The ids of the volumes that are there."""

    @abc.abstractmethod
    def snapshots(self) -> frozenset[Snapshot]:
        """The snapshots that are there, of every purpose."""

    @abc.abstractmethod
    def create(self, volume_id: str, size: int) -> None:
        """Make a volume of `size` bytes that reads as zeros.

        Raises:
            errors.Conflict: there is one of this id with another size.
            PoolFull: there is no room.
        """

    @abc.abstractmethod
    def clone(self, volume_id: str, source: str | Snapshot, size: int) -> None:
        """Make a volume of `size` bytes that begins with the bytes of `source`.

        Args:
            volume_id: the new volume's id.
            source: a volume's id, or a snapshot.
            size: bytes; what is past the end of `source` reads as zeros.

        Raises:
            errors.NotFound: `source` is not there.
            errors.Conflict: `source` is larger than `size`, or the id is taken by another size.
            PoolFull: there is no room.
        """

    @abc.abstractmethod
    def extend(self, volume_id: str, size: int) -> None:
        """Make the volume `size` bytes large; what is new reads as zeros.

        Raises:
            errors.NotFound: the volume is not there.
            errors.Conflict: it is larger already.
        """

    @abc.abstractmethod
    def delete(self, volume_id: str) -> None:
        """Remove the volume; its bytes can't be read by anyone after. Its snapshots stay."""

    @abc.abstractmethod
    def snapshot(self, snapshot: Snapshot) -> None:
        """Keep the volume's bytes of this moment as `snapshot`.

        Raises:
            errors.NotFound: the volume is not there.
            PoolFull: there is no room.
        """

    @abc.abstractmethod
    def delete_snapshot(self, snapshot: Snapshot) -> None:
        """Remove the snapshot."""

    @abc.abstractmethod
    def size(self, subject: str | Snapshot) -> int:
        """Bytes of a volume or snapshot.

        Raises:
            errors.NotFound: it is not there.
        """

    @abc.abstractmethod
    def path(self, subject: str | Snapshot) -> Path:
        """The file or device with the bytes of a volume or snapshot.

        Raises:
            errors.NotFound: it is not there.
        """
