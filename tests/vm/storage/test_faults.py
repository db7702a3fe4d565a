"""Disks under the volume group that can't give some bytes, or do not answer at all."""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lunr.backup import worker
from lunr.common import errors
from lunr.storage import system
from lunr.storage.engine import Engine
from lunr.storage.exports import Exports
from lunr.storage.job import Job
from lunr.storage.jobs import HANDLERS, Node
from lunr.storage.pools import volume_group as volume_group_module
from lunr.storage.pools.base import Pool, Purpose, Snapshot
from lunr.storage.pools.lvm import LvmPool
from lunr.storage.pools.thin import ThinPool
from lunr.storage.references import References
from lunr.storage.targets.tgt import TgtTarget
from tests.support.initiator import sh
from tests.support.volume_groups import volume_group
from tests.system.storage.nodes import make_fillings

# For a machine that has other things to do, too.
pytestmark = pytest.mark.timeout(300)

GROUP = "lunr-faulty"
NAME = "faulty"
KEY = "5a" * 32
MIB = 1 << 20
SECTOR = 512
SIZE = 12 * MIB


class Disk:
    """A part of the disk `below`, by device-mapper, so that it can be made to fail.

    It is not the first part, else LVM would see the same label on both.
    """

    first = MIB // SECTOR
    sectors = 400 * MIB // SECTOR

    def __init__(self, below: Path) -> None:
        self.below = below
        self.path = Path("/dev/mapper", NAME)
        self._dmsetup("create", NAME, table=self._linear(0, self.sectors))

    def spoil(self, sector: int) -> None:
        """Have it fail to read or write `sector`."""
        after = sector + 1
        table = (
            self._linear(0, sector),
            f"{sector} 1 error",
            self._linear(after, self.sectors - after),
        )
        self._reload("\n".join(table))

    def mend(self) -> None:
        self._reload(self._linear(0, self.sectors))

    def hang(self) -> None:
        """Have it answer nothing until it is mended."""
        self._dmsetup("suspend", "--nolockfs", NAME)

    def remove(self) -> None:
        self._dmsetup("remove", "--retry", NAME)

    def sector_of(self, data: bytes) -> int:
        """Where `data` begins on the disk, whatever is in between."""
        file = os.open(self.below, os.O_RDONLY | os.O_DIRECT)
        try:
            with mmap.mmap(-1, 4 * MIB) as buffer:
                for at in range(0, self.sectors * SECTOR, len(buffer)):
                    os.preadv(file, [buffer], self.first * SECTOR + at)
                    if (found := buffer.find(data)) >= 0:
                        assert found % SECTOR == 0
                        return (at + found) // SECTOR
        finally:
            os.close(file)
        raise AssertionError("it is not on the disk")

    def _linear(self, start: int, length: int) -> str:
        return f"{start} {length} linear {self.below} {self.first + start}"

    def _reload(self, table: str) -> None:
        self._dmsetup("load", NAME, table=table)
        self._dmsetup("suspend", "--nolockfs", NAME)
        self._dmsetup("resume", NAME)

    def _dmsetup(self, *words: str, table: str = "") -> None:
        subprocess.run(["dmsetup", *words], input=table.encode(), check=True, timeout=30)


@pytest.fixture
def faulty(small_disk: Path) -> Iterator[Disk]:
    disk = Disk(small_disk)
    yield disk
    disk.remove()


@pytest.fixture(params=["lvm", "thin"])
def pool(request: pytest.FixtureRequest, faulty: Disk) -> Iterator[Pool]:
    thin = "pool" if request.param == "thin" else None
    with volume_group(GROUP, faulty.path, thin_pool=thin):
        pool = ThinPool(GROUP, thin, 85) if thin else LvmPool(GROUP)
        pool.check()
        yield pool
        faulty.mend()  # or its group can't be removed
        pool.close()


class Work:
    """Jobs, done as the agent does them."""

    def __init__(self, pool: Pool, folder: Path) -> None:
        self._folder = folder
        engine = Engine(url=f"files:{folder}/store", options={}, key=KEY)
        target = TgtTarget(folder / "no-socket", Path("/dev", GROUP))
        fillings = make_fillings(pool, engine)
        references = References(pool, keep=True, days=1)
        self._node = Node(pool, Exports(fillings, target), engine, fillings, references)

    def do(self, kind: str, volume_id: str, **payload: Any) -> Any:
        claimed = {"id": "j", "kind": kind, "lease": "l", "lease_seconds": 600, "attempt": 1}
        job = Job({**claimed, "volume_id": volume_id, "payload": payload})
        return HANDLERS[kind](self._node, job)

    def save(self, backup_id: str) -> None:
        fields = {"backup_id": backup_id, "repository": "account", "parent_id": None}
        self.do("backup.save", "v1", **fields, created_at="2026-11-23T12:00:00Z")

    def saved(self, backup_id: str) -> bytes:
        """The bytes of a backup, read without another process: each takes long to start here."""
        file = self._folder / backup_id
        file.write_bytes(bytes(SIZE))
        task = {
            "task": "restore",
            "store": {"url": self._node.engine.url},
            "key": KEY,
            "repository": "account",
            "backup_id": backup_id,
            "target": str(file),
        }
        worker.run(task, lambda _done, _total: None, threading.Event())
        return file.read_bytes()


@pytest.fixture
def work(pool: Pool, tmp_path: Path) -> Work:
    return Work(pool, tmp_path)


def write(path: Path, data: bytes, offset: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def test_a_bad_sector_is_named_and_the_volume_goes_on(work: Work, pool: Pool, faulty: Disk) -> None:
    work.do("volume.create", "v1", size_bytes=SIZE)
    data = random.Random(1).randbytes(SIZE)
    write(pool.path("v1"), data)
    sector = (5 * MIB) // SECTOR + 77
    faulty.spoil(faulty.sector_of(data[sector * SECTOR : (sector + 1) * SECTOR]))
    with pytest.raises(errors.RemoteError, match=f"sector {sector} of 512 bytes.*Input/output"):
        work.save("b1")
    assert not pool.snapshots()

    after = random.Random(2).randbytes(MIB)
    write(pool.path("v1"), after, 8 * MIB)
    sh("dd", f"if={pool.path('v1')}", "of=/dev/null", "bs=1M", "skip=6", "iflag=direct")

    faulty.mend()
    work.save("b2")
    assert pool.snapshots() == {Snapshot("v1", "b2", Purpose.REFERENCE)}
    assert work.saved("b2") == data[: 8 * MIB] + after + data[9 * MIB :]


def test_a_disk_that_hangs_fails_jobs_in_time_and_all_goes_on_after(
    work: Work, pool: Pool, faulty: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    work.do("volume.create", "v1", size_bytes=SIZE)
    monkeypatch.setattr(volume_group_module, "TIMEOUT", 3.0)
    monkeypatch.setattr(system, "_KILL_WAIT", 1.0)
    faulty.hang()
    try:
        with pytest.raises(system.CommandTimeout) as caught:
            work.do("volume.create", "v2", size_bytes=SIZE)
        assert caught.value.retry
    finally:
        faulty.mend()
    monkeypatch.undo()
    work.do("volume.create", "v2", size_bytes=SIZE)
    assert pool.volumes() == {"v1", "v2"}
    write(pool.path("v2"), b"x" * MIB)
