"""Volumes in a thin pool of LVM (lvmthin(7)): they take what is written to them.

Snapshots and clones share the blocks of their source until one of them writes;
they are made at once and outlive their source. LVM holds the source's writes
back while it makes one, so it is of one moment. A block that is given out is
zeroed by the kernel first, unless the write covers all of it: no volume ever
shows what another one held (``check`` insists on that).

What differs between two of them is read from the pool's metadata. That takes
some ten seconds for a million of blocks that lie scattered, and no byte of
theirs is read.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from lunr.common import errors, ids, units
from lunr.common.extents import Extent
from lunr.storage import system
from lunr.storage.pools import extent_maps
from lunr.storage.pools.base import (
    Capacity,
    DevicePool,
    PoolFull,
    Purpose,
    Snapshot,
    Tick,
    no_tick,
    not_found,
)
from lunr.storage.pools.extent_maps import Run
from lunr.storage.pools.lvm.logical_volumes import ROLES, LogicalVolume, Role, tags_for
from lunr.storage.pools.lvm.volume_group import VolumeGroup, translated
from lunr.storage.pools.thin import status as thin_status
from lunr.storage.pools.thin.device import PoolDevice
from lunr.storage.pools.thin.status import Mode, ThinStatus

_log = logging.getLogger(__name__)

#: Role, id, volume's id.
_Key = tuple[Role, str, str]

#: How near to what makes the pool full baselines are given up.
_TIGHT = 0.9

#: Seconds that `watch`'s look at the pool is good for.
_FRESH = 5.0


class ThinPool(DevicePool):
    """The thin pool `thin_pool` in the volume group `group`.

    Args:
        group: the volume group's name.
        thin_pool: the pool's name in it.
        full_percent: how full its data or metadata may be before it takes no new volumes.
        overcommit: how many times its bytes may be promised to volumes.
    """

    name = "thin"

    def __init__(
        self, group: str, thin_pool: str, full_percent: int, overcommit: float = 1.0
    ) -> None:
        self._group = VolumeGroup(group)
        self._thin_pool = thin_pool
        self._pool = self._group.full_name(thin_pool)
        self._device = PoolDevice(self._group, thin_pool)
        self._full_at = full_percent / 100
        self._overcommit = overcommit
        self._checked = False
        self._checking = threading.Lock()
        self._seen: ThinStatus | None = None
        self._seen_at = 0.0
        self._told = (Mode.WRITE, False)

    # --- making it ready -----------------------------------------------------------

    def check(self) -> None:
        """Make sure that group, pool, tools and module are there, and activate what is lunr's."""
        with self._checking:
            if self._checked:
                return
            for program in ("thin_check", "thin_dump"):
                system.need(program)
            self._group.check(f"vgcreate {self._group.name} DISK…; {self._how_to_make()}")
            self._group.lock()
            try:
                self._group.need_target("thin-pool", "dm_thin_pool")
                self._check_settings()
                self._activate()
            except BaseException:
                self._group.unlock()
                raise
            self._checked = True

    def _how_to_make(self) -> str:
        return f"lvcreate --type thin-pool -Zy -l 90%FREE -n {self._thin_pool} {self._group.name}"

    def _check_settings(self) -> None:
        rows = self._group.report("lvs", ["lv_name", "segtype", "zero", "discards"])
        row = next((row for row in rows if row["lv_name"] == self._thin_pool), None)
        if row is None:
            raise self._group.unusable(
                f"it has no thin pool {self._thin_pool}; make it: {self._how_to_make()}"
            )
        if row["segtype"] != "thin-pool":
            raise self._group.unusable(
                f"{self._pool} is no thin pool: name another in [lvm] thin_pool, "
                f"or make one: {self._how_to_make()}"
            )
        if row["zero"] != "zero":
            raise self._group.unusable(
                f"the thin pool {self._pool} does not zero new blocks, which would show what "
                f"deleted volumes held; mend it: lvchange --zero y {self._pool}"
            )
        if row["discards"] == "ignore":
            _log.warning(
                "the thin pool %s ignores discards: what is deleted inside of volumes stays taken; "
                "mend it, while it is not active: lvchange --discards passdown %s",
                *(self._pool, self._pool),
            )

    def _activate(self) -> None:
        try:
            self._group.activate([self._thin_pool])
        except system.CommandFailed as error:
            raise self._group.unusable(
                f"the thin pool {self._pool} can't be activated ({error.fields['stderr']}); "
                f"if its metadata are damaged: lvconvert --repair {self._pool}"
            ) from error
        status = self._device.status()
        if status.broken:
            raise self._group.unusable(self._why_full(status))
        if full := self._why_full(status):
            # Volumes can be used and, above all, deleted.
            _log.error("%s", full)
        self._group.activate([lv.name for lv in self._ours() if not lv.active])

    def clean(self) -> None:
        """Remove clones that were not ready, and release the metadata snapshot."""
        for lv in _half_made(self._ours()):
            _log.info("removing %s, left over by a process that was killed", lv.name)
            self._group.remove(lv.name)
        if self._device.release_left_over():
            _log.info("released a metadata snapshot of %s, left over by such a process", self._pool)

    def close(self) -> None:
        """Let other processes use the group; all devices stay."""
        with self._checking:
            self._group.unlock()
            self._checked = False

    # --- how it is -----------------------------------------------------------------

    def capacity(self) -> Capacity:
        """The pool's data, and how much of data and metadata is used."""
        status = self._seen
        if status is None or time.monotonic() - self._seen_at > _FRESH:
            status = self._device.status()
        return Capacity(
            capacity_bytes=int(status.size * self._overcommit),
            free_bytes=status.free,
            full=self._why_full(status),
            used={"data": status.data, "metadata": status.metadata},
            tight=max(status.data, status.metadata) >= _TIGHT * self._full_at,
        )

    def watch(self) -> None:
        """See how full the pool is, for `capacity`, and log when that is worth a word."""
        status = self._device.status()
        self._seen, self._seen_at = status, time.monotonic()
        full = self._why_full(status)
        state = (status.mode, bool(full))
        if state != self._told:
            _log.log(
                logging.ERROR if full else logging.INFO,
                "%s",
                full or f"the thin pool {self._pool} has room again",
            )
        self._told = state

    def volumes(self) -> frozenset[str]:
        """The thin volumes that are tagged as one of lunr's."""
        return frozenset(lv.id for lv in self._ours() if lv.role is Role.VOLUME)

    def snapshots(self) -> frozenset[Snapshot]:
        """The thin volumes that are tagged as a snapshot of lunr's."""
        return frozenset(lv.snapshot for lv in self._ours() if lv.snapshot is not None)

    def baselines(self) -> Mapping[Snapshot, float]:
        """As tags say, and as LVM noted when it made them."""
        found = (lv for lv in self._ours() if lv.role is Role.BASELINE)
        return {lv.snapshot: lv.made_at for lv in found if lv.snapshot}

    def size(self, subject: str | Snapshot) -> int:
        """The size of the thin volume."""
        return self._need(subject).size

    def path(self, subject: str | Snapshot) -> Path:
        """The thin volume's device."""
        return self._group.path(self._need(subject).name)

    # --- changes -------------------------------------------------------------------

    def create(self, volume_id: str, size: int) -> None:
        """Make a thin volume, which takes nothing yet."""
        lv = self._find(volume_id)
        if lv is not None:
            self._group.finish(lv)
            self._need_size(lv, size)
            return
        self._make(Role.VOLUME, volume_id, volume_id, "-V", f"{size}b", "-T", self._pool)

    def clone(
        self, volume_id: str, source: str | Snapshot, size: int, tick: Tick = no_tick
    ) -> None:
        """Make a thin volume that shares the blocks of `source`.

        It has its name from the beginning, but is tagged as half made as long
        as it has not its size.
        """
        wanted, of = _key(volume_id), _key(source)
        lvs = self._ours()
        if (there := _pick(lvs, wanted)) is not None:
            self._group.finish(there)
            self._need_size(there, size)
            return
        if (origin := _pick(lvs, of)) is None:
            raise not_found(source)
        size = self._group.rounded(size)
        if origin.size > size:
            raise errors.Conflict(
                reason=f"{origin.name} has {origin.size} bytes and does not fit in {size}"
            )
        for half in _half_made(lvs, volume_id):
            self._group.remove(half.name)
        larger = size > origin.size
        role = Role.BUILDING if larger else Role.VOLUME
        self._make_snapshot(role, volume_id, volume_id, origin, "rw")
        if larger:
            for half in _half_made(self._ours(), volume_id):
                self._enlarge(half.name, size)
                self._group.retag(half, Role.VOLUME)

    def extend(self, volume_id: str, size: int) -> None:
        """Promise more to the volume."""
        lv = self._need(volume_id)
        size = self._group.rounded(size)
        if lv.size > size:
            raise errors.Conflict(
                reason=f"volume {volume_id} has {lv.size} bytes, it can't be made smaller ({size})"
            )
        if lv.size < size:
            self._enlarge(lv.name, size)

    def delete(self, volume_id: str, tick: Tick = no_tick) -> None:
        """Give the volume's blocks back, but for those that it shares."""
        key = _key(volume_id)
        lvs = self._ours()
        for baseline in lvs:
            goes_along = baseline.role in (Role.BASELINE, Role.CLONE_METADATA)
            if goes_along and baseline.volume_id == volume_id:
                self._group.remove(baseline.name)
        if (lv := _pick(lvs, key)) is not None:
            with translated("volume", volume_id):
                self._group.remove(lv.name)

    def snapshot(self, snapshot: Snapshot) -> None:
        """Make a read-only thin snapshot."""
        if (there := self._find(snapshot)) is not None:
            self._group.finish(there)
            return
        origin = self._need(snapshot.volume_id)
        role = ROLES[snapshot.purpose]
        self._make_snapshot(role, snapshot.id, snapshot.volume_id, origin, "r")

    def delete_snapshot(self, snapshot: Snapshot) -> None:
        """Give the snapshot's blocks back, but for those that it shares."""
        lv = self._find(snapshot)
        if lv is not None:
            with translated("snapshot", snapshot.id):
                self._group.remove(lv.name)

    def repurpose(self, snapshot: Snapshot, purpose: Purpose) -> None:
        """Change its tag, then its name."""
        after, lvs = replace(snapshot, purpose=purpose), self._ours()
        lv = _pick(lvs, _key(after)) or _pick(lvs, _key(snapshot))
        if lv is None:
            raise not_found(snapshot)
        self._group.convert(lv, ROLES[purpose])

    # --- for dm-clone --------------------------------------------------------------

    def make_clone_metadata(self, volume_id: str, size: int) -> Path:
        """Make a thin volume."""
        key = (Role.CLONE_METADATA, ids.check(volume_id), volume_id)
        if (lv := _pick(self._ours(), key)) is not None:
            self._group.finish(lv)
        else:
            size = self._group.rounded(size)
            self._make(
                Role.CLONE_METADATA, volume_id, volume_id, "-V", f"{size}b", "-T", self._pool
            )
        return self._group.path(self._group.name_for(Role.CLONE_METADATA, volume_id))

    def remove_clone_metadata(self, volume_id: str) -> None:
        """Give its blocks back."""
        key = (Role.CLONE_METADATA, ids.check(volume_id), volume_id)
        if (lv := _pick(self._ours(), key)) is not None:
            self._group.remove(lv.name)

    def clone_name(self, volume_id: str) -> str:
        """The volume's, and a word."""
        return self._group.clone_name(volume_id)

    def hide_loops(self) -> None:
        """By LVM's filter."""
        self._group.hide_loops()

    # --- which bytes ---------------------------------------------------------------

    def allocated(self, subject: str | Snapshot) -> Iterator[Extent] | None:
        """The blocks that the thin volume has."""
        lv = self._need(subject)
        return self._from_maps([lv], lambda runs: extent_maps.allocated(runs[0], lv.size))

    def changed(self, old: Snapshot, new: str | Snapshot) -> Iterator[Extent] | None:
        """The blocks that the two do not share. They may be of any age and of any volume."""
        before, after = self._find(old), self._need(new)
        if before is None:
            return None
        return self._from_maps(
            [before, after],
            lambda runs: extent_maps.changed(runs[0], before.size, runs[1], after.size),
        )

    def _from_maps(
        self,
        lvs: list[LogicalVolume],
        combine: Callable[[list[Iterator[Run]]], Iterator[Extent]],
    ) -> Iterator[Extent] | None:
        """What `combine` makes of the maps of `lvs`; None when these can't be read."""
        rows = self._group.report("lvs", ["lv_name", "thin_id"])
        numbers = {row["lv_name"]: int(row["thin_id"]) for row in rows if row["thin_id"]}
        try:
            return self._device.extents([numbers[lv.name] for lv in lvs], combine)
        except (errors.LunrError, OSError) as error:
            names = " and ".join(lv.name for lv in lvs)
            _log.warning("all bytes will be read, as the maps of %s can't be: %s", names, error)
            return None

    # --- how -----------------------------------------------------------------------

    def _ours(self) -> list[LogicalVolume]:
        """The thin volumes of the pool that are lunr's. What was left suspended goes on."""
        ours = [
            lv
            for lv in self._group.volumes()
            if lv.pool == self._thin_pool and lv.role is not None and lv.id
        ]
        self._group.wake(ours)
        return ours

    def _find(self, subject: str | Snapshot) -> LogicalVolume | None:
        key = _key(subject)  # first: what is no id costs no command
        return _pick(self._ours(), key)

    def _need(self, subject: str | Snapshot) -> LogicalVolume:
        if (lv := self._find(subject)) is None:
            raise not_found(subject)
        return lv

    def _need_size(self, lv: LogicalVolume, size: int) -> None:
        if lv.size != self._group.rounded(size):
            raise errors.Conflict(
                reason=f"there is a volume {lv.id} with {lv.size} bytes, {size} were asked for"
            )

    def _make_snapshot(
        self, role: Role, id_: str, volume_id: str, origin: LogicalVolume, permission: str
    ) -> None:
        # Activated now and by every later activation; LVM would leave out thin snapshots.
        words = ("-s", "-kn", "-ay", "-p", permission, self._group.full_name(origin.name))
        self._make(role, id_, volume_id, *words)

    def _make(self, role: Role, id_: str, volume_id: str, *words: str) -> None:
        shown = Role.VOLUME if role is Role.BUILDING else role
        name = self._group.name_for(shown, id_)
        with self._told_when_full():
            self._group.run("lvcreate", "-n", name, *tags_for(role, id_, volume_id), *words)

    def _enlarge(self, name: str, size: int) -> None:
        with self._told_when_full():
            self._group.extend(name, size)

    @contextlib.contextmanager
    def _told_when_full(self) -> Iterator[None]:
        try:
            yield
        except system.CommandFailed as error:
            # LVM refuses new thin volumes somewhat before the pool is full.
            status = self._device.status()
            if status.broken:
                raise self._group.unusable(self._why_full(status)) from error
            if "reached threshold" in str(error.fields["stderr"]) or status.mode is not Mode.WRITE:
                free = units.human(status.free)
                raise PoolFull(place=f"thin pool {self._pool}", free=free) from error
            raise

    def _why_full(self, status: ThinStatus) -> str:
        return thin_status.why_full(status, self._full_at, self._pool)


def _key(subject: str | Snapshot) -> _Key:
    """What tells the thin volume of a volume or snapshot from all others."""
    if isinstance(subject, Snapshot):
        return ROLES[subject.purpose], ids.check(subject.id), ids.check(subject.volume_id)
    return Role.VOLUME, ids.check(subject), subject


def _pick(lvs: Iterable[LogicalVolume], key: _Key) -> LogicalVolume | None:
    return next((lv for lv in lvs if (lv.role, lv.id, lv.volume_id) == key), None)


def _half_made(
    lvs: Iterable[LogicalVolume], volume_id: str | None = None
) -> Iterator[LogicalVolume]:
    """Those that are to be a volume, or this one, and are not yet."""
    for lv in lvs:
        if lv.role is Role.BUILDING and volume_id in (None, lv.id):
            yield lv
