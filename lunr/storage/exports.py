"""Keeps the exports of a node as they ought to be."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from lunr.common import errors, ids
from lunr.storage.filling.fillings import Fillings
from lunr.storage.targets.base import Export, Session, Target

_log = logging.getLogger(__name__)

Sessions = Mapping[str, list[Session]]


class Look(NamedTuple):
    """What was new when the target was looked at."""

    sessions_changed: bool
    was_missing: bool


class Exports:
    """What `target` is to export, put back whenever it is gone; `fillings` knows the files."""

    def __init__(self, fillings: Fillings, target: Target) -> None:
        self._fillings = fillings
        self._target = target
        self._wanted: dict[str, Mapping[str, Any]] = {}
        #: Of these, those that fill no more but for the name: the pool's own file is exported.
        self._past: set[str] = set()
        self._lock = threading.Lock()
        self._sessions: Sessions = {}

    def attach(self, volume_id: str, wanted: Mapping[str, Any]) -> None:
        """Export the volume as `wanted`: the payload of ``export.create``."""
        with self._lock:
            self._attach(volume_id, wanted)

    def _attach(self, volume_id: str, wanted: Mapping[str, Any]) -> None:
        export = self._export(volume_id, wanted)
        filling = self._fillings.get(volume_id)
        is_stale = filling is not None and filling.is_stale
        was_there = is_stale and volume_id in self._target.exports()
        self._past.discard(volume_id)
        self._target.ensure(export)
        if was_there:
            self._target.reopen(export)
        if filling is not None:
            filling.is_stale = False
        self._wanted[volume_id] = wanted

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
        with self._lock:
            self._target.remove(volume_id, force)
            self._wanted.pop(volume_id, None)
            self._settle(volume_id)

    def drop_stray(self, volume_id: str) -> None:
        """Stop exporting a volume that was found exported, unless it was asked for meanwhile.

        Raises:
            errors.InUse: an initiator is logged in.
        """
        with self._lock:
            if volume_id not in self._wanted:
                self._target.remove(volume_id)
                self._settle(volume_id)

    def resize(self, volume_id: str) -> None:
        """Have initiators see that the volume is larger now, if it is exported."""
        with self._lock:
            filling = self._fillings.get(volume_id)
            wanted = self._wanted.get(volume_id)
            if filling is None or filling.is_settled or wanted is None:
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
        with self._lock:
            if volume_id in self._wanted:
                self._put_back(volume_id)

    def _leave(self, volume_id: str) -> None:
        """Whoever logs in next to a volume that is full uses the pool's file; nobody is now."""
        wanted = self._wanted.get(volume_id)
        try:
            if wanted is not None and volume_id not in self._past:
                self._export_target(volume_id, wanted)
        except errors.LunrError as error:
            _log.warning("volume %s: %s", volume_id, error)
            return
        self._settle(volume_id)

    def _settle(self, volume_id: str) -> None:
        """From the next attachment on use the pool's file of a volume that is full."""
        try:
            filling = self._fillings.get(volume_id)
            if filling is not None:
                filling.settle()
        except errors.LunrError as error:
            _log.warning("volume %s: %s", volume_id, error)

    def _put_back(self, volume_id: str) -> None:
        try:
            self._attach(volume_id, self._wanted[volume_id])
        except errors.LunrError as error:
            _log.error("volume %s can't be exported: %s", volume_id, error)

    def detach_all(self) -> None:
        """Stop exporting every volume, whoever is logged in; log what can't be stopped."""
        for volume_id in self.present().keys() | self._wanted.keys():
            try:
                self.detach(volume_id, force=True)
            except errors.LunrError as error:
                _log.error("volume %s is still exported: %s", volume_id, error)

    def restore(self, ask: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        """Export all that `ask` says, as far as possible; log what is not.

        It is asked when no job can detach: what it says is true until it is done.
        """
        with self._lock:
            for wanted in ask():
                volume_id = str(wanted["volume_id"])
                try:
                    self._attach(volume_id, wanted)
                except errors.LunrError as error:
                    _log.error("volume %s can't be exported: %s", volume_id, error)

    def present(self) -> Sessions:
        """The volumes that are exported now, and who is logged in."""
        return self._target.exports()

    def sessions(self) -> Sessions:
        """Who was logged in when `watch` looked last."""
        return self._sessions

    def watch(self) -> Look:
        """Look at the target once, and put back what is missing.

        Raises:
            TargetUnavailable: it can't be reached.
        """
        with self._lock:
            there = self._target.exports()
            missing = self._wanted.keys() - there.keys()
            for volume_id in missing:
                _log.warning("the export of volume %s is gone; putting it back", volume_id)
                self._put_back(volume_id)
            for filling in self._fillings.all():
                volume_id = filling.volume_id
                if volume_id in there and filling.is_stale and volume_id in self._wanted:
                    self._put_back(volume_id)
                elif filling.is_filled and not filling.is_settled and not there.get(volume_id):
                    self._leave(volume_id)
        sessions = {volume_id: who for volume_id, who in there.items() if who}
        look = Look(sessions_changed=sessions != self._sessions, was_missing=bool(missing))
        self._sessions = sessions
        return look
