"""Keeps the exports of a node as the API requests them."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lunr.common import errors, ids
from lunr.storage.restore.handover import Handover, State, Step
from lunr.storage.restore.registry import RestoreRegistry
from lunr.storage.targets.base import Export, Session, Target

_log = logging.getLogger(__name__)

Sessions = Mapping[str, list[Session]]

#: Seconds until what failed is tried again, twice as long each time.
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
#: The targets whose `reopen` loses no command of initiators: tgt's are cut off before a command can
#: be refused, and send it again. The kernel's target is gone for a moment.
_REOPENED_UNNOTICED = {"tgt"}


class TargetChanges(NamedTuple):
    """What was new when the target was looked at."""

    sessions_changed: bool
    was_missing: bool


class _RetryDelay(NamedTuple):
    """When what failed is tried again (of time.monotonic), and the seconds until then."""

    until: float
    seconds: float


class Exports:
    """The exports of `target`, put back whenever they are gone; `restores` has the lazy restores.

    One thread at a time changes the export of a volume; other volumes do not wait for it.
    """

    def __init__(self, restores: RestoreRegistry, target: Target) -> None:
        self._restores = restores
        self._target = target
        self._requested: dict[str, Mapping[str, Any]] = {}
        #: Of these, those whose last attempt failed: what the target shows may be half made.
        self._broken: set[str] = set()
        self._handovers: dict[str, Handover] = {}
        self._pauses: dict[str, _RetryDelay] = {}
        #: Those that were detached while `restore` asks the API; None: it does not.
        self._detached: set[str] | None = None
        #: Held for moments only: to change what is requested, or to find a volume's lock.
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._sessions: Sessions = {}

    def _lock_of(self, volume_id: str) -> threading.Lock:
        """Held by a thread that changes the export of the volume."""
        with self._lock:
            return self._locks.setdefault(volume_id, threading.Lock())

    def _handover(self, volume_id: str) -> Handover | None:
        """The handover of the volume's lazy restore; None: it is an ordinary volume.

        Raises:
            RestoreStateLost: it is unknown which blocks of it are local.
        """
        restore = self._restores.get(volume_id)
        with self._lock:
            handover = self._handovers.get(volume_id)
            if restore is None:
                self._handovers.pop(volume_id, None)
                return None
            if handover is None or handover.restore is not restore:
                handover = Handover(restore, lambda: self._restores.device(volume_id))
                self._handovers[volume_id] = handover
        return handover

    def attach(self, volume_id: str, request: Mapping[str, Any]) -> None:
        """Export the volume by `request`: the payload of ``export.create``."""
        with self._lock_of(volume_id):
            self._make(volume_id, request)
            with self._lock:
                self._requested[volume_id] = request

    def _make(self, volume_id: str, request: Mapping[str, Any]) -> None:
        handover = self._handover(volume_id)
        if handover is None:
            self._target.ensure(self._export(volume_id, request, self._restores.device(volume_id)))
            self._broken.discard(volume_id)
            return
        generation = handover.restore.generation_to_reopen
        path = handover.choose_path()
        export = self._export(volume_id, request, path)
        # What is open by the same path is the file of a dead process.
        is_stale = generation is not None and path == handover.restore.path
        must_reopen = is_stale and volume_id in self._target.exports()
        self._target.ensure(export)
        if must_reopen:
            self._target.reopen(export)
        handover.note_opened(path, generation)
        self._broken.discard(volume_id)

    def _export(self, volume_id: str, request: Mapping[str, Any], path: Path) -> Export:
        return Export(
            volume_id=ids.check(volume_id, "volume_id"),
            path=path,
            **{name: request[name] for name in ("iqn", "lun", "username", "password", "serial")},
            initiator=request.get("initiator"),
            ip=request.get("ip"),
            read_iops=request.get("read_iops", 0),
            write_iops=request.get("write_iops", 0),
        )

    def detach(self, volume_id: str, force: bool = False) -> None:
        """Stop exporting the volume.

        Raises:
            errors.InUse: an initiator is logged in, and not `force`.
        """
        with self._lock_of(volume_id):
            self._target.remove(volume_id, force)
            with self._lock:
                self._requested.pop(volume_id, None)
                if self._detached is not None:
                    self._detached.add(volume_id)
            self._broken.discard(volume_id)
            self._pauses.pop(volume_id, None)
            self._note_removed(volume_id)

    def remove_unknown(self, volume_id: str) -> None:
        """Stop exporting a volume that was found exported, unless it was requested meanwhile.

        Raises:
            errors.InUse: an initiator is logged in.
        """
        with self._lock_of(volume_id):
            if volume_id not in self._requested:
                self._target.remove(volume_id)
                self._note_removed(volume_id)

    def _note_removed(self, volume_id: str) -> None:
        try:
            handover = self._handover(volume_id)
            if handover is not None:
                handover.note_removed()
        except errors.LunrError as error:
            _log.warning("volume %s: %s", volume_id, error)

    def resize(self, volume_id: str) -> None:
        """Have initiators see that the volume is larger now, if it is exported."""
        with self._lock_of(volume_id):
            handover = self._handover(volume_id)
            if (
                handover is None
                or volume_id not in self._requested
                or handover.refresh() in (State.RELEASED, State.PLAIN)
                or handover.restore.extend()
            ):
                self._target.resize(volume_id)
            else:  # the file of the restore keeps its size
                handover.hand_over(_Mover(self, volume_id))

    def reopen(self, volume_id: str) -> None:
        """Have the export open the file of the process that has replaced another."""
        with self._lock_of(volume_id):
            self._try(volume_id, self._put_back)

    def _hand_over(self, volume_id: str) -> None:
        """Move the export of a full volume to the pool's device, and end the process."""
        handover = self._handover(volume_id)
        if handover is not None:
            is_exported = volume_id in self._requested
            with contextlib.suppress(errors.InUse):  # an initiator has just logged in
                handover.hand_over(_Mover(self, volume_id) if is_exported else None)

    def _hand_over_when_idle(self, volume_id: str) -> None:
        """The same, while an initiator is logged in: between two requests, it notices nothing."""
        handover = self._handover(volume_id)
        if handover is not None and handover.is_idle():
            self._hand_over(volume_id)

    def _put_back(self, volume_id: str) -> None:
        request = self._requested.get(volume_id)
        if request is not None:
            self._broken.add(volume_id)
            self._make(volume_id, request)

    def _try(self, volume_id: str, work: Callable[[str], None]) -> None:
        """Do `work`; if it can't be done, not again for a while. The volume's lock is held."""
        try:
            work(volume_id)
        except errors.LunrError as error:
            _log.error("the export of volume %s is not as it ought to be: %s", volume_id, error)
            last = self._pauses.get(volume_id, _RetryDelay(0.0, _FIRST_PAUSE / 2)).seconds
            seconds = min(2 * last, _LONGEST_PAUSE)
            self._pauses[volume_id] = _RetryDelay(time.monotonic() + seconds, seconds)
        else:
            self._pauses.pop(volume_id, None)

    def _beside(self, volume_id: str, work: Callable[[str], None]) -> None:
        """Have `work` tried by a thread of its own, unless another is at that volume just now."""
        pause = self._pauses.get(volume_id)
        if pause is not None and time.monotonic() < pause.until:
            return
        lock = self._lock_of(volume_id)
        if not lock.acquire(blocking=False):
            return

        def do() -> None:
            try:
                self._try(volume_id, work)
            finally:
                lock.release()

        threading.Thread(target=do, name=f"export-{volume_id}", daemon=True).start()

    def detach_all(self) -> None:
        """Stop exporting every volume, whoever is logged in; log what can't be stopped."""
        for volume_id in self.present().keys() | self._requested.keys():
            try:
                self.detach(volume_id, force=True)
            except errors.LunrError as error:
                _log.error("volume %s is still exported: %s", volume_id, error)

    def restore(self, ask: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        """Export all that `ask` says; what can't be, `watch` tries again.

        What is detached while it is asked stays away.
        """
        with self._lock:
            self._detached = set()
        try:
            requested = {str(request["volume_id"]): request for request in ask()}
        finally:
            with self._lock:
                detached, self._detached = self._detached, None
        with self._lock:
            requested = {id: request for id, request in requested.items() if id not in detached}
            self._requested.update(requested)
        for volume_id in requested:
            with self._lock_of(volume_id):
                self._try(volume_id, self._put_back)

    def present(self) -> Sessions:
        """The volumes that are exported now, and who is logged in."""
        return self._target.exports()

    def sessions(self) -> Sessions:
        """Who was logged in when `watch` looked last."""
        return self._sessions

    def watch(self) -> TargetChanges:
        """Look at the target once, and put back what is missing.

        Raises:
            TargetUnavailable: it can't be reached.
        """
        with self._lock:
            requested = set(self._requested)
        present = self._target.exports()
        missing = {id for id in requested - present.keys() if not self._lock_of(id).locked()}
        for volume_id in missing - self._broken:
            _log.warning("the export of volume %s is gone; putting it back", volume_id)
        was_missing = bool(missing - self._broken)
        for volume_id in missing | (requested & self._broken):
            self._beside(volume_id, self._put_back)
        restores = [restore.volume_id for restore in self._restores.all()]
        for volume_id in restores:
            self._begin_step(volume_id, volume_id in requested, present.get(volume_id))
        with self._lock:
            for volume_id in self._handovers.keys() - set(restores):
                del self._handovers[volume_id]
        sessions = {volume_id: who for volume_id, who in present.items() if who}
        changes = TargetChanges(sessions != self._sessions, was_missing)
        self._sessions = sessions
        return changes

    def _begin_step(
        self, volume_id: str, is_requested: bool, sessions: list[Session] | None
    ) -> None:
        """Begin the next step of a lazy restore's handover."""
        try:
            handover = self._handover(volume_id)
        except errors.LunrError:  # the volume is being removed
            return
        if handover is None:
            return
        is_unnoticed = self._target.name in _REOPENED_UNNOTICED
        match handover.next_step(is_requested, sessions, is_unnoticed):
            case Step.REOPEN:
                self._beside(volume_id, self._put_back)
            case Step.HAND_OVER:
                self._beside(volume_id, self._hand_over)
            case Step.HAND_OVER_WHEN_IDLE:
                self._beside(volume_id, self._hand_over_when_idle)


class _Mover:
    """Changes what the export of one volume has open; its lock is held."""

    def __init__(self, exports: Exports, volume_id: str) -> None:
        self._exports = exports
        self._volume_id = volume_id

    def open_device(self) -> None:
        """See :class:`lunr.storage.restore.handover.ExportMover`."""
        exports, volume_id = self._exports, self._volume_id
        request, device = exports._requested[volume_id], exports._restores.device(volume_id)
        exports._target.reopen(exports._export(volume_id, request, device))

    def remove(self) -> None:
        """See :class:`lunr.storage.restore.handover.ExportMover`."""
        self._exports._target.remove(self._volume_id)

    def make(self) -> None:
        """See :class:`lunr.storage.restore.handover.ExportMover`."""
        self._exports._put_back(self._volume_id)
