"""Volumes as thick logical volumes, snapshots by dm-snapshot.

A new volume reads as zeros and nobody zeroes it: volumes are made only of disks
that the operator has filled with zeros once and tagged ``lunr.zeroed``, and
what is freed of them is overwritten first (:mod:`wipe`), also the COW areas of
snapshots, which hold old bytes of volumes.

A snapshot's COW area gets a share of its volume's size, and more when it fills
up (`watch`). One that overflows all the same is lost: reading it fails, its
volume goes on.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from lunr.common import concurrency, errors, files, ids, units
from lunr.common.extents import Extent
from lunr.storage.pools.base import (
    Capacity,
    DevicePool,
    Purpose,
    Snapshot,
    SnapshotLost,
    Tick,
    no_tick,
    not_found,
)
from lunr.storage.pools.lvm import cow
from lunr.storage.pools.lvm.cow_areas import CowAreas
from lunr.storage.pools.lvm.device_copy import copy
from lunr.storage.pools.lvm.logical_volumes import (
    ROLES,
    LogicalVolume,
    PhysicalVolume,
    Role,
    tags_for,
)
from lunr.storage.pools.lvm.volume_group import VolumeGroup, translated
from lunr.storage.pools.lvm.wipe import WIPING, Wiper

_log = logging.getLogger(__name__)

#: The operator's word that all that is free on a disk reads as zeros.
ZEROED = "lunr.zeroed"
_WHERE = f"@{ZEROED}"

#: Seconds that `watch`'s look at the disks is good for, unless lunr changes the group: others do,
#: and LVM goes over all the disks of the machine to tell.
_FRESH = 10.0


class _PvScan(NamedTuple):
    """The disks that the pool may use, after so many changes, at that moment."""

    disks: list[PhysicalVolume]
    changes: int
    at: float


class LvmPool(DevicePool):
    """A pool of thick logical volumes in the volume group `group`."""

    name = "lvm"
    slow = True
    light_snapshots = False  # what is overwritten is copied first

    #: Seconds that a device may stay open before that counts: udev looks into devices for
    #: some ms after they were written to. LVM itself is as patient.
    open_grace = 5.0

    def __init__(
        self,
        group: str,
        *,
        reserve_percent: int = 10,
        snapshot_percent: int = 10,
        snapshot_grow_at: int = 60,
        wipe_mib_per_second: int = 100,
    ) -> None:
        self.group = VolumeGroup(group)
        self._reserve = reserve_percent / 100
        self.areas = CowAreas(self.group, _WHERE, snapshot_percent, snapshot_grow_at / 100)
        self.wiper = Wiper(self.group, wipe_mib_per_second * units.MIB)
        self._look: _PvScan | None = None
        self._checked = False
        self._checking = threading.Lock()

    # --- making it ready -----------------------------------------------------------

    def check(self) -> None:
        """Make sure of the group, its disks and the kernel; make the devices of what is there."""
        with self._checking:
            if self._checked:
                return
            self.group.lock()
            try:
                self._check()
            except BaseException:
                self.group.unlock()
                raise
            self._checked = True
            self.wiper.start()

    def _check(self) -> None:
        name = self.group.name
        zero = (
            f"blkdiscard -z DISK; pvcreate DISK; {{}} {name} DISK; pvchange --addtag {ZEROED} DISK"
        )
        self.group.check(how_to_make=zero.format("vgcreate"))
        self.group.need_target("snapshot", "dm-snapshot")
        unused = [disk.name for disk in self.group.disks() if ZEROED not in disk.tags]
        if unused:
            _log.warning(
                "%s: nothing is put on %s: no tag %s says that what they have free is zeros",
                *(self.group, ", ".join(unused), ZEROED),
            )
        if not self._disks():
            raise self.group.unusable(
                f"no disk in it is tagged {ZEROED} and can be used; take empty disks that are "
                f"filled with zeros: {zero.format('vgextend')}"
            )
        lvs = self.group.volumes()
        if strangers := [lv.name for lv in lvs if lv.role is None]:
            _log.warning(
                "%s: not lunr's: %s. Overwrite them with zeros before you remove them, "
                "or lunr's next volumes show their bytes.",
                *(self.group, ", ".join(strangers)),
            )
        ours = [lv for lv in lvs if lv.role and not lv.pool]
        self.group.activate(lv.name for lv in ours if not lv.active)
        self.group.wake(ours)

    def clean(self) -> None:
        """Have what is half made wiped, in the background: it may take hours."""
        lvs = self._lvs()
        for lv in lvs:
            # A process that was killed in `lvcreate -s` leaves a COW area of no snapshot.
            half = lv.role in ROLES.values() and not lv.origin
            if lv.role is Role.BUILDING or half:
                _log.info("removing %s, left over by a process that was killed", lv.name)
                self._drop(lv)

    def close(self) -> None:
        """Let others have the group; its devices stay."""
        self.wiper.stop()
        with self._checking:
            self.group.unlock()
            self._checked = False

    # --- what is there -------------------------------------------------------------

    def capacity(self) -> Capacity:
        """Room on the tagged disks, less what is kept for snapshots, or less what these have."""
        disks = self._seen() or self._disks()
        total, free = sum(disk.size for disk in disks), sum(disk.free for disk in disks)
        volumes = sum(disk.volumes for disk in disks)
        promised = min(int(total * (1 - self._reserve)), volumes + free)
        used = {"data": 1 - free / total if total else 1.0, "snapshots": self.areas.fullest}
        tight = bool(self.areas.trouble) or free <= total * self._reserve / 2
        return Capacity(promised, min(free, promised), self.areas.trouble, used, tight)

    def volumes(self) -> frozenset[str]:
        """Those whose tags say so."""
        return frozenset(lv.id for lv in self._lvs() if lv.role is Role.VOLUME)

    def snapshots(self) -> frozenset[Snapshot]:
        """Those whose tags say so, and that dm-snapshot knows."""
        return frozenset(lv.snapshot for lv in self._lvs() if lv.snapshot and lv.origin)

    def baselines(self) -> Mapping[Snapshot, float]:
        """As tags say, and as LVM noted when it made them."""
        found = (lv for lv in self._lvs() if lv.role is Role.BASELINE and lv.origin)
        return {lv.snapshot: lv.made_at for lv in found if lv.snapshot}

    def size(self, subject: str | Snapshot) -> int:
        """The size of the device."""
        return self._size(subject, self._lvs())

    def path(self, subject: str | Snapshot) -> Path:
        """The device ``/dev/GROUP/NAME``."""
        return self.group.path(self._find(subject).name)

    # --- volumes -------------------------------------------------------------------

    def create(self, volume_id: str, size: int) -> None:
        """Make a logical volume of extents that are zeros already."""
        ids.check(volume_id)
        lvs = self._lvs()
        if not self._is_there(lvs, volume_id, size):
            self._make(lvs, Role.VOLUME, volume_id, size)

    def clone(
        self, volume_id: str, source: str | Snapshot, size: int, tick: Tick = no_tick
    ) -> None:
        """Copy all of `source` but its zeros; of a volume by a snapshot of one moment."""
        ids.check(volume_id)
        lvs = self._lvs()
        for lv in lvs:
            if lv.role is Role.BUILDING and lv.id == volume_id:  # by an attempt that was given up
                self._drop(lv)
                lvs = self._lvs()
        if self._is_there(lvs, volume_id, size):
            return
        length = self._size(source, lvs)
        if length > size:
            raise errors.Conflict(reason=f"{source} has {length} bytes and does not fit in {size}")
        made = set()
        try:
            if isinstance(source, str):
                origin = self._take(lvs, self._find(source, lvs), Role.BUILDING, volume_id)
                made.add(origin)
            else:
                origin = self._find(source, lvs).name
            new = self._make(lvs, Role.BUILDING, volume_id, size)
            made.add(new)
            try:
                copy(self.group.path(origin), self.group.path(new), length, tick)
            except OSError as error:
                self._check_whole(origin, source)
                raise self.group.unusable(f"{source} can't be copied: {error}") from error
            self._check_whole(origin, source)
            self.group.retag(self._named(new), Role.VOLUME)
            made.remove(new)
        finally:
            for name in made:
                try:
                    self._drop(self._named(name))
                except errors.LunrError as error:  # the next attempt, or the next start, does it
                    _log.error("%s stays for now: %s", name, error)

    def extend(self, volume_id: str, size: int) -> None:
        """Add extents; while it is open only if it has no snapshots other than baselines."""
        lvs = self._lvs()
        lv = self._find(volume_id, lvs)
        if lv.size > size:
            raise errors.Conflict(
                reason=f"volume {volume_id} has {lv.size} bytes, it can't be made smaller ({size})"
            )
        self._check_size(size)
        if lv.size == size:
            return
        lvs = self._without_baselines(lvs, volume_id)
        snapshots = self._children(lvs, lv)
        if not snapshots:
            self.group.extend(lv.name, size, _WHERE)
            return
        # LVM resizes the origin of dm-snapshots only when it is not active.
        if any(one.open and self._stays_open(one) for one in (lv, *snapshots)):
            raise errors.InUse(
                kind="volume",
                id=volume_id,
                reason="with snapshots it can only be extended while nobody has it open: "
                "detach it, or delete its snapshots",
            )
        try:
            with translated("volume", volume_id):
                self.group.deactivate(lv.name)
            self.group.extend(lv.name, size, _WHERE)
        finally:
            self.group.activate([lv.name])

    def delete(self, volume_id: str, tick: Tick = no_tick) -> None:
        """Overwrite the volume, then remove it; from the first moment on it is no volume."""
        ids.check(volume_id)
        lvs = self._lvs()
        lv = next((lv for lv in lvs if lv.role is Role.VOLUME and lv.id == volume_id), None)
        doomed = []
        if lv is not None:
            lvs = self._without_baselines(lvs, volume_id)
            if self._children(lvs, lv):
                raise errors.InUse(kind="volume", id=volume_id, reason="it has snapshots")
            if lv.open and self._stays_open(lv):
                raise errors.InUse(kind="volume", id=volume_id, reason="its device is open")
            doomed.append((self.wiper.retire(lv), lv.size))
        self._drop_clone_metadata(lvs, volume_id)
        for lv in lvs:  # what an earlier attempt left
            ours = lv.role in WIPING and lv.id == lv.volume_id == volume_id
            if ours and (name := self.wiper.set_apart(lv)):
                doomed.append((name, lv.size))
        total, done = sum(size for _, size in doomed), 0
        for name, size in doomed:
            self.wiper.wipe(name, functools.partial(_shifted, tick, done, total))
            done += size

    # --- for dm-clone --------------------------------------------------------------

    def make_clone_metadata(self, volume_id: str, size: int) -> Path:
        """Make a logical volume of extents that are zeros already."""
        lvs = self._lvs()
        there = _clone_metadata(lvs, ids.check(volume_id))
        if there is not None:
            self.group.finish(there)
            return self.group.path(there.name)
        size = self.group.rounded(size)
        return self.group.path(self._make(lvs, Role.CLONE_METADATA, volume_id, size))

    def remove_clone_metadata(self, volume_id: str) -> None:
        """Have it wiped in the background: the next one is to find zeros."""
        self._drop_clone_metadata(self._lvs(), ids.check(volume_id))

    def clone_name(self, volume_id: str) -> str:
        """The volume's, and a word."""
        return self.group.clone_name(volume_id)

    def hide_loops(self) -> None:
        """By LVM's filter."""
        self.group.hide_loops()

    # --- snapshots -----------------------------------------------------------------

    def snapshot(self, snapshot: Snapshot) -> None:
        """Have the kernel keep what is overwritten from now on."""
        ids.check(snapshot.volume_id)
        ids.check(snapshot.id)
        lvs = self._lvs()
        volume = self._find(snapshot.volume_id, lvs)
        there = next((lv for lv in lvs if lv.snapshot == snapshot), None)
        if there is not None:
            renew = snapshot.purpose is Purpose.BACKUP and self._status(there.name).lost
            if there.origin and not renew:
                self.group.finish(there)
                return
            self._drop(there)
            lvs = self._lvs()
        self._take(lvs, volume, ROLES[snapshot.purpose], snapshot.id)

    def delete_snapshot(self, snapshot: Snapshot) -> None:
        """Let the volume go on without; the COW area is wiped in the background."""
        ids.check(snapshot.volume_id)
        ids.check(snapshot.id)
        lv = next((lv for lv in self._lvs() if lv.snapshot == snapshot), None)
        if lv is None:
            return
        if lv.open and self._stays_open(lv):
            raise errors.InUse(kind="snapshot", id=snapshot.id, reason="its device is open")
        with translated("snapshot", snapshot.id):
            self._drop(lv)

    def repurpose(self, snapshot: Snapshot, purpose: Purpose) -> None:
        """Change its tag, then its name."""
        after, lvs = replace(snapshot, purpose=purpose), self._lvs()
        done = any(lv.snapshot == after and lv.origin for lv in lvs)
        self.group.convert(self._find(after if done else snapshot, lvs), ROLES[purpose])

    def check_snapshot(self, snapshot: Snapshot) -> None:
        """Ask the kernel."""
        self._check_whole(self._find(snapshot).name, snapshot)

    def lost_snapshots(self) -> frozenset[Snapshot]:
        """Those that `watch` saw overflow."""
        return self.areas.lost

    def changed(self, old: Snapshot, new: str | Snapshot) -> Iterator[Extent] | None:
        """What the table of `old`'s COW area says has been overwritten since."""
        volume_id = new if isinstance(new, str) else new.volume_id
        if volume_id != old.volume_id:
            return None
        lvs = self._lvs()
        if not any(lv.snapshot == old and lv.origin for lv in lvs):
            return None
        name = self._find(old, lvs).name
        old_size, new_size = self._size(old, lvs), self._size(new, lvs)
        area = Path("/dev/mapper") / f"{self.group.dm_name(name)}-cow"
        try:
            with cow.opened_area(area) as file:
                extents = concurrency.blocking(
                    lambda: cow.changed(cow.exceptions(cow.reader(file)), old_size, new_size)
                )
        except cow.CowUnreadable as error:
            _log.info("what has changed since snapshot %s is not known: %s", old.id, error)
            return None
        # What was overwritten after the kernel gave up is in no table.
        return None if self._status(name).lost else extents

    def watch(self) -> None:
        """Enlarge the COW areas that fill up: one command of some ms, if there are snapshots.

        Seldom also see what room the disks have, for `capacity`.
        """
        self.areas.look()
        if self._seen() is None:
            changes, at = self.group.changes, time.monotonic()
            self._look = _PvScan(self._disks(), changes, at)

    # --- how -----------------------------------------------------------------------

    def _stays_open(self, lv: LogicalVolume) -> bool:
        """Whether `lv`, which is open, still is after a while."""
        deadline = time.monotonic() + self.open_grace
        while time.monotonic() < deadline:
            time.sleep(0.2)
            if not any(now.open for now in self._lvs() if now.name == lv.name):
                return False
        return True

    def _size(self, subject: str | Snapshot, lvs: list[LogicalVolume]) -> int:
        lv = self._find(subject, lvs)
        if isinstance(subject, str):
            return lv.size
        # A snapshot stays as large as its volume was; LVM tells the volume's size now.
        with files.opened(self.group.path(lv.name)) as file:
            return os.lseek(file, 0, os.SEEK_END)

    def _lvs(self) -> list[LogicalVolume]:
        """All in the group, also what is not lunr's, but what is in thin pools.

        What of lunr's was left suspended goes on.
        """
        if not self._checked:
            raise self.group.unusable("it was not checked yet")
        lvs = [lv for lv in self.group.volumes() if not lv.pool]
        self.group.wake(lv for lv in lvs if lv.role)
        return lvs

    def _seen(self) -> list[PhysicalVolume] | None:
        """What `watch` saw of the disks, if they are like that still."""
        look = self._look
        if look is None or look.changes != self.group.changes:
            return None
        return look.disks if time.monotonic() - look.at < _FRESH else None

    def _disks(self) -> list[PhysicalVolume]:
        """Those that the pool may use."""
        disks = self.group.disks()
        return [disk for disk in disks if ZEROED in disk.tags and disk.allocatable]

    def _find(
        self, subject: str | Snapshot, lvs: list[LogicalVolume] | None = None
    ) -> LogicalVolume:
        if isinstance(subject, Snapshot):
            ids.check(subject.volume_id)
            ids.check(subject.id)
        else:
            ids.check(subject)
        for lv in self._lvs() if lvs is None else lvs:
            if isinstance(subject, Snapshot):
                if lv.snapshot == subject and lv.origin:
                    return lv
            elif lv.role is Role.VOLUME and lv.id == subject:
                return lv
        raise not_found(subject)

    def _named(self, name: str) -> LogicalVolume:
        for lv in self._lvs():
            if lv.name == name:
                return lv
        raise errors.NotFound(kind="logical volume", id=name)

    def _children(self, lvs: list[LogicalVolume], volume: LogicalVolume) -> list[LogicalVolume]:
        """Its snapshots, but those that only wait to be wiped: they are split off first."""
        children = [lv for lv in lvs if lv.origin == volume.name]
        with translated("volume", volume.id):
            for lv in children:
                if lv.role in WIPING:
                    self.wiper.set_apart(lv)
        return [lv for lv in children if lv.role not in WIPING]

    def _without_baselines(self, lvs: list[LogicalVolume], volume_id: str) -> list[LogicalVolume]:
        """What is there after the baselines of a volume have been removed."""
        doomed = [
            Snapshot(volume_id, lv.id, Purpose.BASELINE)
            for lv in lvs
            if lv.role is Role.BASELINE and lv.origin and lv.volume_id == volume_id
        ]
        for baseline in doomed:
            self.delete_snapshot(baseline)
        return self._lvs() if doomed else lvs

    def _is_there(self, lvs: list[LogicalVolume], volume_id: str, size: int) -> bool:
        self._check_size(size)
        there = next((lv for lv in lvs if lv.role is Role.VOLUME and lv.id == volume_id), None)
        if there is None:
            return False
        if there.size != size:
            raise errors.Conflict(
                reason=f"there is a volume {volume_id} with {there.size} bytes, "
                f"{size} were asked for"
            )
        self.group.finish(there)
        return True

    def _check_size(self, size: int) -> None:
        if size != self.group.rounded(size):
            raise errors.InvalidField(
                field="size", reason=f"{size} bytes are not whole extents of {self.group}"
            )

    def _make(self, lvs: list[LogicalVolume], role: Role, volume_id: str, size: int) -> str:
        """Make a volume, whole or to be built, or what goes along with one; returns its name."""
        shown = Role.VOLUME if role is Role.BUILDING else role
        name = self._free_name(lvs, shown, volume_id)
        tags = tags_for(role, volume_id, volume_id)
        raw = ("-W", "n", "-Z", "n")  # all zeros as it is
        self.group.run(
            "lvcreate", *raw, "-L", f"{size}b", "-n", name, *tags, self.group.name, _WHERE
        )
        return name

    def _take(self, lvs: list[LogicalVolume], volume: LogicalVolume, role: Role, id_: str) -> str:
        """Take a snapshot of `volume`; returns its name."""
        name = self._free_name(lvs, role, id_)
        area = f"{self.areas.share_of(volume.size)}b"
        tags = tags_for(role, id_, volume.id)
        origin = self.group.full_name(volume.name)
        chunk = ("-c", f"{cow.CHUNK}b")
        self.group.run("lvcreate", "-s", *chunk, "-L", area, "-n", name, *tags, origin, _WHERE)
        self.areas.changed()
        return name

    def _free_name(self, lvs: list[LogicalVolume], role: Role, id_: str) -> str:
        name = self.group.name_for(role, id_)
        holder = next((lv for lv in lvs if lv.name == name), None)
        if holder is not None and holder.role in WIPING:  # by a process that was killed
            self.wiper.set_apart(holder)
        elif holder is not None:
            raise errors.Conflict(reason=f"{self.group} has another logical volume {name}")
        return name

    def _drop(self, lv: LogicalVolume) -> None:
        """Have `lv` wiped in the background."""
        try:
            self.wiper.retire(lv)
        finally:
            self.areas.changed()
            self.wiper.wake()

    def _drop_clone_metadata(self, lvs: list[LogicalVolume], volume_id: str) -> None:
        lv = _clone_metadata(lvs, volume_id)
        if lv is not None:
            self._drop(lv)

    def _status(self, name: str) -> cow.Status:
        gone = cow.Status(1.0, "its device is not there")
        return self.areas.states().get(self.group.dm_name(name), gone)

    def _check_whole(self, name: str, source: str | Snapshot) -> None:
        """Raise SnapshotLost if the snapshot `name`, which is or was taken of `source`, is lost."""
        if lost := self._status(name).lost:
            shown = (
                (source.id, source.volume_id) if isinstance(source, Snapshot) else (name, source)
            )
            raise SnapshotLost(id=shown[0], volume_id=shown[1], reason=lost)


def _clone_metadata(lvs: list[LogicalVolume], volume_id: str) -> LogicalVolume | None:
    return next((lv for lv in lvs if lv.role is Role.CLONE_METADATA and lv.id == volume_id), None)


def _shifted(tick: Tick, before: int, total: int, done: int, _total: int) -> None:
    tick(before + done, total)
