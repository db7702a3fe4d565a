"""Volumes as sparse files on a file system with reflink (XFS, btrfs).

A snapshot or clone shares the blocks of its source until one of them is
written (FICLONE, ioctl_ficlonerange(2)): it is atomic and takes no room. The
folder is::

    volumes/VOLUME            one sparse file a volume
    snapshots/VOLUME.ID       a user's snapshot
    backups/VOLUME.ID         the snapshot that a running backup reads
    baselines/VOLUME.ID      the snapshot that the next one is compared with
    */*.RANDOM.tmp            half done; it gets its name by link(2), in one step

(ids have no dots). Where the folder's file system has no reflink, all this is
in an XFS of our own: ``pool.img`` in the folder, mounted on ``mnt`` beside it.

A file that is unlinked gives its blocks back to the file system, which never
shows them again: holes and what lies past the old end read as zeros.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from lunr.common import concurrency, errors, files, ids, units
from lunr.common.extents import Extent
from lunr.storage import system
from lunr.storage.pools import extent_maps
from lunr.storage.pools.base import (
    Capacity,
    Pool,
    PoolFull,
    PoolUnusable,
    Purpose,
    Snapshot,
    Tick,
    no_tick,
    not_found,
)
from lunr.storage.pools.files import fiemap

_log = logging.getLogger(__name__)

#: linux/fs.h: _IOW(0x94, 9, int)
FICLONE = 0x40049409

_TEMPORARY = ".tmp"

#: Bytes; with less of them free, in the pool or on the disk below its image, it is full.
_LEAST_FREE = 16 * units.MIB

#: Share of the room; with less of it free, baselines are given up.
_TIGHT = 0.1

#: mkfs.xfs and mount are done in a second; a slow disk is given time.
_TOOL_TIMEOUT = 300.0


class FilesPool(Pool):
    """A pool of sparse files in the folder `path`."""

    name = "files"

    def __init__(self, path: Path, image_gib: int, overcommit: float = 1.0) -> None:
        self.folder = path
        self.image = path / "pool.img"
        self.mountpoint = path / "mnt"
        self._image_bytes = image_gib * units.GIB
        self._overcommit = overcommit
        self._root: Path | None = None
        self._lock: int | None = None
        self._checking = threading.Lock()

    # --- making it ready ---------------------------------------------------------

    def check(self) -> None:
        """Make the folders, and the image where the file system has no reflink."""
        with self._checking:
            if self._root is not None:
                return
            with contextlib.ExitStack() as undo:
                try:
                    self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                    # For this process alone: `clean` must not meet another's half-done work.
                    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                    lock = os.open(self.folder / "lock", flags, 0o600)
                    undo.callback(os.close, lock)
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    root = self._make_root()
                except BlockingIOError as error:
                    raise PoolUnusable(
                        place=self.folder, reason="another process uses it"
                    ) from error
                except OSError as error:
                    raise PoolUnusable(place=self.folder, reason=str(error)) from error
                undo.pop_all()
            self._root, self._lock = root, lock

    def _make_root(self) -> Path:
        root = self.folder
        if self.image.exists() or not _has_reflink(self.folder):
            self._mount_image()
            root = self.mountpoint
        for kind in ("volumes", *Purpose):
            (root / kind).mkdir(mode=0o700, exist_ok=True)
        return root

    def close(self) -> None:
        """Unlock the folder."""
        with self._checking:
            if self._lock is not None:
                os.close(self._lock)
            self._lock = self._root = None

    def _mount_image(self) -> None:
        _log.info("%s has no reflink: volumes go to an XFS in %s", self.folder, self.image)
        self.mountpoint.mkdir(mode=0o700, exist_ok=True)
        if self.mountpoint.is_mount():
            # A killed agent leaves the mount, and attached initiators use it.
            backing = _loop_file(self.mountpoint)
            if backing != self.image.resolve():
                raise PoolUnusable(
                    place=self.folder,
                    reason=f"{backing or 'something else'} is mounted on {self.mountpoint}; "
                    "unmount it",
                )
            return
        if not self.image.exists():
            new = self.image.with_name(self.image.name + _TEMPORARY)
            with new.open("wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.truncate(self._image_bytes)
            system.run(["mkfs.xfs", "-q", "-f", "-m", "reflink=1", new], timeout=_TOOL_TIMEOUT)
            files.fsync(new)
            new.rename(self.image)
            files.fsync(self.folder)
        # discard: what is deleted inside goes back to the disk that the image is on.
        options = "loop,discard,nodev,nosuid,noexec"
        system.run(
            ["mount", "-t", "xfs", "-o", options, self.image, self.mountpoint],
            timeout=_TOOL_TIMEOUT,
        )

    def clean(self) -> None:
        """Remove the temporary files of a process that was killed."""
        for folder in (self.folder, *(self._folder(kind) for kind in ("volumes", *Purpose))):
            for path in folder.glob(f"*{_TEMPORARY}"):
                _log.info("removing %s, left over by a process that was killed", path)
                path.unlink()

    # --- what is there -----------------------------------------------------------

    def capacity(self) -> Capacity:
        """Room of the file system; of an image, no more than the disk below can hold."""
        try:
            total, free = _room(self._ready())
            if self._root != self.folder:
                _, below = _room(self.folder)
                image = self.image.stat().st_blocks * 512
                total, free = min(total, image + below), min(free, below)
        except OSError as error:
            raise PoolUnusable(place=self.folder, reason=str(error)) from error
        full = ""
        if free < _LEAST_FREE:  # the file system's own notes need some of it
            full = f"{self.folder} has {units.human(free)} free: writes to volumes fail soon."
        return Capacity(int(total * self._overcommit), free, full=full, tight=free < total * _TIGHT)

    def volumes(self) -> frozenset[str]:
        """The files in ``volumes``."""
        names = (path.name for path in self._folder("volumes").iterdir())
        return frozenset(name for name in names if ids.is_valid(name))

    def snapshots(self) -> frozenset[Snapshot]:
        """The files in ``snapshots``, ``backups`` and ``references``."""
        return frozenset(found for purpose in Purpose for found in self._snapshots(purpose))

    def _snapshots(self, purpose: Purpose) -> Iterator[Snapshot]:
        for path in self._folder(purpose).iterdir():
            volume_id, _, snapshot_id = path.name.partition(".")
            if ids.is_valid(volume_id) and ids.is_valid(snapshot_id):
                yield Snapshot(volume_id, snapshot_id, purpose)

    def baselines(self) -> Mapping[Snapshot, float]:
        """The files in ``references``, and when they were written to: by the clone."""
        found = {}
        for snapshot in self._snapshots(Purpose.BASELINE):
            with contextlib.suppress(FileNotFoundError):  # it went meanwhile
                found[snapshot] = self._path(snapshot).stat().st_mtime
        return found

    def size(self, subject: str | Snapshot) -> int:
        """The length of the file."""
        return self.path(subject).stat().st_size

    def path(self, subject: str | Snapshot) -> Path:
        """The file of a volume or snapshot that is there."""
        path = self._path(subject)
        if not path.exists():
            raise not_found(subject)
        return path

    # --- changes -----------------------------------------------------------------

    def create(self, volume_id: str, size: int) -> None:
        """Make a file with nothing but a hole in it."""
        self._make(volume_id, size, lambda new: os.truncate(new, size))

    def clone(
        self, volume_id: str, source: str | Snapshot, size: int, tick: Tick = no_tick
    ) -> None:
        """Make a file that shares the blocks of `source`."""
        origin = self._path(source)

        def fill(new: int) -> None:
            length = _clone(origin, new, source)
            if length > size:
                raise errors.Conflict(
                    reason=f"{source} has {length} bytes and does not fit in {size}"
                )
            os.truncate(new, size)

        self._make(volume_id, size, fill)

    def extend(self, volume_id: str, size: int) -> None:
        """Move the end of the file."""
        with self._open(volume_id) as file:
            now = os.fstat(file).st_size
            if now > size:
                raise errors.Conflict(
                    reason=f"volume {volume_id} has {now} bytes, it can't be made smaller ({size})"
                )
            os.truncate(file, size)
            concurrency.blocking(os.fsync, file)

    def delete(self, volume_id: str, tick: Tick = no_tick) -> None:
        """Unlink the file; whoever has it open keeps its blocks until it lets go."""
        path = self._path(volume_id)
        for baseline in self._folder(Purpose.BASELINE).glob(f"{volume_id}.*"):
            self._remove(baseline)
        self._remove(path)

    def snapshot(self, snapshot: Snapshot) -> None:
        """Clone the volume's file in one step, whoever writes to it."""
        origin = self._path(snapshot.volume_id)
        self._publish(self._path(snapshot), lambda new: _clone(origin, new, snapshot.volume_id))

    def delete_snapshot(self, snapshot: Snapshot) -> None:
        """Unlink the file."""
        self._remove(self._path(snapshot))

    def repurpose(self, snapshot: Snapshot, purpose: Purpose) -> None:
        """Rename the file."""
        old, new = self._path(snapshot), self._path(replace(snapshot, purpose=purpose))
        try:
            old.rename(new)
        except FileNotFoundError as error:
            if not new.exists():
                raise not_found(snapshot) from error
        except OSError as error:
            raise self._translate(error) from error
        files.fsync(new.parent)
        files.fsync(old.parent)

    # --- which bytes ---------------------------------------------------------------

    def changed(self, old: Snapshot, new: str | Snapshot) -> Iterator[Extent] | None:
        """Where the two files do not share blocks. They may be of any age and of any volume.

        A block that `old` has too is never written to in place, so that equal
        places are equal bytes, whatever was done between the two.
        """
        before, after = self._path(old), self.path(new)
        return self._differences(before, after) if before.exists() else None

    def _differences(self, old: Path, new: Path) -> Iterator[Extent]:
        try:
            with files.opened(old) as before, files.opened(new) as after:
                sizes = [os.fstat(file).st_size for file in (before, after)]
                runs = [fiemap.runs(file) for file in (before, after)]
                yield from extent_maps.changed(runs[0], sizes[0], runs[1], sizes[1])
        except OSError as error:
            raise self._translate(error) from error

    # --- how ---------------------------------------------------------------------

    def _ready(self) -> Path:
        if self._root is None:
            raise PoolUnusable(place=self.folder, reason="it was not checked yet")
        return self._root

    def _folder(self, kind: str) -> Path:
        return self._ready() / kind

    def _path(self, subject: str | Snapshot) -> Path:
        if isinstance(subject, Snapshot):
            name = f"{ids.check(subject.volume_id)}.{ids.check(subject.id)}"
            return self._folder(subject.purpose) / name
        return self._folder("volumes") / ids.check(subject)

    def _make(self, volume_id: str, size: int, fill: Callable[[int], object]) -> None:
        path = self._path(volume_id)
        self._publish(path, fill)
        there = path.stat().st_size
        if there != size:
            raise errors.Conflict(
                reason=f"there is a volume {volume_id} with {there} bytes, {size} were asked for"
            )

    def _publish(self, path: Path, fill: Callable[[int], object]) -> None:
        """Make the file `path`, filled by `fill(descriptor)`, in one step, if it is not there."""
        if path.exists():
            return
        new = path.with_name(f"{path.name}.{secrets.token_hex(8)}{_TEMPORARY}")
        try:
            with files.opened(new, os.O_RDWR | os.O_CREAT | os.O_EXCL) as file:
                fill(file)
                concurrency.blocking(os.fsync, file)
            with contextlib.suppress(FileExistsError):
                os.link(new, path)  # unlike rename(2), it never replaces what is there
        except OSError as error:
            raise self._translate(error) from error
        finally:
            new.unlink(missing_ok=True)
        files.fsync(path.parent)

    def _remove(self, path: Path) -> None:
        try:
            # Many extents make it slow.
            concurrency.blocking(os.unlink, path)
        except FileNotFoundError:
            return
        files.fsync(path.parent)

    @contextlib.contextmanager
    def _open(self, volume_id: str) -> Iterator[int]:
        try:
            file = os.open(self._path(volume_id), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise not_found(volume_id) from error
        try:
            yield file
        except OSError as error:
            raise self._translate(error) from error
        finally:
            os.close(file)

    def _translate(self, error: OSError) -> errors.LunrError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return PoolFull(place=self.folder, free=units.human(self.capacity().free_bytes))
        return PoolUnusable(place=self.folder, reason=str(error))


def _clone(origin: Path, new: int, subject: str | Snapshot) -> int:
    """Let the file `new` share all blocks of `origin`; returns the length in bytes."""
    try:
        source = os.open(origin, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise not_found(subject) from error
    try:
        # Writes dirty pages of the source out first, which takes its time.
        concurrency.blocking(fcntl.ioctl, new, FICLONE, source)
        return os.fstat(new).st_size
    finally:
        os.close(source)


def _room(folder: Path) -> tuple[int, int]:
    """Bytes of the file system that `folder` is on: in all, and free."""
    room = os.statvfs(folder)
    return room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize


def _has_reflink(folder: Path) -> bool:
    """Whether two files in `folder` can share blocks; found out by trying."""
    paths = [folder / f"probe.{secrets.token_hex(8)}{_TEMPORARY}" for _ in range(2)]
    try:
        with paths[0].open("w+b") as old, paths[1].open("wb") as new:
            old.write(bytes(4096))
            old.flush()
            fcntl.ioctl(new.fileno(), FICLONE, old.fileno())
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS):
            return False
        raise
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
    return True


def _loop_file(mountpoint: Path) -> Path | None:
    """The file behind the loop device that is mounted on `mountpoint`."""
    device = mountpoint.stat().st_dev
    backing = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/loop/backing_file")
    try:
        return Path(backing.read_text().strip())
    except FileNotFoundError:  # not a loop device
        return None
