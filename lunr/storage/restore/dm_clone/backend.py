"""A lazy restore by the kernel: dm-clone, with the backup as a read-only image for its source.

The process that serves a lazy restore (lunr/backup/lazy_image/process.py) here shows the backup as
a file, and only that. A loop device over it is what a dm-clone device reads from that has not been
written or copied yet; the destination is the pool's device, and which blocks are local the kernel
keeps on a device of its own in the pool. Exports have the dm-clone device open. So no byte that is
local passes through a process, and limits of I/O hold.

When the volume is full, the device becomes the pool's device and nothing else, while it is in use,
and process, loop device and metadata go. When nobody has it open any more it goes, too.

If the process dies, reads of what is absent fail until the next one has its place under the loop
device: the kernel does that without anybody having to open anything again.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lunr.backup.lazy_image import mount
from lunr.common import concurrency, errors, ids, linux, units
from lunr.common.extents import Extent, complement
from lunr.common.rate import TokenBucket
from lunr.storage import system
from lunr.storage.agent.backoff import Backoff
from lunr.storage.engine import Engine
from lunr.storage.pools.base import DevicePool
from lunr.storage.restore import loop_device
from lunr.storage.restore.dm_clone import metadata
from lunr.storage.restore.dm_clone.device import AT_ONCE, REGION, CloneDevice, metadata_size
from lunr.storage.restore.process import RestoreProcess
from lunr.storage.restore.record import RestoreRecord
from lunr.storage.restore.status import RestoreSettings
from lunr.storage.restore.supervisor import ProcessSupervisor, RestoreBusy

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


class DmCloneBackend:
    """Serves and fills one volume by a dm-clone device."""

    #: Reads go on when a process takes the place of another.
    generation_to_reopen = None

    def __init__(
        self,
        record: RestoreRecord,
        supervisor: ProcessSupervisor,
        engine: Engine,
        pool: DevicePool,
    ) -> None:
        """Nothing is done yet.

        Args:
            record: the lazy restore.
            supervisor: keeps the process that shows the backup.
            engine: how the store is reached.
            pool: has the volume.
        """
        self._record = record
        self._supervisor = supervisor
        self._engine = engine
        self._pool = pool
        volume_id = ids.check(record.volume_id)
        self._device = CloneDevice(pool.clone_name(volume_id), volume_id)
        self._changed = record.changed
        #: Held by a thread that changes the device.
        self._guard = threading.RLock()
        self._over = threading.Event()
        self._driver: threading.Thread | None = None
        self._has_device = False
        self._zeros_claimed = False
        #: Whether the kernel copies, and region by region; None: unknown.
        self._hydration: tuple[bool, bool] | None = None
        self._settings = RestoreSettings()
        #: Whether all is local that can be had in large pieces of a damaged backup, or at all.
        self._one_by_one = self._gave_up = False
        #: (when, local bytes).
        self._samples: deque[tuple[float, int]] = deque()
        self._progress_at = 0.0
        self._bucket = TokenBucket(0)
        self._uses = _Uses(0, 0)

    @property
    def path(self) -> Path:
        """A link to the device, where targets look for lazy restores."""
        return self._record.run / "device"

    @property
    def holds_device(self) -> bool:
        """Device-mapper claims the devices below its own."""
        return self._has_device

    @property
    def is_in_place(self) -> bool:
        """Whether the device is there."""
        return self._has_device

    @property
    def _is_kept_filled(self) -> bool:
        spec = self._record.spec
        return spec is not None and spec.is_filled

    # --- its life --------------------------------------------------------------------

    def load(self) -> None:
        """See whether the device is there."""
        state = self._device.look()
        if state is not None and state.suspended:  # the agent was killed in the middle of `freeze`
            self._device.resume()
        self._has_device = state is not None

    def start(self) -> None:
        """Have the device read from the backup; of a full volume, have it become the pool's."""
        if not self._is_kept_filled:
            self._supervisor.start(self)
        elif self._has_device and self._driver is None:
            self._make_link()
            self._start_driver()

    def apply_settings(self, settings: RestoreSettings) -> None:
        """See :class:`Backend`."""
        with self._changed:
            if settings.limit != self._bucket.rate:
                self._bucket = TokenBucket(settings.limit, burst=_BURST)
            self._settings, self._gave_up, self._one_by_one = settings, False, False
            self._changed.notify_all()

    def extend(self) -> bool:
        """See :class:`Backend`: of a full volume the device can grow."""
        with self._guard:
            if not self._is_kept_filled or not self._has_device:
                return False
            self._finish()
            size = self._pool.size(self._record.volume_id)
            self._device.replace_by_linear(self._record.device(), size)
            return True

    def remove_from_path(self) -> bool:
        """Remove the device, if nobody has it open."""
        with self._guard:
            state = self._device.look()
            if state is not None:
                if state.open:
                    return False
                self._finish()
                self._device.remove()
                _drop_page_cache(self._record.device())
            self._over.set()
            self._has_device = False
            self._record.delete_run()
            return True

    def stop(self) -> None:
        """See :class:`Backend`."""
        self._over.set()
        self._supervisor.stop()

    def close(self) -> None:
        """Remove the device and end the process; the pool's device stays as it is.

        Raises:
            RestoreBusy: somebody has the device open.
        """
        with self._guard:
            state = self._device.look()
            if state is not None:
                if state.suspended:
                    self._device.resume()
                if state.target == "clone":
                    # What waits for the store would keep the device from going: let it fail.
                    self._device.hydrate(on=False)
                    self._supervisor.kill()
                try:
                    self._device.remove()
                except system.CommandFailed as error:
                    raise self._busy(error) from error
            self._has_device = False
            self._supervisor.end()
            if self._record.run.exists():
                mount.detach_dead(self._record.mountpoint)

    def delete(self) -> None:
        """Remove the device with the metadata from the pool."""
        if self._record.spec is not None:
            self._pool.remove_clone_metadata(self._record.volume_id)

    def mark_reopened(self, generation: int) -> None:
        """Exports need not open anything again."""

    def idle_seconds(self) -> float:
        """The device is the pool's already, and need not be left while it is used."""
        return 0.0

    @contextlib.contextmanager
    def freeze(self) -> Iterator[list[Extent]]:
        """See :class:`Backend`. All I/O waits inside."""
        with self._supervisor.conversation, self._guard:
            if self._is_kept_filled:
                yield []
                return
            metadata_device = self._make_metadata_device()
            try:
                self._hydrate(on=False)  # what is under way must end
                self._device.suspend()
            except errors.LunrError as error:
                self._device.resume()
                raise self._busy(error) from error
            try:
                yield concurrency.blocking(metadata.absent, metadata_device)
            finally:
                self._device.resume()

    def _busy(self, error: errors.LunrError) -> RestoreBusy:
        return RestoreBusy(id=self._record.volume_id, reason=str(error))

    # --- the process and the device ----------------------------------------------------

    def process_task(self) -> dict[str, Any]:
        """See :class:`ProcessUser`."""
        record, spec = self._record, self._record.need_spec()
        return {
            "task": "image",
            **self._engine.access(),
            "repository": ids.check(spec.repository),
            "backup_id": ids.check(spec.backup_id),
            "mountpoint": str(record.mountpoint),
            "size_bytes": spec.size_bytes,
            "root": str(record.root_file),
        }

    def before_spawn(self) -> None:
        """Exports need not open anything again."""

    def prepare_use(self, process: RestoreProcess) -> None:
        """Have the device read from the file of the process."""
        self._set_up_device()
        if process.is_new:
            # The process that knew what was wrong is dead: the next one finds it again.
            with self._changed:
                self._record.set_status(lambda status: status.without_trouble())
                self._gave_up = self._one_by_one = False

    def on_usable(self, process: RestoreProcess) -> None:
        """The process fetches what is read, and nothing else."""

    def _set_up_device(self) -> None:
        """Have the device read from the image; one that is there perhaps reads from a dead one."""
        image = self._record.mounted_file
        with self._guard:
            if self._over.is_set():
                return
            state = self._device.look()
            if state is not None and not state.target:  # its maker was killed
                self._device.remove()
                state = None
            if state is None:
                metadata_device, target = self._make_metadata_device(), self._record.device()
                held, source = concurrency.blocking(loop_device.attach, image)
                try:
                    size = self._record.need_spec().size_bytes
                    self._device.make(metadata_device, target, source, size)
                finally:
                    os.close(held)
            else:
                source = Path("/dev", Path("/sys/dev/block", state.source).resolve().name)
                concurrency.blocking(loop_device.change, source, image)
            self._has_device = True
            self._make_link()
            self._start_driver()

    def _make_metadata_device(self) -> Path:
        """The device that the kernel keeps in which blocks are local; made if it is not there."""
        size = metadata_size(self._record.need_spec().size_bytes)
        return self._pool.make_clone_metadata(self._record.volume_id, size)

    def _make_link(self) -> None:
        self._record.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self.path.is_symlink():
            self.path.symlink_to(self._device.path)

    # --- the fill ----------------------------------------------------------------------

    def _start_driver(self) -> None:
        """Have a thread fill from now on."""
        if self._driver is None:
            name = f"cloning-{self._record.volume_id}"
            self._driver = threading.Thread(target=self._drive_fill, name=name, daemon=True)
            self._driver.start()

    def _drive_fill(self) -> None:
        backoff = Backoff(self._over)
        while not self._over.is_set():
            try:
                if self._is_kept_filled or self._advance_fill():
                    self._finish()
                    return
                backoff.over()
                self._set_trouble(None)
            except (errors.LunrError, OSError) as error:
                self._set_trouble(str(error))
                backoff.wait(error)
            with self._changed:
                limited = self._settings.limit and not self._gave_up
                self._changed.wait(_LOOK_LIMITED if limited else _LOOK_EVERY)

    def _set_trouble(self, trouble: str | None) -> None:
        """Note what keeps the fill from going on, or that this is over."""
        with self._changed:  # nobody waits for it
            self._record.status = replace(self._record.status, fill_trouble=trouble)

    def _advance_fill(self) -> bool:
        """See how far the device is and have it go on by the settings; whether it is full."""
        if not self._supervisor.is_mounted:  # it would fail to copy, again and again
            self._hydrate(on=False)
            return False
        if not self._zeros_claimed:
            try:
                self._zeros_claimed = concurrency.blocking(self._claim_zeros)
            except OSError:
                self._zeros_claimed = bool(self._record.status.damage)  # then they are copied
                if not self._zeros_claimed:
                    raise
        status = self._device.status()
        done = status.hydrated * REGION
        before = self._samples[-1][1] if self._samples else done
        self._set_progress(done, status.total * REGION)
        if status.hydrated == status.total:
            return self._keep_filled()
        came, is_used = done - before, self._is_used()
        may_go_on = self._may_go_on(came, is_used)
        if is_used and came < AT_ONCE and may_go_on and self._hydration in (_ON, _ONE_BY_ONE):
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
        asked = self._supervisor.ask_requests()
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
        size = self._record.need_spec().size_bytes
        image = os.open(self._record.mounted_file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for zeros in complement(linux.data_ranges(image), size):
                for start in range(*zeros, _CLAIM):
                    if self._over.is_set():
                        return True
                    self._device.claim_zeros(start, min(start + _CLAIM, zeros.end))
        finally:
            os.close(image)
        return True

    def _set_progress(self, done: int, total: int) -> None:
        """Note how far the fill is, in bytes."""
        now = time.monotonic()
        self._samples.append((now, done))
        while now - self._samples[0][0] > _SMOOTH:
            self._samples.popleft()
        seconds = now - self._samples[0][0]
        rate = int((done - self._samples[0][1]) / seconds) if seconds else 0
        missing = -(-(total - done) // _PART)
        with self._changed:
            progress = {
                "done": done,
                "total": total,
                "rate": rate,
                "remaining": (total - done) // rate if rate else None,
                "damaged": missing if self._gave_up else 0,
                "missing": missing,
            }
            self._record.apply_event("progress", progress)

    def _may_go_on(self, came: int, is_used: bool) -> bool:
        """Whether to copy now, after `came` bytes since the last look."""
        mode, limit = self._settings.mode, self._settings.limit
        now, status = time.monotonic(), self._record.status
        away = status.store_trouble or status.fill_trouble
        if came or away or self._hydration not in (_ON, _ONE_BY_ONE) or not status.damage:
            self._progress_at = now
        elif now - self._progress_at > _STUCK:
            self._gave_up, self._one_by_one = self._one_by_one, True
            self._progress_at = now
        if self._gave_up or mode == "never" or (mode == "lazy" and is_used):
            return False
        if not limit:
            return True
        return self._bucket.take(came) < 0

    def _hydrate(self, on: bool) -> None:
        with self._guard:
            requested = (on, on and self._one_by_one)
            if requested == self._hydration or self._over.is_set():
                return
            if on:
                self._device.set_batch(one_by_one=self._one_by_one)
            self._device.hydrate(on)
            self._hydration = requested

    def _keep_filled(self) -> bool:
        """Keep that the volume is full, when all of it is on the disk."""
        self._device.flush()
        self._device.status()  # it says so if it could not be noted
        with self._guard:
            if self._over.is_set():
                return False
            self._record.write_spec(replace(self._record.need_spec(), is_filled=True))
        return True

    def _finish(self) -> None:
        """Have the device be the pool's; process, loop device and metadata go.

        Raises:
            RestoreBusy: the process can't be ended.
        """
        with self._guard:
            state = self._device.look()
            if state is not None and state.target == "clone":
                size = self._record.need_spec().size_bytes
                self._device.replace_by_linear(self._record.device(), size)
            elif state is not None and state.suspended:
                self._device.resume()
            self._supervisor.end()
            self._pool.remove_clone_metadata(self._record.volume_id)
            self._record.root_file.unlink(missing_ok=True)
            self._record.apply_event("filled", {})


class _Uses(NamedTuple):
    """Reads and writes of a device."""

    done: int
    under_way: int


def _uses(device: Path) -> _Uses:
    """What `device` was used for (Documentation/admin-guide/iostats.rst)."""
    number = device.stat().st_rdev
    stat = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat").read_text().split()
    return _Uses(int(stat[0]) + int(stat[4]), int(stat[8]))


def _drop_page_cache(device: Path) -> None:
    """Have nobody read from the page cache what was there before the device was written to."""
    file = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)
