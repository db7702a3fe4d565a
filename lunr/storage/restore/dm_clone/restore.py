"""One volume that the kernel fills: dm-clone, with the backup as a read-only image for its source.

The process that serves a filling volume (volume.py) here shows the backup as a file, and only
that. A loop device over it is what a dm-clone device reads from that has not been written or
copied yet; the destination is the pool's volume, and what of it is there the kernel keeps on a
device of its own in the pool. What is exported is the dm-clone device. So no byte that is
there passes through a process, and limits of I/O hold.

When all is there, the device becomes the pool's volume and nothing else, while it is in use, and
process, loop device and map go. When nobody has it open any more it goes, too.

If the process dies, reads of what is absent fail until the next one has its place under the loop
device: the kernel does that without anybody having to open anything anew.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lunr.backup.lazy_image import mount
from lunr.common import concurrency, errors, ids, linux, units
from lunr.common.extents import Extent, complement
from lunr.common.rate import TokenBucket
from lunr.storage import system
from lunr.storage.agent.backoff import Backoff
from lunr.storage.pools.base import DevicePool
from lunr.storage.restore import loop_device
from lunr.storage.restore.dm_clone import metadata as clone_map
from lunr.storage.restore.dm_clone.device import AT_ONCE, REGION, CloneDevice, metadata_size
from lunr.storage.restore.fuse_restore import FillingBusy, FuseRestore
from lunr.storage.restore.process import RestoreProcess, adopt
from lunr.storage.restore.spec import Progress

#: The largest volume that is filled so. The kernel goes over the bits of all regions when the
#: device is made, which for more takes longer than a volume may take to be usable.
LARGEST = 128 * units.GIB

#: Seconds between two looks at the device, and where the fill has a limit.
_LOOK_EVERY, _LOOK_LIMITED = 1.0, 0.25
#: Seconds of which the fill may make up for what it did not copy, where it has a limit.
_BURST = 1.0
#: Seconds over which the rate is averaged.
_SMOOTH = 5.0
#: Seconds in which nothing comes of a damaged backup until all that can be had so is there.
_STUCK = 5.0
#: Bytes of zeros that are noted at once: writers that sync wait meanwhile.
_CLAIM = units.GIB
#: What progress counts in that can't be had.
_PART = 4 * units.MIB
#: What the kernel does.
_ON, _ONE_BY_ONE = (True, False), (True, True)


class DmCloneRestore(FuseRestore):
    """The same as :class:`FuseRestore`, by the kernel."""

    def __init__(self, pool: DevicePool, volume_id: str, *args: Any) -> None:
        """Nothing is done yet; the rest is as for :class:`FuseRestore`."""
        super().__init__(volume_id, *args)
        self._pool = pool
        self._device = CloneDevice(pool.clone_name(volume_id), ids.check(volume_id))
        #: Held by who changes the device.
        self._guard = threading.RLock()
        self._over = threading.Event()
        self._driver: threading.Thread | None = None
        self._has_device = False
        self._zeros_claimed = False
        #: Whether the kernel copies, and region by region; None: who knows.
        self._doing: tuple[bool, bool] | None = None
        self._wanted = ("never", 0)
        #: Whether all is there that can be had in large pieces of a damaged backup, or at all.
        self._one_by_one = self._gave_up = False
        #: (when, bytes that were there).
        self._seen: deque[tuple[float, int]] = deque()
        self._came_at = 0.0
        self._bucket = TokenBucket(0)
        self._uses = _Uses(0, 0)

    @property
    def path(self) -> Path:
        """The device it is used through, where targets look for filling volumes."""
        return self._run / "device"

    @property
    def is_settled(self) -> bool:
        """Whether it is an ordinary volume: full, and nothing is between it and its users."""
        return super().is_settled and not self._has_device

    @property
    def _is_kept_filled(self) -> bool:
        return self.task is not None and self.task.is_filled

    @property
    def _source(self) -> Path:
        return self._mountpoint / "volume"

    # --- its life --------------------------------------------------------------------

    def load(self) -> bool:
        """See :meth:`FuseRestore.load`."""
        there = super().load()
        seen = self._device.look()
        if seen is not None and seen.suspended:  # the agent was killed in the middle of `still`
            self._device.resume()
        self._has_device = seen is not None
        return there

    def start(self) -> None:
        """See :meth:`FuseRestore.start`."""
        if not self._filled:
            super().start()
        elif self._has_device and self._driver is None:
            self._link()
            self._drive()

    def wait_mounted(self, heed: Callable[[], None]) -> None:
        """See :meth:`FuseRestore.wait_mounted`."""
        if not self._is_kept_filled:
            super().wait_mounted(heed)

    def fill(self, mode: str, limit: int) -> None:
        """See :meth:`FuseRestore.fill`."""
        super().fill(mode, limit)
        with self._changed:
            if limit != self._bucket.rate:
                self._bucket = TokenBucket(limit, burst=_BURST)
            self._wanted, self._gave_up, self._one_by_one = (mode, limit), False, False
            self._changed.notify_all()

    @property
    def holds_target(self) -> bool:
        """Device-mapper claims the devices below its own."""
        return self._has_device

    def grow(self) -> bool:
        """See :meth:`FuseRestore.grow`."""
        with self._guard:
            if not self._is_kept_filled or not self._has_device:
                return False
            self._end()
            self._device.become(self._target(), self._pool.size(self.volume_id))
            return True

    def settle(self) -> bool:
        """See :meth:`FuseRestore.settle`."""
        with self._guard:
            if self.is_settled or not self._filled:
                return self.is_settled
            seen = self._device.look()
            if seen is not None:
                if seen.open:
                    return False
                self._end()
                self._device.remove()
                _forget_pages(self._target())
            self._over.set()
            self._has_device = False
            self._clear_run()
            return True

    def close(self) -> None:
        """See :meth:`FuseRestore.close`. The device goes as well; the pool's volume stays as it is.

        Raises:
            FillingBusy: somebody has it open.
        """
        self._over.set()
        self._stopping.set()
        with self._guard:
            seen = self._device.look()
            if seen is not None:
                if seen.suspended:
                    self._device.resume()
                if seen.target == "clone":
                    # What waits for the store would keep the device from going: let it fail.
                    self._device.hydrate(on=False)
                    self._kill()
                try:
                    self._device.remove()
                except system.CommandFailed as error:
                    raise FillingBusy(id=self.volume_id, reason=str(error)) from error
            self._has_device = False
            super().close()
            if self._run.exists():
                mount.detach_dead(self._mountpoint)

    def remove(self) -> None:
        """See :meth:`FuseRestore.remove`."""
        self.close()
        if self.task is not None:
            self._pool.remove_clone_metadata(self.volume_id)
        super().remove()

    def quiet(self) -> float:
        """The device is the pool's volume already, and need not be left while it is used."""
        return 0.0

    def _kill(self) -> None:
        """End the process at once, which writes nothing."""
        with contextlib.suppress(OSError):  # there is none
            worker = adopt(self._run)
            worker.kill()
            worker.close()

    @contextlib.contextmanager
    def still(self) -> Iterator[list[Extent]]:
        """See :meth:`FuseRestore.still`. All I/O waits inside."""
        with self._still, self._guard:
            if self._is_kept_filled:
                yield []
                return
            metadata = self._filling()
            try:
                self._hydrate(on=False)  # what is under way must end
                self._device.suspend()
            except errors.LunrError as error:
                self._device.resume()
                raise FillingBusy(id=self.volume_id, reason=str(error)) from error
            try:
                yield concurrency.blocking(clone_map.absent, metadata)
            finally:
                self._device.resume()

    # --- the process and the device ----------------------------------------------------

    def _order(self) -> dict[str, Any]:
        assert self.task is not None
        return {
            "task": "image",
            **self._engine.access(),
            "repository": ids.check(self.task.repository),
            "backup_id": ids.check(self.task.backup_id),
            "mountpoint": str(self._mountpoint),
            "size_bytes": self.task.size_bytes,
            "root": str(self._state / "map.root"),
        }

    def _starting(self) -> None:
        """Nobody has to open the device anew."""

    def _hear(self, worker: RestoreProcess, event: dict[str, Any]) -> None:
        if event.get("event") == "mounted":
            self._set_up()
            if worker.is_new:
                worker.is_new = False  # nobody has to open the device anew
                self._begin_anew()
        super()._hear(worker, event)

    def _begin_anew(self) -> None:
        """The process that knew what was wrong is dead: the next one finds it again."""
        with self._changed:
            self.news.all_is_well()
            self._gave_up = self._one_by_one = False

    def _give_orders(self, worker: RestoreProcess) -> None:
        """The process fetches what is read, and nothing else."""

    def _set_up(self) -> None:
        """Have the device read from the image; one that is there perhaps reads from a dead one."""
        assert self.task is not None
        with self._guard:
            if self._over.is_set():
                return
            seen = self._device.look()
            if seen is not None and not seen.target:  # its maker was killed
                self._device.remove()
                seen = None
            if seen is None:
                metadata, target = self._filling(), self._target()
                held, source = concurrency.blocking(loop_device.attach, self._source)
                try:
                    self._device.make(metadata, target, source, self.task.size_bytes)
                finally:
                    os.close(held)
            else:
                source = Path("/dev", Path("/sys/dev/block", seen.source).resolve().name)
                concurrency.blocking(loop_device.change, source, self._source)
            self._has_device = True
            self._link()
            self._drive()

    def _filling(self) -> Path:
        """The device with what is there."""
        assert self.task is not None
        return self._pool.make_clone_metadata(self.volume_id, metadata_size(self.task.size_bytes))

    def _link(self) -> None:
        self._run.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self.path.is_symlink():
            self.path.symlink_to(self._device.path)

    # --- the fill ----------------------------------------------------------------------

    def _drive(self) -> None:
        """Have the device looked after from now on."""
        if self._driver is None:
            self._driver = threading.Thread(
                target=self._look_after, name=f"cloning-{self.volume_id}", daemon=True
            )
            self._driver.start()

    def _look_after(self) -> None:
        backoff = Backoff(self._over)
        while not self._over.is_set():
            try:
                if self._is_kept_filled or self._look():
                    self._end()
                    return
                backoff.over()
                self._tell(None)
            except (errors.LunrError, OSError) as error:
                self._tell(str(error))
                backoff.wait(error)
            with self._changed:
                limited = self._wanted[1] and not self._gave_up
                self._changed.wait(_LOOK_LIMITED if limited else _LOOK_EVERY)

    def _tell(self, trouble: str | None) -> None:
        """Tell what keeps the fill from going on, or that this is over."""
        with self._changed:
            self.news.fill_trouble = trouble

    def _look(self) -> bool:
        """See how far the device is and have it go on as wanted; whether all is there."""
        if not self._mounted:  # it would fail to copy, again and again
            self._hydrate(on=False)
            return False
        if not self._zeros_claimed:
            try:
                self._zeros_claimed = concurrency.blocking(self._claim_zeros)
            except OSError:
                self._zeros_claimed = bool(self.news.damaged)  # then they are copied
                if not self.news.damaged:
                    raise
        status = self._device.status()
        done = status.hydrated * REGION
        before = self._seen[-1][1] if self._seen else done
        self._note(done, status.total * REGION)
        if status.hydrated == status.total:
            return self._keep_filled()
        came, is_used = done - before, self._is_used()
        may_go_on = self._may_go_on(came, is_used)
        if is_used and came < AT_ONCE and may_go_on and self._doing in (_ON, _ONE_BY_ONE):
            self._make_room()
        self._hydrate(on=self._zeros_claimed and may_go_on)
        return False

    def _is_used(self) -> bool:
        """Whether somebody asked the device for something since the last look, or waits for it."""
        before, self._uses = self._uses, _uses(self._device.path)
        return self._uses.done != before.done or self._uses.under_way > 0

    def _make_room(self) -> None:
        """Have the kernel copy some, for which it waits until no request is under way.

        One that is busy has no such moment by itself: its requests wait here for one. None of
        those that are under way may wait for the store then, or all would.
        """
        asked = self._ask_requests()
        if asked is None or asked[1]["under_way"]:
            return
        with self._guard:
            if self._over.is_set():
                return
            try:
                self._device.suspend()
            finally:
                self._device.resume()

    def _claim_zeros(self) -> bool:
        """Count as there what is zeros in the backup, and return whether that is all.

        It blocks; where the store is away, as long as a read does.
        """
        assert self.task is not None
        image = os.open(self._source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for zeros in complement(linux.data_ranges(image), self.task.size_bytes):
                for start in range(*zeros, _CLAIM):
                    if self._over.is_set():
                        return True
                    self._device.claim_zeros(start, min(start + _CLAIM, zeros.end))
        finally:
            os.close(image)
        return True

    def _note(self, done: int, total: int) -> None:
        """Tell how far it is, in bytes."""
        now = time.monotonic()
        self._seen.append((now, done))
        while now - self._seen[0][0] > _SMOOTH:
            self._seen.popleft()
        seconds = now - self._seen[0][0]
        rate = int((done - self._seen[0][1]) / seconds) if seconds else 0
        missing = -(-(total - done) // _PART)
        with self._changed:
            self.news.progress = Progress(
                done=done,
                total=total,
                rate=rate,
                remaining=(total - done) // rate if rate else None,
                damaged=missing if self._gave_up else 0,
                missing=missing,
            )
            self._changed.notify_all()

    def _may_go_on(self, came: int, is_used: bool) -> bool:
        """Whether to copy now, after `came` bytes since the last look."""
        mode, limit = self._wanted
        now = time.monotonic()
        away = self.news.store_trouble or self.news.fill_trouble
        if came or away or self._doing not in (_ON, _ONE_BY_ONE) or not self.news.damaged:
            self._came_at = now
        elif now - self._came_at > _STUCK:
            self._gave_up, self._one_by_one = self._one_by_one, True
            self._came_at = now
        if self._gave_up or mode == "never" or (mode == "lazy" and is_used):
            return False
        if not limit:
            return True
        return self._bucket.take(came) < 0

    def _hydrate(self, on: bool) -> None:
        with self._guard:
            wanted = (on, on and self._one_by_one)
            if wanted == self._doing or self._over.is_set():
                return
            if on:
                self._device.set_batch(one_by_one=self._one_by_one)
            self._device.hydrate(on)
            self._doing = wanted

    def _keep_filled(self) -> bool:
        """Remember that all is there, when it is on the disk."""
        assert self.task is not None
        self._device.flush()
        self._device.status()  # it says so if it could not be noted
        with self._guard:
            if self._over.is_set():
                return False
            full = replace(self.task, is_filled=True)
            full.write(self._task_file)
            self.task = full
        return True

    def _end(self) -> None:
        """Have the device be the pool's volume; process, loop device and map go.

        Raises:
            FillingBusy: the process can't be ended.
        """
        assert self.task is not None
        with self._guard:
            seen = self._device.look()
            if seen is not None and seen.target == "clone":
                self._device.become(self._target(), self.task.size_bytes)
            elif seen is not None and seen.suspended:
                self._device.resume()
            super().close()
            self._pool.remove_clone_metadata(self.volume_id)
            (self._state / "map.root").unlink(missing_ok=True)
            with self._changed:
                self._filled = True
                self.news.all_is_well()
                self._changed.notify_all()


class _Uses(NamedTuple):
    """Reads and writes of a device."""

    done: int
    under_way: int


def _uses(device: Path) -> _Uses:
    """What `device` was used for (Documentation/admin-guide/iostats.rst)."""
    number = device.stat().st_rdev
    stat = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat").read_text().split()
    return _Uses(int(stat[0]) + int(stat[4]), int(stat[8]))


def _forget_pages(device: Path) -> None:
    """Have nobody read from the page cache what was there before the device was written to."""
    file = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)
