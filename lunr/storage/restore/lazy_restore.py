"""One lazy restore: a volume that is used before all of it is local."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from lunr.backup.lazy_image.missing_extents import MissingExtents
from lunr.common.extents import Extent
from lunr.storage.restore.backend import Backend
from lunr.storage.restore.record import RestoreRecord
from lunr.storage.restore.spec import RestoreSpec
from lunr.storage.restore.status import RestoreSettings, RestoreStatus
from lunr.storage.restore.supervisor import ProcessSupervisor


class LazyRestore:
    """A volume from its restore until the pool's device alone serves it.

    Attributes:
        volume_id: the volume.
        is_reported: whether the API knows that the volume is full.
    """

    def __init__(
        self, record: RestoreRecord, supervisor: ProcessSupervisor, backend: Backend
    ) -> None:
        """Nothing is done yet: `load` or `create` follows, then `start`."""
        self.volume_id = record.volume_id
        self.is_reported = False
        self._record = record
        self._supervisor = supervisor
        self._backend = backend
        #: Held by a thread that ends the restore: the watch of the exports makes a volume plain
        #: that a job removes or the agent closes.
        self._ending = threading.Lock()
        self._removed = False

    # --- what there is ---------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The file or device that exports open until the volume is plain."""
        return self._backend.path

    @property
    def spec(self) -> RestoreSpec | None:
        """What the volume is restored from; None: nothing is kept."""
        return self._record.spec

    @property
    def status(self) -> RestoreStatus:
        """How far the fill is, and what is wrong with it."""
        return self._record.status

    @property
    def is_filled(self) -> bool:
        """Whether all blocks are local."""
        return self.status.filled

    @property
    def is_plain(self) -> bool:
        """Whether the volume is an ordinary one: full, and served by the pool's device alone."""
        spec = self.spec
        return spec is not None and spec.is_filled and not self._backend.is_in_place

    @property
    def holds_device(self) -> bool:
        """Whether no target can open the pool's device as long as :attr:`path` is open."""
        return self._backend.holds_device

    @property
    def generation_to_reopen(self) -> int | None:
        """Which process's file exports must open in the place of an earlier one's; None: none."""
        return self._backend.generation_to_reopen

    def mark_reopened(self, generation: int) -> None:
        """Take note that exports have the file of that process open."""
        self._backend.mark_reopened(generation)

    def describe(self) -> dict[str, Any]:
        """How far the restore is, for operators."""
        spec, status = self.spec, self.status
        return {
            "backup_id": None if spec is None else spec.backup_id,
            "path": str(self.path),
            "done": status.done,
            "total": status.total,
            "rate": status.rate,
            "remaining": status.remaining,
            "damaged": status.damaged,
            "missing": status.missing,
            "trouble": status.trouble,
            "damage": status.damage_sentences,
        }

    # --- its life --------------------------------------------------------------------

    def load(self) -> bool:
        """Read what an earlier agent kept; whether there is something."""
        is_kept = self._record.load()
        self._backend.load()
        return is_kept

    def create(self, spec: RestoreSpec, gaps: MissingExtents | None = None) -> None:
        """Keep the spec of a volume that is zeros, or that lacks just `gaps`."""
        self._record.create(spec, gaps)

    def start(self) -> None:
        """Serve the volume from now on."""
        if not self.is_plain:
            self._backend.start()

    def wait_usable(self, check_cancelled: Callable[[], None]) -> None:
        """Return when the volume can be used; `check_cancelled` is called meanwhile and may raise.

        Raises:
            RestoreProcessDied: it can't be, for a reason that may pass.
            errors.RemoteError: the process said why.
        """
        spec = self.spec
        if spec is None or not spec.is_filled:
            self._supervisor.wait_mounted(check_cancelled)

    def apply_settings(self, settings: RestoreSettings) -> None:
        """Fill so from now on, and try damaged parts again."""
        self._record.set_status(lambda status: status.with_new_settings())
        self._backend.apply_settings(settings)

    def wait_for_change(self, seconds: float) -> None:
        """Wait until the status changes, but not for longer."""
        with self._record.changed:
            self._record.changed.wait(seconds)

    def wake_waiting(self) -> None:
        """End the waits for a change."""
        with self._record.changed:
            self._record.changed.notify_all()

    def freeze(self) -> AbstractContextManager[list[Extent]]:
        """The absent extents, in order; they stay absent inside: take a snapshot.

        Only one thread is inside; others wait.

        Raises:
            RestoreBusy: they did not stay absent, or nothing says which they are.
        """
        return self._backend.freeze()

    def idle_seconds(self) -> float:
        """Seconds since the last request of an initiator; 0 where that is unknown."""
        return self._backend.idle_seconds()

    def extend(self) -> bool:
        """Have :attr:`path` be as large as the pool's device, while it is open; False: it can't."""
        return self._backend.extend()

    def make_plain(self) -> bool:
        """Have the pool's device alone serve a full volume, if nobody has :attr:`path` open.

        Returns whether that is so. Nobody may begin to open :attr:`path` meanwhile.
        """
        with self._ending:
            if self.is_plain:
                return True
            if not self.is_filled or self._removed or not self._backend.remove_from_path():
                return False
            self._record.set_status(lambda status: status.as_plain())
            return True

    def close(self) -> None:
        """End what serves the volume, whoever has it open; all that is kept stays.

        Raises:
            RestoreBusy: it can't be ended.
        """
        self._backend.stop()
        with self._ending:  # `make_plain` removes what this looks at
            self._backend.close()

    def remove(self) -> None:
        """End the restore, and forget all of it; the pool's volume stays.

        Raises:
            RestoreBusy: it can't be ended.
        """
        with self._ending:
            self._removed = True
        self.close()
        self._backend.delete()
        self._record.delete()
