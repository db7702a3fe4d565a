"""All the volumes of a node that are filled from backups."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from lunr.backup.lazy_image.missing_extents import MissingExtents
from lunr.common import errors, ids
from lunr.storage.engine import Engine
from lunr.storage.pools.base import DevicePool, Pool
from lunr.storage.restore.dm_clone import restore
from lunr.storage.restore.dm_clone.restore import DmCloneRestore
from lunr.storage.restore.fuse_restore import FuseRestore
from lunr.storage.restore.snapshot_gaps import SnapshotGaps
from lunr.storage.restore.spec import RestoreSpec

_log = logging.getLogger(__name__)


class FillStateLost(errors.LunrError):
    """What is known of the restore of volume {id} is gone from {folder}: nobody can tell which of its bytes were restored. Restore its backup to a new volume."""  # noqa: E501

    code = "fill_state_lost"


class RestoreRegistry:
    """The filling volumes of `pool`; what is known of them is below `state`."""

    def __init__(
        self, pool: Pool, engine: Engine, state: Path, run: Path, *, dm_clone: bool = False
    ) -> None:
        """Nothing is done yet.

        Args:
            pool: has the volumes.
            engine: how the store is reached.
            state: a folder that survives a reboot.
            run: one that need not.
            dm_clone: whether the kernel may fill new ones, if the pool is of devices.
        """
        self._pool = pool
        self._engine = engine
        self._state = state / "fillings"
        #: What users' snapshots lack that were taken of filling volumes.
        self.lacking = SnapshotGaps(state / "lacking")
        self._run = self.folder_in(run)
        self._dm_clone = dm_clone
        self._lock = threading.Lock()
        self._all: dict[str, FuseRestore] = {}
        self._lost: set[str] = set()
        #: Called with the id of a volume whose process is another now.
        self.remounted: Callable[[str], None] = lambda _volume_id: None

    @staticmethod
    def folder_in(run: Path) -> Path:
        """Where below `run` the files are that serve the volumes."""
        return run / "fillings"

    def load(self, there: Iterable[str], filling: Iterable[str], beginning: Iterable[str]) -> None:
        """Have all that fill served again, as far as they are not.

        Args:
            there: the ids of the pool's volumes.
            filling: of those that are not known to be full.
            beginning: of those that nobody could use yet: `begin` is to come.
        """
        there, filling = set(there), set(filling)
        self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in sorted(self._state.iterdir()):
            if not ids.is_valid(folder.name):
                continue
            one = self._make(folder.name)
            is_known = one.load() and folder.name in there
            one.is_told = folder.name not in filling
            if not is_known or (one.is_settled and one.is_told):
                _forget(one)  # a beginning, what a delete left, or the end
                continue
            with self._lock:
                self._all[folder.name] = one
            one.start()
        self._lost = filling & there - self._all.keys() - set(beginning)
        for volume_id in self._lost:
            _log.error("%s", self._state_lost(volume_id))
        for one in self.all():
            try:
                if not one.is_settled:
                    one.wait_mounted(lambda: None)
            except errors.LunrError as error:
                _log.error("volume %s can't be served yet: %s", one.volume_id, error)

    def known(self) -> frozenset[str]:
        """The volumes of which something is kept, before `load` as well."""
        if not self._state.exists():
            return frozenset()
        return frozenset(folder.name for folder in self._state.iterdir())

    def has(self, volume_id: str) -> bool:
        """Whether it is kept what the volume is filled from."""
        return self._make(ids.check(volume_id)).load()

    def prepare(self, volume_id: str, task: RestoreSpec, gaps: MissingExtents) -> None:
        """Keep what a volume is to be filled from that the pool will have but for `gaps`.

        For `begin` to go on when the pool has it. It is filled through FUSE: dm-clone's own
        record of what is there can't be written by others.
        """
        self._make(ids.check(volume_id), task).keep(task, gaps)

    def begin(self, volume_id: str, task: RestoreSpec, heed: Callable[[], None]) -> None:
        """Return when the volume, which the pool has, can be used; again: nothing.

        Args:
            volume_id: the volume; it is zeros, if it was not prepared.
            task: what it is filled from.
            heed: called now and then; it may raise to give up.

        Raises:
            errors.LunrError: it can't.
        """
        ids.check(volume_id)
        self._lost.discard(volume_id)
        with self._lock:
            one = self._all.get(volume_id)
            if one is None:
                one = self._make(volume_id)
                if not one.load():
                    is_clone = self._dm_clone and task.size_bytes <= restore.LARGEST
                    task = replace(task, is_clone=is_clone)
                    one = self._make(volume_id, task)
                    one.keep(task)
                self._all[volume_id] = one
        one.start()
        if not one.is_settled:
            one.wait_mounted(heed)

    def get(self, volume_id: str) -> FuseRestore | None:
        """The volume while it fills, and until it is known to be full; None: it is an ordinary one.

        Raises:
            FillStateLost: it is not full, and nobody knows what is missing.
        """
        if volume_id in self._lost:
            raise self._state_lost(volume_id)
        return self._all.get(volume_id)

    def need(self, volume_id: str) -> FuseRestore:
        """The same of a volume that the API knows as filling.

        Raises:
            FillStateLost
        """
        one = self.get(volume_id)
        if one is None:
            raise self._state_lost(volume_id)
        return one

    def path(self, volume_id: str) -> Path:
        """What to export of a volume.

        Raises:
            errors.NotFound: it is not there.
            FillStateLost
        """
        one = self.get(volume_id)
        if one is None or one.settle():
            return self.target(volume_id)
        return one.path

    def target(self, volume_id: str) -> Path:
        """Where the pool has a volume.

        Raises:
            errors.NotFound: it is not there.
        """
        return self._pool.path(volume_id)

    def all(self) -> list[FuseRestore]:
        """All of them."""
        with self._lock:
            return list(self._all.values())

    def full(self) -> list[str]:
        """The volumes that are full, as the API does not know yet."""
        return sorted(one.volume_id for one in self.all() if one.is_filled and not one.is_told)

    def troubles(self) -> dict[str, str]:
        """Why not all of a volume can be had now, for those of which that is so."""
        found = {one.volume_id: one.trouble for one in self.all()}
        lost = {volume_id: str(self._state_lost(volume_id)) for volume_id in self._lost}
        return {id: reason for id, reason in (found | lost).items() if reason is not None}

    def remove(self, volume_id: str) -> None:
        """Forget the volume, and end its process; the pool's volume stays."""
        self._lost.discard(volume_id)
        with self._lock:
            one = self._all.pop(volume_id, None)
        if one is None:
            one = self._make(ids.check(volume_id))
        one.remove()

    def stop(self, volume_id: str) -> None:
        """End the volume's process; what is kept stays, for `begin`."""
        with self._lock:
            one = self._all.pop(volume_id, None)
        if one is not None:
            one.close()

    def close(self) -> None:
        """End all processes; what is kept stays."""
        for one in self.all():
            try:
                one.close()
            except errors.LunrError as error:
                _log.error("%s", error)

    def _make(self, volume_id: str, task: RestoreSpec | None = None) -> FuseRestore:
        """The volume as `task` has it, or what is kept of it."""
        folder = self._state / volume_id
        if task is None:
            with contextlib.suppress(FileNotFoundError):
                task = RestoreSpec.read(folder / FuseRestore.TASK)
        parts = (
            *(volume_id, folder, self._run / volume_id, lambda: self._pool.path(volume_id)),
            *(self._engine, lambda id: self.remounted(id)),
        )
        # Of one that nothing is known of there may be a device.
        if isinstance(self._pool, DevicePool) and (task is None or task.is_clone):
            return DmCloneRestore(self._pool, *parts)
        return FuseRestore(*parts)

    def _state_lost(self, volume_id: str) -> FillStateLost:
        return FillStateLost(id=volume_id, folder=self._state)


def _forget(one: FuseRestore) -> None:
    try:
        one.remove()
    except errors.LunrError as error:  # the next start tries again
        _log.error("%s", error)
