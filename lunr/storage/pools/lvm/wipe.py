"""Overwriting logical volumes that nobody needs, before their extents are anybody's again.

A logical volume of role WIPING is overwritten with zeros from its end to its
start and gets shorter on the way, so that its size is how much there is to do:
whoever comes after a crash goes on where it stopped. Then it is removed.

Zeros come by discarding where the disk promises that what was discarded reads
as zeros (the kernel refuses otherwise: blkdev_fallocate in block/fops.c), else
they are written. The speed is limited, but where it is so high that the disk
can't be writing: many do write when they are asked to discard.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import struct
import threading
import time

from lunr.common import concurrency, errors, files, linux, units
from lunr.common.rate import TokenBucket
from lunr.storage.pools.base import Tick
from lunr.storage.pools.lvm import cow
from lunr.storage.pools.lvm.logical_volumes import LogicalVolume, Role
from lunr.storage.pools.lvm.volume_group import VolumeGroup

_log = logging.getLogger(__name__)

#: The roles of what is to be wiped.
WIPING = frozenset({Role.WIPING, Role.WIPING_COW})

_PREFIX = "wipe-"

#: Bytes between two looks at whether to stop.
STEP = 16 * units.MIB

#: linux/fs.h: _IO(0x12, 127). It writes zeros, by the disk's own command where it has one.
_BLKZEROOUT = 0x127F

#: Bytes a second that no disk writes.
_UNWRITTEN = 8 * units.GIB

#: Seconds between two looks for something to wipe, if nobody says that there is.
_LOOK_EVERY = 30.0

#: Seconds that a step, or a command of LVM, is given to end.
_STOP_TIMEOUT = 10.0


class _WipePreempted(Exception):
    """The background is to let go of what it wipes."""


class Wiper:
    """Wipes logical volumes of `group`: for who waits for it, and in the background the others."""

    #: Seconds between two shortenings of what is being wiped.
    keep_every = 10.0

    def __init__(self, group: VolumeGroup, bytes_per_second: int) -> None:
        self._group = group
        self._bucket = TokenBucket(bytes_per_second)
        #: Held while a logical volume is on its way to be one that is wiped.
        self._retiring = threading.Lock()
        self._turn = threading.Condition()
        #: Names being wiped; and those that someone waits for.
        self._busy: set[str] = set()
        self._wanted: list[str] = []
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._told: set[str] = set()

    def start(self) -> None:
        """Begin to wipe in the background what is to be wiped."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._look, name="wiper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the background after its step."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(_STOP_TIMEOUT)
        self._thread = None

    def wake(self) -> None:
        """Say that there is something to wipe."""
        self._wake.set()

    def retire(self, lv: LogicalVolume) -> str:
        """Make `lv` one that is to be wiped, and return its new name.

        From the first command on it is nothing else any more; what is left to do of
        this when the process is killed is done before the wiping.

        Raises:
            CommandFailed: it is a snapshot whose device is open.
        """
        with self._retiring:
            self._group.retag(lv, Role.WIPING_COW if lv.origin else Role.WIPING)
            return self._set_apart(lv)

    def set_apart(self, lv: LogicalVolume) -> str | None:
        """Finish what `retire` began on `lv` before the process was killed.

        Returns its name from now on; None: it is gone, or another thread did it.
        """
        if lv.name.startswith(_PREFIX) and not lv.origin:
            return lv.name
        with self._retiring:
            now = self._named(lv.name)
            return None if now is None else self._set_apart(now)

    def _named(self, name: str) -> LogicalVolume | None:
        return next((lv for lv in self._group.volumes() if lv.name == name), None)

    def _set_apart(self, lv: LogicalVolume) -> str:
        name = lv.name
        if not name.startswith(_PREFIX):
            name = f"{_PREFIX}{secrets.token_hex(6)}"
            self._group.rename(lv.name, name)
        if lv.origin:
            self._group.split(name)
        return name

    def wipe(self, name: str, tick: Tick) -> None:
        """Wipe and remove the logical volume `name`, which was set apart; it may be gone already.

        Raises:
            PoolUnusable: the disk fails.
            errors.Cancelled: `tick` said so. What is done is done.
        """
        with self._turn:
            self._wanted.append(name)
            while name in self._busy:
                self._turn.wait()
            self._busy.add(name)
        try:
            self._wipe(name, tick)
        finally:
            with self._turn:
                self._wanted.remove(name)
                self._busy.remove(name)
                self._turn.notify_all()

    # --- in the background -----------------------------------------------------------

    def _look(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                lvs = [lv for lv in self._group.volumes() if lv.role in WIPING]
            except Exception as error:  # noqa: BLE001 - of a defect too: nobody else wipes
                self._tell(error)
                lvs = []
            for lv in lvs:
                if self._stopping.is_set():
                    return
                try:
                    if name := self.set_apart(lv):
                        self._wipe_if_free(name)
                except Exception as error:  # noqa: BLE001 - the others must not wait for this one
                    self._tell(error)
            self._wake.wait(_LOOK_EVERY)

    def _tell(self, error: Exception) -> None:
        """Log `error`, once: what failed is tried again and again."""
        if repr(error) not in self._told:
            trace = None if isinstance(error, errors.LunrError) else error
            _log.error("%s It will be tried again.", error, exc_info=trace)
            self._told.add(repr(error))

    def _wipe_if_free(self, name: str) -> None:
        with self._turn:
            if name in self._busy or name in self._wanted:
                return
            self._busy.add(name)

        def go_on(_done: int, _total: int) -> None:
            if self._stopping.is_set() or name in self._wanted:
                raise _WipePreempted

        try:
            with contextlib.suppress(_WipePreempted):
                self._wipe(name, go_on)
        finally:
            with self._turn:
                self._busy.remove(name)
                self._turn.notify_all()

    # --- how -------------------------------------------------------------------------

    def _wipe(self, name: str, tick: Tick) -> None:
        lv = self._named(name)
        if lv is None:
            return
        if not lv.active:
            self._group.activate([name])
        try:
            size = self._cut(lv) if lv.role is Role.WIPING_COW else lv.size
            self._overwrite(name, size, tick)
        except OSError as error:
            raise self._group.unusable(f"{name} can't be overwritten: {error}") from error
        self._group.remove(name)

    def _cut(self, lv: LogicalVolume) -> int:
        """Free what was never used of a COW area, and make it a volume like others; its size."""
        size = lv.size
        try:
            with cow.opened_area(self._group.path(lv.name)) as file:
                used = concurrency.blocking(
                    lambda: cow.end_of_use(cow.exceptions(cow.reader(file)))
                )
            size = min(size, self._group.rounded(used))
        except cow.CowUnreadable as error:  # of a lost snapshot, or one that never came to be
            _log.debug("all of %s is wiped: %s", lv.name, error)
        if size < lv.size:
            self._group.shrink(lv.name, size)
        # Its table will be overwritten: from now on only its size says what there is to do.
        self._group.retag(lv, Role.WIPING)
        return size

    def _overwrite(self, name: str, total: int, tick: Tick) -> None:
        with files.opened(self._group.path(name), os.O_RDWR | os.O_EXCL) as file:
            end, kept = total, total
            kept_at = time.monotonic()

            def shorten() -> None:
                # The zeros must be on the disk before the extents are free.
                concurrency.blocking(os.fsync, file)
                if 0 < self._group.rounded(end) < kept:
                    self._group.shrink(name, end)

            try:
                while end:
                    tick(total - end, total)
                    start = (end - 1) // STEP * STEP
                    least = (end - start) / _UNWRITTEN
                    if concurrency.blocking(_seconds_to_zero, file, start, end) > least:
                        time.sleep(self._bucket.take(end - start))
                    end = start
                    if time.monotonic() - kept_at > self.keep_every:
                        shorten()
                        kept, kept_at = self._group.rounded(end), time.monotonic()
                tick(total, total)
            finally:
                shorten()


def _seconds_to_zero(file: int, start: int, end: int) -> float:
    """Make a range of a device read as zeros; returns how long that took."""
    began = time.monotonic()
    try:
        linux.punch_hole(file, start, end - start)
    except OSError:  # it can't, or not here: a group may have disks of several kinds
        fcntl.ioctl(file, _BLKZEROOUT, struct.pack("=2Q", start, end - start))
    return time.monotonic() - began
