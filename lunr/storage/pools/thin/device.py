"""The device-mapper device of a thin pool: how it is, and the maps in its metadata."""

from __future__ import annotations

import contextlib
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from lunr.common.extents import Extent
from lunr.storage import system
from lunr.storage.pools.base import PoolUnusable
from lunr.storage.pools.extent_maps import Run
from lunr.storage.pools.lvm.volume_group import VolumeGroup, statuses
from lunr.storage.pools.thin import maps as thin_maps
from lunr.storage.pools.thin import status as thin_status
from lunr.storage.pools.thin.status import ThinStatus

#: Seconds to read the maps of two devices: some ten for a million of scattered blocks.
_MAP_TIMEOUT = 3600.0

_EXTENT = struct.Struct("<QQ")


class PoolDevice:
    """The device of the thin pool `pool` in the volume group `group`."""

    def __init__(self, group: VolumeGroup, pool: str) -> None:
        self._pool = group.full_name(pool)
        self._name = group.dm_name(pool)
        self._metadata_snapshot = threading.Lock()

    def status(self) -> ThinStatus:
        """How the pool is now.

        Raises:
            PoolUnusable: the kernel does not know it.
        """
        try:
            said = statuses("thin-pool")
            # Before it has its first volume, the pool has no device of its own below its name.
            status = thin_status.parse(said, (f"{self._name}-tpool", self._name))
        except (system.CommandFailed, system.CommandTimeout, ValueError) as error:
            raise self._unusable(f"the kernel does not tell of it: {error}") from error
        if status is None:
            raise self._unusable(f"it is not active: lvchange -ay {self._pool}")
        return status

    def extents(
        self,
        devices: Sequence[int],
        combine: Callable[[list[Iterator[Run]]], Iterator[Extent]],
    ) -> Iterator[Extent]:
        """What `combine` makes of the maps of thin `devices`, as they are now.

        All maps are of one moment: a metadata snapshot is reserved while they
        are read, which is when this is called. There is only one at a time.
        The result waits in a temporary file and is read from there.

        Args:
            devices: thin device numbers, as LVM's field ``thin_id`` has them.
            combine: takes the map of each.

        Raises:
            CommandFailed: the kernel or thin_dump did not do it.
            MapUnreadable: thin_dump did not tell all.
        """
        spool = tempfile.TemporaryFile()  # noqa: SIM115 - closed by who reads it
        try:
            with self._snapshot_of_metadata(), contextlib.ExitStack() as dumps:
                maps = [self._map(device, dumps) for device in devices]
                for extent in combine(maps):
                    spool.write(_EXTENT.pack(*extent))
        except BaseException:
            spool.close()
            raise
        return _read(spool)

    def release_left_over(self) -> bool:
        """Release the metadata snapshot that a killed process reserved; whether there was one."""
        with self._metadata_snapshot:
            status = self.status()
            if status.held:
                self._message(status, "release_metadata_snap")
            return status.held

    @contextlib.contextmanager
    def _snapshot_of_metadata(self) -> Iterator[None]:
        with self._metadata_snapshot:
            status = self.status()
            self._message(status, "reserve_metadata_snap")
            try:
                yield
            finally:
                self._message(status, "release_metadata_snap")

    def _map(self, device: int, dumps: contextlib.ExitStack) -> Iterator[Run]:
        dump = ["thin_dump", "--metadata-snap", "--format", "xml", "--dev-id", str(device)]
        xml = system.stream([*dump, f"/dev/mapper/{self._name}_tmeta"], timeout=_MAP_TIMEOUT)
        return thin_maps.parse(dumps.enter_context(contextlib.closing(xml)), device)

    def _message(self, status: ThinStatus, message: str) -> None:
        system.run(["dmsetup", "message", status.device, "0", message])

    def _unusable(self, reason: str) -> PoolUnusable:
        return PoolUnusable(place=f"thin pool {self._pool}", reason=reason)


def _read(spool: BinaryIO) -> Iterator[Extent]:
    with spool:
        spool.seek(0)
        while piece := spool.read(4096 * _EXTENT.size):
            yield from map(Extent._make, _EXTENT.iter_unpack(piece))
