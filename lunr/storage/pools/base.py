"""What every pool can do.

Every operation can be run twice with the same end, and the process can be
killed at any point of it: what is half done has a name that `clean` knows.
Who calls sees to it that only one job works on a volume at a time.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

from lunr.common import errors
from lunr.common.extents import Extent

#: Told now and then how far long work is, in bytes: done, in all. It raises
#: errors.Cancelled when the work is to end early.
Tick = Callable[[int, int], None]


def no_tick(_done: int, _total: int) -> None:
    """Nobody wants to know, and nobody cancels."""


class PoolUnusable(errors.LunrError):
    """The pool in {place} can't be used: {reason}"""

    code = "pool_unusable"


class PoolFull(errors.LunrError):
    """The pool in {place} is full ({free} are free): delete volumes or snapshots, or enlarge it."""

    code = "pool_full"
    status = 507
    retry = True


class SnapshotLost(errors.LunrError):
    """The snapshot {id} of volume {volume_id} is lost: {reason}"""

    code = "snapshot_lost"


class Purpose(StrEnum):
    """What a snapshot is for."""

    #: A user's.
    USER = "snapshots"
    #: What a running backup reads; nobody but the backup's job knows of it.
    BACKUP = "backups"
    #: What the volume's next backup is compared with: the moment of its last one, whose id it
    #: has. Nobody asked for it: it never keeps a volume from being deleted or extended.
    BASELINE = "references"


@dataclass(frozen=True)
class Snapshot:
    """A snapshot of `volume_id`; its `id` is the user's snapshot's or the backup's."""

    volume_id: str
    id: str
    purpose: Purpose = Purpose.USER


@dataclass(frozen=True)
class Capacity:
    """How much room there is.

    Attributes:
        capacity_bytes: what may be promised to volumes in all.
        free_bytes: what is really free now.
        full: why no new volume is to be placed here, whatever is promised; mostly "".
        used: shares (0 to 1) of what can run out, by its name: "data", "metadata", …
        tight: whether what is there only to be quick, the baselines, is to be given up.
    """

    capacity_bytes: int
    free_bytes: int
    full: str = ""
    used: dict[str, float] = field(default_factory=dict)
    tight: bool = False


def not_found(subject: str | Snapshot) -> errors.NotFound:
    """The error that a pool raises where `subject` is not there."""
    if isinstance(subject, Snapshot):
        return errors.NotFound(kind="snapshot", id=f"{subject.id} of volume {subject.volume_id}")
    return errors.NotFound(kind="volume", id=subject)


class Pool(abc.ABC):
    """Keeps volumes and their snapshots. Sizes are in bytes, ids are those of the records.

    The ids of snapshots are unique in the pool for each purpose, as records' are.
    """

    #: What the configuration and the API call this driver.
    name: ClassVar[str]
    #: Whether `clone` and `delete` move as many bytes as the volume has.
    slow: ClassVar[bool] = False
    #: Whether a snapshot costs those who write to its volume so little that it may stay for long.
    light_snapshots: ClassVar[bool] = True

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
    def baselines(self) -> Mapping[Snapshot, float]:
        """The snapshots that are baselines, and when each was taken, in seconds since 1970."""

    @abc.abstractmethod
    def create(self, volume_id: str, size: int) -> None:
        """Make a volume of `size` bytes that reads as zeros.

        Raises:
            errors.Conflict: there is one of this id with another size.
            PoolFull: there is no room.
        """

    @abc.abstractmethod
    def clone(
        self, volume_id: str, source: str | Snapshot, size: int, tick: Tick = no_tick
    ) -> None:
        """Make a volume of `size` bytes that begins with the bytes of `source`.

        Args:
            volume_id: the new volume's id.
            source: a volume's id, or a snapshot.
            size: bytes; what is past the end of `source` reads as zeros.
            tick: told how far it is; one that was cancelled can be run again.

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
    def delete(self, volume_id: str, tick: Tick = no_tick) -> None:
        """Remove the volume; its bytes can't be read by anyone after.

        Its baselines go with it. Its other snapshots stay where the pool can keep
        them without it.

        Args:
            volume_id: the volume; when it is not there, all is done.
            tick: told how far it is; one that was cancelled can be run again, and
                goes on where it was.

        Raises:
            errors.InUse: it has snapshots that can't be without it, or is open.
        """

    @abc.abstractmethod
    def snapshot(self, snapshot: Snapshot) -> None:
        """Keep the volume's bytes of this moment as `snapshot`.

        One that was lost (see `check_snapshot`) is taken anew when it is a backup's.

        Raises:
            errors.NotFound: the volume is not there.
            PoolFull: there is no room.
        """

    @abc.abstractmethod
    def delete_snapshot(self, snapshot: Snapshot) -> None:
        """Remove the snapshot."""

    @abc.abstractmethod
    def repurpose(self, snapshot: Snapshot, purpose: Purpose) -> None:
        """Let the snapshot be for another `purpose` from now on, in one step.

        Raises:
            errors.NotFound: there is none, for either purpose.
        """

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

    # --- what only some pools know or need -----------------------------------------

    def watch(self) -> None:
        """Look after the pool once, as the agent does every second: enlarge what fills up."""

    def check_snapshot(self, snapshot: Snapshot) -> None:
        """Make sure that all that was read of `snapshot` is of its moment.

        Raises:
            SnapshotLost: it is not; the message says why.
        """

    def lost_snapshots(self) -> frozenset[Snapshot]:
        """The snapshots whose bytes are gone, as `watch` saw them last."""
        return frozenset()

    def allocated(self, subject: str | Snapshot) -> Iterator[Extent] | None:
        """The extents that may be other than zeros, in order; None: the pool does not know."""
        return None

    def changed(self, old: Snapshot, new: str | Snapshot) -> Iterator[Extent] | None:
        """The extents of `new`, in order, that may differ from `old`; None: the pool does not know.

        Both are of the same volume, `new` is the volume itself or a later
        snapshot. What is past the end of `old` counts as different.

        Raises:
            errors.LunrError: it can't be found out; also while it is iterated over.
        """
        return None


class DevicePool(Pool):
    """A pool whose volumes are logical volumes, so that dm-clone can fill them (docs/restores.md).

    It then keeps beside the volume, as one of its own, what of it is there.
    """

    @abc.abstractmethod
    def make_clone_metadata(self, volume_id: str, size: int) -> Path:
        """A device of at least `size` bytes for a volume that fills, all zeros when it is new.

        Raises:
            PoolFull: there is no room.
        """

    @abc.abstractmethod
    def remove_clone_metadata(self, volume_id: str) -> None:
        """Remove that device, if there is one. With its volume it goes as well."""

    @abc.abstractmethod
    def clone_name(self, volume_id: str) -> str:
        """What device-mapper is to call the device that a volume is filled through."""

    @abc.abstractmethod
    def hide_loops(self) -> None:
        """Have this pool's commands see no loop device but those that the pool may be made of.

        Others, and these are read-only, show what belongs to a guest: a label of LVM in it
        would count, too. To be called first of all.
        """
