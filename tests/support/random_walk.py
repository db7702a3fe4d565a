"""A random walk on one volume: all that the pool and backups tell of it is compared with a copy."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import stat
import struct
from pathlib import Path

from lunr.common import linux
from lunr.storage.pools.base import Purpose, Snapshot
from tests.support.node_work import Work
from tests.support.pool_contract import check_covers

KIB, MIB = 1 << 10, 1 << 20
#: What discards begin and end at: a multiple of every pool's own blocks.
_GRAIN = 64 * KIB
#: linux/fs.h: _IO(0x12, 119)
_BLKDISCARD = 0x1277


class Walk:
    """Writes, discards, extends, users' snapshots and backups of the volume v1.

    Before each backup what the pool tells to have changed since the last one must cover what
    has; every backup, and every user's snapshot, must be as the volume was.

    Args:
        work: a node without that volume.
        size: bytes of the volume; it grows by as many, and up to four times that.
    """

    def __init__(self, work: Work, size: int) -> None:
        self.seed = random.randrange(1 << 32)
        print(f"seed {self.seed}")
        self._chance = random.Random(self.seed)
        self._work, self._pool, self._unit = work, work.pool, size
        self._now = bytearray(size)
        self._kept: dict[Snapshot, bytes] = {}
        self._backups: dict[str, bytes] = {}
        self._last = ""
        #: How often what has changed was told.
        self.told = 0
        work.do("volume.create", "v1", size_bytes=size)

    def go(self, rounds: int) -> None:
        """So many backups, and random work before each; then all that was kept is looked at."""
        moves = [self._write] * 6 + [self._discard] * 3 + [self._snapshot, self._drop, self._extend]
        for _ in range(rounds):
            for _ in range(self._chance.randrange(8)):
                self._chance.choice(moves)()
            self._save()
            if self._chance.random() < 0.3:
                self._check_backup(self._chance.choice(list(self._backups)))
        for snapshot, content in self._kept.items():
            assert self._pool.path(snapshot).read_bytes() == content, snapshot
        for backup_id in self._backups:
            self._check_backup(backup_id)

    # --- the moves ------------------------------------------------------------------

    def _write(self) -> None:
        length = self._chance.choice([1, 512, 4096, 32 * KIB, self._chance.randrange(1, 300 * KIB)])
        start = self._chance.randrange(len(self._now) - length)
        if self._chance.random() < 0.2:
            data = bytes(length)
        elif self._chance.random() < 0.2:
            data = bytes(self._now[start : start + length])  # written, but not changed
        else:
            data = self._chance.randbytes(length)
        with self._path().open("r+b") as file:
            file.seek(start)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._now[start : start + length] = data

    def _discard(self) -> None:
        grains = len(self._now) // _GRAIN
        first = self._chance.randrange(grains)
        count = self._chance.randrange(1, min(16, grains - first) + 1)
        start, length = first * _GRAIN, count * _GRAIN
        with self._path().open("r+b") as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                linux.punch_hole(file.fileno(), start, length)
            else:
                try:
                    fcntl.ioctl(file, _BLKDISCARD, struct.pack("=2Q", start, length))
                except OSError as error:
                    if error.errno != errno.EOPNOTSUPP:  # dm-snapshot's origins take none
                        raise
                    return
        self._now[start : start + length] = bytes(length)

    def _extend(self) -> None:
        if len(self._now) < 4 * self._unit:
            self._now += bytes(self._unit)
            self._pool.extend("v1", len(self._now))  # the job would need a target

    def _snapshot(self) -> None:
        if len(self._kept) < 2:
            snapshot = Snapshot("v1", f"s{self._chance.randrange(1 << 32)}")
            self._work.do("snapshot.create", "v1", snapshot_id=snapshot.id)
            self._kept[snapshot] = bytes(self._now)

    def _drop(self) -> None:
        if self._kept:
            snapshot = self._chance.choice(list(self._kept))
            assert self._pool.path(snapshot).read_bytes() == self._kept.pop(snapshot)
            self._work.do("snapshot.delete", "v1", snapshot_id=snapshot.id)

    def _save(self) -> None:
        backup_id = f"b{len(self._backups)}"
        if self._kept and self._chance.random() < 0.2:
            snapshot = self._chance.choice(list(self._kept))
            content = self._kept[snapshot]
            self._work.save(backup_id, self._last or None, snapshot_id=snapshot.id)
            self._backups[backup_id] = content
            return
        self._check_changed()
        # The parent is the last one, or one that nothing is kept of.
        parents = [self._last] * 4 + list(self._backups)
        parent = self._chance.choice(parents) if self._last else None
        self._work.save(backup_id, parent)
        self._backups[backup_id] = bytes(self._now)
        self._last = backup_id

    # --- what must be ---------------------------------------------------------------

    def _check_changed(self) -> None:
        baseline = Snapshot("v1", self._last, Purpose.BASELINE)
        if baseline not in self._pool.snapshots():
            return
        extents = self._pool.changed(baseline, "v1")
        if extents is not None:
            self.told += 1
            before = self._backups[self._last].ljust(len(self._now), b"\0")
            check_covers(extents, before, bytes(self._now))

    def _check_backup(self, backup_id: str) -> None:
        content = self._backups[backup_id]
        assert self._work.saved(backup_id, len(content)) == content, backup_id

    def _path(self) -> Path:
        return self._pool.path("v1")
