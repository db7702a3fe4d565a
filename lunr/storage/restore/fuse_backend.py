"""A lazy restore through FUSE: a process serves the volume as a file, and fills the pool's device.

Exports have the process's file open. When a process dies and another takes its place, they must
open the new one's file.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lunr.common import ids
from lunr.common.extents import Extent
from lunr.storage.engine import Engine
from lunr.storage.restore.process import RestoreProcess
from lunr.storage.restore.record import RestoreRecord
from lunr.storage.restore.status import RestoreSettings
from lunr.storage.restore.supervisor import ProcessSupervisor

#: A file in the run folder: exports have the file of an earlier process open.
_STALE = "stale"


class FuseBackend:
    """Serves and fills one volume by a process of lunr/backup/lazy_image/process.py."""

    #: The pool's device can be exported beside the process's file.
    holds_device = False
    is_in_place = False

    def __init__(
        self,
        record: RestoreRecord,
        supervisor: ProcessSupervisor,
        engine: Engine,
        on_replaced: Callable[[str], None],
    ) -> None:
        """Nothing is done yet.

        Args:
            record: the lazy restore.
            supervisor: keeps the process.
            engine: how the store is reached.
            on_replaced: called with the volume's id when another process serves the volume.
        """
        self._record = record
        self._supervisor = supervisor
        self._engine = engine
        self._on_replaced = on_replaced
        self._generation = 0
        #: A process that was there before goes on as it does, until settings come.
        self._settings: RestoreSettings | None = None
        #: The process and its count of requests when that was asked last, and when it had changed.
        self._requests: tuple[RestoreProcess | None, int] = (None, 0)
        self._used_at = 0.0

    @property
    def path(self) -> Path:
        """The file of the process."""
        return self._record.mounted_file

    def load(self) -> None:
        """Nothing but the process is left by an earlier agent."""

    def start(self) -> None:
        """Have a process serve the volume, until it is removed from the path."""
        spec = self._record.spec
        if spec is None or not spec.is_filled:
            self._supervisor.start(self)

    def apply_settings(self, settings: RestoreSettings) -> None:
        """See :class:`Backend`."""
        with self._record.changed:
            self._settings = settings
            self._supervisor.send(*settings.commands())

    @contextlib.contextmanager
    def freeze(self) -> Iterator[list[Extent]]:
        """See :class:`Backend`. Writes to absent extents wait inside."""
        with self._supervisor.freeze() as extents:
            yield [Extent(offset, offset + length) for offset, length in extents]

    def idle_seconds(self) -> float:
        """See :class:`Backend`; counted from the first call on."""
        asked = self._supervisor.ask_requests()
        if asked is None:
            return 0.0
        process, answer = asked
        now, seen = time.monotonic(), (process, answer["count"])
        if answer["under_way"] or seen != self._requests:
            self._requests, self._used_at = seen, now
        return now - self._used_at

    def extend(self) -> bool:
        """The file keeps its size."""
        return False

    def remove_from_path(self) -> bool:
        """End the process, if nobody has its file open; the maps go."""
        if not self._supervisor.unmount():
            return False
        self._record.write_spec(replace(self._record.need_spec(), is_filled=True))
        self._record.delete_maps()
        self._record.delete_run()
        return True

    def stop(self) -> None:
        """The process serves until it ends."""

    def close(self) -> None:
        """See :class:`Backend`."""
        self._supervisor.end()

    def delete(self) -> None:
        """All that is kept is in the restore's folders."""

    # --- exports and the process they have open --------------------------------------------

    @property
    def generation_to_reopen(self) -> int | None:
        """See :class:`Backend`.

        It is kept in a file: an agent may be killed after the start of a process and before
        exports have opened its file.
        """
        with self._record.changed:
            is_stale = self._supervisor.is_mounted and self._stale_file.exists()
            return self._generation if is_stale else None

    def mark_reopened(self, generation: int) -> None:
        """See :class:`Backend`."""
        with self._record.changed:
            if generation == self._generation:  # else a process was started meanwhile
                self._stale_file.unlink(missing_ok=True)

    @property
    def _stale_file(self) -> Path:
        return self._record.run / _STALE

    # --- the process -----------------------------------------------------------------------

    def process_task(self) -> dict[str, Any]:
        """See :class:`ProcessUser`."""
        record, spec = self._record, self._record.need_spec()
        return {
            "task": "volume",
            **self._engine.access(),
            "repository": ids.check(spec.repository),
            "backup_id": ids.check(spec.backup_id),
            "mountpoint": str(record.mountpoint),
            "target": str(record.device()),
            "size_bytes": spec.size_bytes,
            "target_is_zero": True,
            "map": str(record.presence_file),
            "live": str(record.run / "live"),
            "gaps": str(record.gaps_file) if record.gaps_file.exists() else None,
            "fill": "never",
        }

    def before_spawn(self) -> None:
        """Exports are to open the file of the process that comes."""
        with self._record.changed:
            self._generation += 1
            self._stale_file.touch()

    def prepare_use(self, process: RestoreProcess) -> None:
        """Exports use the file that the process has mounted."""

    def on_usable(self, process: RestoreProcess) -> None:
        """Have the process fill as it should, and exports open the file of a new one."""
        with self._record.changed:
            if self._settings is not None:
                self._supervisor.send(*self._settings.commands())
        if not process.is_new:
            return
        self._record.set_status(lambda status: status.without_trouble())
        # Not here: the thread that changes an export may be waiting for this one's events.
        threading.Thread(
            target=self._on_replaced, args=(self._record.volume_id,), daemon=True
        ).start()
