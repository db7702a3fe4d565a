"""What users' snapshots lack that were taken of lazy restores.

A record is written before its snapshot is taken. So a snapshot without a record is whole,
unless the record was lost: the API knows which snapshots need a backup.
"""

from __future__ import annotations

from pathlib import Path

from lunr.backup.lazy_image.missing_extents import MissingExtents
from lunr.common import concurrency, errors, files, ids
from lunr.storage.pools.base import Snapshot


class SnapshotStateLost(errors.LunrError):
    """What is known of snapshot {id} of volume {volume_id} is gone from {folder}: it was taken while the volume was restored, and nobody can tell which of its bytes it has."""  # noqa: E501

    code = "snapshot_state_lost"


class SnapshotGaps:
    """What each of a node's users' snapshots lacks, in files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, snapshot: Snapshot) -> bool:
        """Whether something of it is known to be missing."""
        return self._path(snapshot).exists()

    def keep(self, snapshot: Snapshot, gaps: MissingExtents) -> None:
        """Keep what it lacks; that is on the disk when it returns."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        concurrency.blocking(gaps.write, self._path(snapshot))
        files.fsync(self._folder)
        files.fsync(self._folder.parent)

    def of(self, snapshot: Snapshot, backup_id: str) -> MissingExtents:
        """What it lacks and that backup has.

        Raises:
            SnapshotStateLost: nobody knows.
            GapsCorrupt
        """
        try:
            gaps: MissingExtents = concurrency.blocking(MissingExtents.read, self._path(snapshot))
        except FileNotFoundError as error:
            raise self._lost(snapshot) from error
        if gaps.backup_id != backup_id:
            raise self._lost(snapshot)
        return gaps

    def forget(self, snapshot: Snapshot) -> None:
        """Keep nothing of it."""
        self._path(snapshot).unlink(missing_ok=True)

    def _path(self, snapshot: Snapshot) -> Path:
        return self._folder / f"{ids.check(snapshot.volume_id)}.{ids.check(snapshot.id)}"

    def _lost(self, snapshot: Snapshot) -> SnapshotStateLost:
        return SnapshotStateLost(id=snapshot.id, volume_id=snapshot.volume_id, folder=self._folder)
