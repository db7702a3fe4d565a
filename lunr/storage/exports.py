"""Keeps the exports of a node as they ought to be."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from lunr.common import errors, ids
from lunr.storage.restore.fuse_restore import FuseRestore
from lunr.storage.restore.registry import RestoreRegistry
from lunr.storage.targets.base import Export, Session, Target

_log = logging.getLogger(__name__)

Sessions = Mapping[str, list[Session]]

#: Seconds until what failed is tried again, twice as long each time.
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
#: Seconds without a request after which a full volume's export is moved to the pool's file.
_QUIET = 2.0
#: The targets whose `reopen` loses no command, whatever initiators are at: tgt's are cut off before
#: one can be refused, and send it again. The kernel's target is gone for a moment.
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
    """What `target` is to export, put back whenever it is gone; `fillings` knows the files.

    What is done to one volume is done by one thread at a time, and keeps no other waiting.
    """

    def __init__(self, fillings: RestoreRegistry, target: Target) -> None:
        self._fillings = fillings
        self._target = target
        self._wanted: dict[str, Mapping[str, Any]] = {}
        #: Of these, those whose last attempt failed: what the target shows may be half of one.
        self._broken: set[str] = set()
        #: Of these, those that fill no more but for the name: the pool's own file is exported.
        self._past: set[str] = set()
        self._pauses: dict[str, _RetryDelay] = {}
        #: Those that were detached while `restore` asks what there ought to be; None: it does not.
        self._detached: set[str] | None = None
        #: Held for moments only: by who changes what is wanted, or looks for a volume's lock.
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._sessions: Sessions = {}

    def _alone_with(self, volume_id: str) -> threading.Lock:
        """Held by who does something to the export of the volume."""
        with self._lock:
            return self._locks.setdefault(volume_id, threading.Lock())

    def attach(self, volume_id: str, wanted: Mapping[str, Any]) -> None:
        """Export the volume as `wanted`: the payload of ``export.create``."""
        with self._alone_with(volume_id):
            self._attach(volume_id, wanted)
            with self._lock:
                self._wanted[volume_id] = wanted

    def _attach(self, volume_id: str, wanted: Mapping[str, Any]) -> None:
        filling = self._fillings.get(volume_id)
        stale = None if filling is None else filling.stale
        export = self._export(volume_id, wanted)
        was_there = stale is not None and volume_id in self._target.exports()
        self._past.discard(volume_id)
        self._target.ensure(export)
        if was_there:
            self._target.reopen(export)
        if filling is not None and stale is not None:
            filling.reopened(stale)
        self._broken.discard(volume_id)

    def _export(self, volume_id: str, wanted: Mapping[str, Any]) -> Export:
        return Export(
            volume_id=ids.check(volume_id, "volume_id"),
            path=self._fillings.path(volume_id),
            **{name: wanted[name] for name in ("iqn", "lun", "username", "password", "serial")},
            initiator=wanted.get("initiator"),
            ip=wanted.get("ip"),
            read_iops=wanted.get("read_iops", 0),
            write_iops=wanted.get("write_iops", 0),
        )

    def detach(self, volume_id: str, force: bool = False) -> None:
        """Stop exporting the volume.

        Raises:
            errors.InUse: an initiator is logged in, and not `force`.
        """
        with self._alone_with(volume_id):
            self._target.remove(volume_id, force)
            with self._lock:
                self._wanted.pop(volume_id, None)
                if self._detached is not None:
                    self._detached.add(volume_id)
            self._broken.discard(volume_id)
            self._pauses.pop(volume_id, None)
            self._settle(volume_id)

    def drop_stray(self, volume_id: str) -> None:
        """Stop exporting a volume that was found exported, unless it was asked for meanwhile.

        Raises:
            errors.InUse: an initiator is logged in.
        """
        with self._alone_with(volume_id):
            if volume_id not in self._wanted:
                self._target.remove(volume_id)
                self._settle(volume_id)

    def resize(self, volume_id: str) -> None:
        """Have initiators see that the volume is larger now, if it is exported."""
        with self._alone_with(volume_id):
            filling = self._fillings.get(volume_id)
            wanted = self._wanted.get(volume_id)
            if filling is None or filling.is_settled or wanted is None or filling.grow():
                self._target.resize(volume_id)
                return
            # It was exported while it was filled, by a file that keeps its size.
            self._export_target(volume_id, wanted)
            self._settle(volume_id)

    def _export_target(self, volume_id: str, wanted: Mapping[str, Any]) -> None:
        """Have the pool's own file open instead of the one that the volume was filled by."""
        export = self._export(volume_id, wanted)
        self._target.reopen(replace(export, path=self._fillings.target(volume_id)))
        self._past.add(volume_id)

    def remount(self, volume_id: str) -> None:
        """Open anew what is exported of a filling volume, whose process is another now."""
        with self._alone_with(volume_id):
            self._try(volume_id, self._put_back)

    def _leave(self, volume_id: str) -> None:
        """Move the export of a full volume to the pool's file, and end the process."""
        wanted = self._wanted.get(volume_id)
        filling = self._fillings.get(volume_id)
        if wanted is not None and filling is not None and filling.holds_target:
            with contextlib.suppress(errors.InUse):  # somebody has just come
                self._target.remove(volume_id)
                self._put_back(volume_id)
            return
        if wanted is not None and volume_id not in self._past:
            self._export_target(volume_id, wanted)
        self._settle(volume_id)

    def _leave_if_quiet(self, volume_id: str) -> None:
        """The same, while somebody is logged in: between two requests, who notices nothing."""
        filling = self._fillings.get(volume_id)
        if filling is not None and filling.quiet() >= _QUIET:
            self._leave(volume_id)

    def _settle(self, volume_id: str) -> None:
        """From the next attachment on use the pool's file of a volume that is full."""
        try:
            filling = self._fillings.get(volume_id)
            if filling is not None:
                filling.settle()
        except errors.LunrError as error:
            _log.warning("volume %s: %s", volume_id, error)

    def _put_back(self, volume_id: str) -> None:
        wanted = self._wanted.get(volume_id)
        if wanted is not None:
            self._broken.add(volume_id)
            self._attach(volume_id, wanted)

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
        """Have `work` tried by a thread of its own, unless somebody is at that volume just now."""
        pause = self._pauses.get(volume_id)
        if pause is not None and time.monotonic() < pause.until:
            return
        alone = self._alone_with(volume_id)
        if not alone.acquire(blocking=False):
            return

        def do() -> None:
            try:
                self._try(volume_id, work)
            finally:
                alone.release()

        threading.Thread(target=do, name=f"export-{volume_id}", daemon=True).start()

    def detach_all(self) -> None:
        """Stop exporting every volume, whoever is logged in; log what can't be stopped."""
        for volume_id in self.present().keys() | self._wanted.keys():
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
            wanted = {str(one["volume_id"]): one for one in ask()}
        finally:
            with self._lock:
                gone, self._detached = self._detached, None
        with self._lock:
            wanted = {id: one for id, one in wanted.items() if id not in gone}
            self._wanted.update(wanted)
        for volume_id in wanted:
            with self._alone_with(volume_id):
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
            wanted = set(self._wanted)
        there = self._target.exports()
        missing = {id for id in wanted - there.keys() if not self._alone_with(id).locked()}
        for volume_id in missing - self._broken:
            _log.warning("the export of volume %s is gone; putting it back", volume_id)
        was_missing = bool(missing - self._broken)
        for volume_id in missing | (wanted & self._broken):
            self._beside(volume_id, self._put_back)
        for filling in self._fillings.all():
            self._look_at(filling, there.get(filling.volume_id), filling.volume_id in wanted)
        sessions = {volume_id: who for volume_id, who in there.items() if who}
        look = TargetChanges(sessions_changed=sessions != self._sessions, was_missing=was_missing)
        self._sessions = sessions
        return look

    def _look_at(self, filling: FuseRestore, who: list[Session] | None, is_wanted: bool) -> None:
        """See whether a filling volume's export is to be made anew; `who` is logged in."""
        if is_wanted and who is not None and filling.stale is not None:
            self._beside(filling.volume_id, self._put_back)
        elif filling.is_filled and not filling.is_settled:
            if not who:
                self._beside(filling.volume_id, self._leave)
            elif self._target.name in _REOPENED_UNNOTICED:
                self._beside(filling.volume_id, self._leave_if_quiet)
