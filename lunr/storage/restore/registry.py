"""All lazy restores of a node."""

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
from lunr.storage.restore.backend import Backend
from lunr.storage.restore.dm_clone.backend import LARGEST, DmCloneBackend
from lunr.storage.restore.fuse_backend import FuseBackend
from lunr.storage.restore.lazy_restore import LazyRestore
from lunr.storage.restore.record import RestoreRecord
from lunr.storage.restore.snapshot_gaps import SnapshotGaps
from lunr.storage.restore.spec import RestoreSpec
from lunr.storage.restore.supervisor import ProcessSupervisor

_log = logging.getLogger(__name__)


class RestoreStateLost(errors.LunrError):
    """What is known of the restore of volume {id} is gone from {folder}: nobody can tell which of its bytes were restored. Restore its backup to a new volume."""  # noqa: E501

    code = "fill_state_lost"


class RestoreRegistry:
    """The lazy restores of `pool`'s volumes; what is known of them is below `state`."""

    def __init__(
        self, pool: Pool, engine: Engine, state: Path, run: Path, *, dm_clone: bool = False
    ) -> None:
        """Nothing is done yet.

        Args:
            pool: has the volumes.
            engine: how the store is reached.
            state: a folder that survives a reboot.
            run: one that need not.
            dm_clone: whether dm-clone may fill new ones, if the pool is of devices.
        """
        self._pool = pool
        self._engine = engine
        self._state = state / "fillings"
        #: What users' snapshots lack that were taken of lazy restores.
        self.snapshot_gaps = SnapshotGaps(state / "lacking")
        self._run = self.folder_in(run)
        self._dm_clone = dm_clone
        self._lock = threading.Lock()
        self._all: dict[str, LazyRestore] = {}
        self._lost: set[str] = set()
        #: Called with the id of a volume that another process serves now.
        self.on_replaced: Callable[[str], None] = lambda _volume_id: None

    @staticmethod
    def folder_in(run: Path) -> Path:
        """Where below `run` the files are that serve the volumes."""
        return run / "fillings"

    def load(
        self, existing: Iterable[str], incomplete: Iterable[str], beginning: Iterable[str]
    ) -> None:
        """Have all lazy restores served again, as far as they are not.

        Args:
            existing: the ids of the pool's volumes.
            incomplete: the ids of those that the API does not know to be full.
            beginning: the ids of those whose `begin` is to come.
        """
        existing, incomplete = set(existing), set(incomplete)
        self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in sorted(self._state.iterdir()):
            if not ids.is_valid(folder.name):
                continue
            restore = self._make(folder.name)
            is_known = restore.load() and folder.name in existing
            restore.is_reported = folder.name not in incomplete
            if not is_known or (restore.is_plain and restore.is_reported):
                _forget(restore)  # a beginning, what a delete left, or the end
                continue
            with self._lock:
                self._all[folder.name] = restore
            restore.start()
        self._lost = incomplete & existing - self._all.keys() - set(beginning)
        for volume_id in self._lost:
            _log.error("%s", self._state_lost(volume_id))
        for restore in self.all():
            try:
                if not restore.is_plain:
                    restore.wait_usable(lambda: None)
            except errors.LunrError as error:
                _log.error("volume %s can't be served yet: %s", restore.volume_id, error)

    def known(self) -> frozenset[str]:
        """The volumes of which something is kept, before `load` as well."""
        if not self._state.exists():
            return frozenset()
        return frozenset(folder.name for folder in self._state.iterdir())

    def has(self, volume_id: str) -> bool:
        """Whether the node keeps what the volume is restored from."""
        return self._make(ids.check(volume_id)).load()

    def prepare(self, volume_id: str, spec: RestoreSpec, gaps: MissingExtents) -> None:
        """Keep what a volume is restored from that the pool will have but for `gaps`.

        `begin` goes on when the pool has the volume. FUSE fills it: dm-clone's own record of which
        blocks are local can be written by the kernel alone.
        """
        self._make(ids.check(volume_id), spec).create(spec, gaps)

    def begin(self, volume_id: str, spec: RestoreSpec, check_cancelled: Callable[[], None]) -> None:
        """Return when the volume, which the pool has, can be used; again: nothing.

        Args:
            volume_id: the volume; it is zeros, if it was not prepared.
            spec: what it is restored from.
            check_cancelled: called now and then; it may raise to give up.

        Raises:
            errors.LunrError: it can't.
        """
        ids.check(volume_id)
        self._lost.discard(volume_id)
        with self._lock:
            restore = self._all.get(volume_id)
            if restore is None:
                restore = self._make(volume_id)
                if not restore.load():
                    spec = replace(spec, is_clone=self._dm_clone and spec.size_bytes <= LARGEST)
                    restore = self._make(volume_id, spec)
                    restore.create(spec)
                self._all[volume_id] = restore
        restore.start()
        if not restore.is_plain:
            restore.wait_usable(check_cancelled)

    def get(self, volume_id: str) -> LazyRestore | None:
        """The lazy restore, until the API knows that it is full; None: an ordinary volume.

        Raises:
            RestoreStateLost: it is not full, and nobody knows what is missing.
        """
        if volume_id in self._lost:
            raise self._state_lost(volume_id)
        return self._all.get(volume_id)

    def need(self, volume_id: str) -> LazyRestore:
        """The same of a volume that the API does not know to be full.

        Raises:
            RestoreStateLost
        """
        restore = self.get(volume_id)
        if restore is None:
            raise self._state_lost(volume_id)
        return restore

    def path(self, volume_id: str) -> Path:
        """What to export of a volume.

        Raises:
            errors.NotFound: it is not there.
            RestoreStateLost
        """
        restore = self.get(volume_id)
        if restore is None or restore.make_plain():
            return self.device(volume_id)
        return restore.path

    def device(self, volume_id: str) -> Path:
        """Where the pool has a volume.

        Raises:
            errors.NotFound: it is not there.
        """
        return self._pool.path(volume_id)

    def all(self) -> list[LazyRestore]:
        """All of them."""
        with self._lock:
            return list(self._all.values())

    def full(self) -> list[str]:
        """The volumes that are full, and of which the API does not know it yet."""
        return sorted(
            restore.volume_id
            for restore in self.all()
            if restore.status.filled and not restore.is_reported
        )

    def troubles(self) -> dict[str, str]:
        """Why not all of a volume can be had now, for those of which that is so."""
        troubles = {restore.volume_id: restore.status.trouble for restore in self.all()}
        lost = {volume_id: str(self._state_lost(volume_id)) for volume_id in self._lost}
        return {id: reason for id, reason in (troubles | lost).items() if reason is not None}

    def remove(self, volume_id: str) -> None:
        """Forget the volume, and end its process; the pool's volume stays."""
        self._lost.discard(volume_id)
        with self._lock:
            restore = self._all.pop(volume_id, None)
        if restore is None:
            restore = self._make(ids.check(volume_id))
        restore.remove()

    def stop(self, volume_id: str) -> None:
        """End the volume's process; what is kept stays, for `begin`."""
        with self._lock:
            restore = self._all.pop(volume_id, None)
        if restore is not None:
            restore.close()

    def close(self) -> None:
        """End all processes; what is kept stays."""
        for restore in self.all():
            try:
                restore.close()
            except errors.LunrError as error:
                _log.error("%s", error)

    def _make(self, volume_id: str, spec: RestoreSpec | None = None) -> LazyRestore:
        """The lazy restore by `spec`, or by what is kept of it."""
        state = self._state / volume_id
        if spec is None:
            with contextlib.suppress(FileNotFoundError):
                spec = RestoreSpec.read(RestoreRecord.spec_file(state))
        run = self._run / volume_id
        record = RestoreRecord(volume_id, state, run, lambda: self._pool.path(volume_id))
        supervisor = ProcessSupervisor(record)
        backend: Backend
        # Of a restore without a spec there may be a device.
        if isinstance(self._pool, DevicePool) and (spec is None or spec.is_clone):
            backend = DmCloneBackend(record, supervisor, self._engine, self._pool)
        else:
            backend = FuseBackend(record, supervisor, self._engine, lambda id: self.on_replaced(id))
        return LazyRestore(record, supervisor, backend)

    def _state_lost(self, volume_id: str) -> RestoreStateLost:
        return RestoreStateLost(id=volume_id, folder=self._state)


def _forget(restore: LazyRestore) -> None:
    try:
        restore.remove()
    except errors.LunrError as error:  # the next start tries again
        _log.error("%s", error)
