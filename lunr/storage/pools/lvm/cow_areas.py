"""Looks after the COW areas of a group's snapshots: how large they begin, and when they grow."""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

from lunr.common import units
from lunr.storage import system
from lunr.storage.pools.base import PoolFull, Snapshot
from lunr.storage.pools.lvm import cow
from lunr.storage.pools.lvm.logical_volumes import LogicalVolume, Role
from lunr.storage.pools.lvm.volume_group import VolumeGroup, statuses

_log = logging.getLogger(__name__)

#: Seconds before an area that could not grow is tried again.
_RETRY = 10.0


class _GrowthBackoff(NamedTuple):
    """Until when (of time.monotonic) an area is left as it is, and why it could not grow."""

    until: float
    why: str


class CowAreas:
    """The COW areas in `group`.

    Args:
        group: where they are.
        where: the disks that they are made of, as words of a command.
        percent: share of its volume that an area begins with and grows by.
        grow_at: how full (0 to 1) it may be before it grows.

    Attributes:
        fullest: how full (0 to 1) the fullest is.
        lost: the snapshots whose bytes are gone.
    """

    #: Bytes of every area, if its volume can need them: room enough that a fast writer does
    #: not fill it between two looks.
    least = units.GIB

    def __init__(self, group: VolumeGroup, where: str, percent: int, grow_at: float) -> None:
        self._group = group
        self._where = where
        self._percent = percent
        self._grow_at = grow_at
        #: By device-mapper name; None: nobody looked since snapshots came or went.
        self._known: dict[str, LogicalVolume] | None = None
        #: By names, those that must grow and could not.
        self._stuck: dict[str, _GrowthBackoff] = {}
        self.fullest = 0.0
        self.lost: frozenset[Snapshot] = frozenset()

    @property
    def trouble(self) -> str:
        """Why an area that must grow can't, or ""."""
        return next((stuck.why for stuck in self._stuck.values()), "")

    def share_of(self, size: int) -> int:
        """Bytes that the area of a volume of `size` bytes begins with, and grows by."""
        share = max(size * self._percent // 100, self.least)
        return self._group.rounded(min(share, cow.room_for(size)))

    def changed(self) -> None:
        """Say that snapshots came or went."""
        self._known = None

    def look(self) -> None:
        """See how full they are, and enlarge those that need it."""
        known = self._known
        if known is None:
            # Before the command, so that what comes meanwhile is not missed.
            self._known = known = {}
            try:
                for lv in self._group.volumes():
                    if lv.origin and (lv.snapshot or lv.role is Role.BUILDING):
                        known[self._group.dm_name(lv.name)] = lv
            except BaseException:
                self._known = None
                raise
        if not known:
            self.fullest, self.lost, self._stuck = 0.0, frozenset(), {}
            return
        states = {name: state for name, state in self.states().items() if name in known}
        self._tell_lost({name for name, state in states.items() if state.lost}, known)
        living = {name: state.used for name, state in states.items() if not state.lost}
        self.fullest = max(living.values(), default=0.0)
        full = {known[name].name for name, used in living.items() if used >= self._grow_at}
        self._stuck = {name: stuck for name, stuck in self._stuck.items() if name in full}
        now = time.monotonic()
        if due := full - {name for name, stuck in self._stuck.items() if now < stuck.until}:
            self._grow(due)

    def states(self) -> dict[str, cow.Status]:
        """What the kernel says of each dm-snapshot on this machine, by device-mapper name."""
        return cow.parse_status(statuses("snapshot"))

    def _tell_lost(self, names: set[str], known: dict[str, LogicalVolume]) -> None:
        lost = {snapshot for name in names if (snapshot := known[name].snapshot)}
        for snapshot in lost - self.lost:
            _log.error("snapshot %s of volume %s is lost", snapshot.id, snapshot.volume_id)
        self.lost = frozenset(lost)

    def _grow(self, names: set[str]) -> None:
        lvs = self._group.volumes()
        sizes = {lv.name: lv.size for lv in lvs}
        for lv in lvs:
            if lv.name not in names or lv.origin not in sizes:
                continue
            origin = sizes[lv.origin]
            most = self._group.rounded(cow.room_for(origin))
            size = min(lv.size + self.share_of(origin), most)
            if size <= lv.size:  # it can't overflow
                continue
            try:
                self._group.extend(lv.name, size, self._where)
            except (PoolFull, system.CommandFailed, system.CommandTimeout) as error:
                why = f"the snapshot {lv.name} fills up and can't be enlarged: {error}"
                if lv.name not in self._stuck:
                    _log.error("%s", why)
                self._stuck[lv.name] = _GrowthBackoff(time.monotonic() + _RETRY, why)
            else:
                self._stuck.pop(lv.name, None)
                _log.info("%s: room for what is overwritten: %s", lv.name, units.human(size))
