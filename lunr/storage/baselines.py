"""The snapshots that are kept so that a volume's next backup need not read all of it.

When a backup is done, the snapshot that it was read from is its volume's
*baseline*, with the backup's id: what has changed since then is what has
changed since that backup. Nobody asked for it, and nothing but time is lost
without it. So there is one for each volume at most, it goes with its volume,
and it is the first thing that is given up: when the pool gets full, when it is old,
when it is lost.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Collection, Iterator

from lunr.common import errors
from lunr.storage.pools.base import Pool, Purpose, Snapshot

_log = logging.getLogger(__name__)

_DAY = 86400.0
#: Seconds between two looks for what is to be given up: mostly, and while the pool is tight.
_LOOK_EVERY = 600.0
_LOOK_EVERY_TIGHT = 10.0
#: Seconds that a look may take; the pool must be looked after.
_LOOK_TIME = 5.0


class Baselines:
    """The baselines in `pool`; any thread may use them.

    Args:
        pool: where they are.
        keep: whether there are to be any.
        days: how old one may get.
    """

    def __init__(self, pool: Pool, *, keep: bool, days: float) -> None:
        self._pool = pool
        self._keep = keep
        self._max_age = days * _DAY
        self._lock = threading.Lock()
        self._in_use: set[Snapshot] = set()
        self._looked = -_LOOK_EVERY

    @contextlib.contextmanager
    def using(self, volume_id: str, backup_id: str) -> Iterator[Snapshot | None]:
        """The baseline of that backup, if it is there; it stays while the ``with`` lasts."""
        wanted = Snapshot(volume_id, backup_id, Purpose.BASELINE)
        with self._lock:
            self._in_use.add(wanted)
        try:
            yield wanted if wanted in self._of(volume_id) else None
        finally:
            with self._lock:
                self._in_use.discard(wanted)

    def keep(self, snapshot: Snapshot) -> None:
        """Make the `snapshot` of a backup that is done the only baseline of its volume.

        If that can't be, there is just no such snapshot any more.

        Raises:
            errors.LunrError: not even that can be.
        """
        try:
            kept = self._keep and not self._pool.capacity().tight
            if kept:
                self._pool.repurpose(snapshot, Purpose.BASELINE)
        except errors.LunrError as error:
            _log.warning("the snapshot of backup %s can't be kept: %s", snapshot.id, error)
            kept = False
        if not kept:
            self._pool.delete_snapshot(snapshot)
        try:
            for other in self._of(snapshot.volume_id):
                if other.id != snapshot.id:
                    self._pool.delete_snapshot(other)
        except errors.LunrError as error:  # with the next backup, or when they are too old
            _log.warning("older references stay: %s", error)

    def give_up(self, volume_id: str, backup_id: str) -> None:
        """See that the baseline of that backup is gone.

        Raises:
            errors.InUse: somebody has it open.
        """
        self._pool.delete_snapshot(Snapshot(volume_id, backup_id, Purpose.BASELINE))

    def is_valid(self, baseline: Snapshot, volumes: Collection[str]) -> bool:
        """Whether a baseline that was there at the start may stay, beside those `volumes`."""
        return self._keep and baseline.volume_id in volumes

    def look(self, tight: bool) -> bool:
        """Now and then, give up what is old or lost, and all, the oldest first, in a `tight` pool.

        Returns whether something was given up.

        Raises:
            errors.LunrError: the pool does not tell what is there.
        """
        began = time.monotonic()
        if began - self._looked < (_LOOK_EVERY_TIGHT if tight else _LOOK_EVERY):
            return False
        self._looked = began
        lost = self._pool.lost_snapshots()
        found = False
        by_age = sorted(self._pool.baselines().items(), key=lambda one: one[1])
        for baseline, made_at in by_age:
            if time.monotonic() - began > _LOOK_TIME:
                break
            with self._lock:
                if baseline in self._in_use:
                    continue
            if baseline in lost:
                why = "it is lost"
            elif time.time() - made_at > self._max_age:
                why = "it is too old"
            elif tight:
                why = "the pool gets full"
            else:
                continue
            found |= self._try_to_give_up(baseline, why)
        return found

    def _of(self, volume_id: str) -> list[Snapshot]:
        """The baselines of a volume: one, or more where a process was killed."""
        return [one for one in self._pool.baselines() if one.volume_id == volume_id]

    def _try_to_give_up(self, baseline: Snapshot, why: str) -> bool:
        _log.info(
            "giving up the snapshot of backup %s of volume %s: %s",
            *(baseline.id, baseline.volume_id, why),
        )
        try:
            self._pool.delete_snapshot(baseline)
        except errors.LunrError as error:
            _log.warning("%s It will be tried again.", error)
            return False
        return True
