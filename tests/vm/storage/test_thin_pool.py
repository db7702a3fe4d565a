"""The thin pool, on LVM and the kernel's dm-thin."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from lunr.common import errors
from lunr.common.extents import Extent
from lunr.storage import system
from lunr.storage.pools.base import Capacity, PoolFull, PoolUnusable, Purpose, Snapshot
from lunr.storage.pools.lvm.logical_volumes import Role, tags_for
from lunr.storage.pools.thin import status as thin_status
from lunr.storage.pools.thin.pool import ThinPool
from lunr.storage.pools.thin.status import Mode
from tests.support.faults.faulty_disk import replaced
from tests.support.initiator import sh
from tests.support.pool_contract import PoolContract
from tests.support.volume_groups import volume_group
from tests.support.waiting import wait_until
from tests.vm.conftest import SMALL_DISK

MIB = 1 << 20
SIZE = 8 * MIB
#: Of the pool's blocks: LVM's choice for a small pool.
BLOCK = 64 << 10
#: The hyphens are there to be doubled by device-mapper.
GROUP, POOL = "lunr-thin", "po-ol"
POOL_SIZE = 160 * MIB
NAME = f"{GROUP}/{POOL}"
DEVICE = "lunr--thin-po--ol-tpool"
#: linux/fs.h: _IO(0x12, 119)
BLKDISCARD = 0x1277
NO_SPACE_TIMEOUT = Path("/sys/module/dm_thin_pool/parameters/no_space_timeout")


@pytest.fixture(scope="module")
def group() -> Iterator[str]:
    with volume_group(GROUP, SMALL_DISK) as group:
        make_pool()
        yield group


@pytest.fixture(scope="module")
def checked(group: str) -> Iterator[ThinPool]:
    pool = ThinPool(group, POOL, full_percent=85)
    pool.check()
    yield pool
    pool.close()


@pytest.fixture
def pool(checked: ThinPool) -> Iterator[ThinPool]:
    yield checked
    if any(device.name != POOL for device in Path("/dev").glob(f"{GROUP}/*")):
        sh("lvremove", "-qffy", "-S", "segtype=thin", GROUP)
        assert not kernel().held


@pytest.fixture
def alone(pool: ThinPool) -> Iterator[ThinPool]:
    """The pool, which the test closes while others use the group."""
    yield pool
    pool.check()


def make_pool(size: int = POOL_SIZE) -> None:
    sh("lvcreate", "-qqy", "--type", "thin-pool", "-Zy", "-L", f"{size}b", "-n", POOL, GROUP)


def kernel() -> thin_status.ThinStatus:
    """What the kernel says of the pool."""
    said = sh("dmsetup", "status", "--target", "thin-pool")
    status = thin_status.parse(said, (DEVICE, DEVICE.removesuffix("-tpool")))
    assert status is not None, said
    return status


def look() -> Capacity:
    """The capacity as a pool sees it that did not look a moment ago, as `watch` does."""
    return ThinPool(GROUP, POOL, full_percent=85).capacity()


def write(path: Path, offset: int, data: bytes) -> None:
    """Write, and wait for the disk to have it."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def discard(path: Path, start: int, length: int) -> None:
    with path.open("r+b") as file:
        fcntl.ioctl(file, BLKDISCARD, struct.pack("QQ", start, length))


def fill(path: Path, piece: bytes) -> int:
    """Write `piece`, past the page cache, until no more is taken; how many bytes were."""
    buffer = mmap.mmap(-1, len(piece))
    buffer[:] = piece
    file = os.open(path, os.O_WRONLY | os.O_DIRECT)
    written = 0
    try:
        with contextlib.suppress(OSError):
            while True:
                written += os.write(file, buffer)
    finally:
        os.close(file)
        buffer.close()
    return written


class TestThinPool(PoolContract):
    unit: ClassVar[int] = 4 * MIB
    examples: ClassVar[int] = 2
    steps: ClassVar[int] = 8


# --- room -------------------------------------------------------------------------------


def test_a_full_pool_loses_nothing_and_shows_nothing_old(
    pool: ThinPool, caplog: pytest.LogCaptureFixture
) -> None:
    """What writers see of it, what was acknowledged, and what the next volumes see of it."""
    NO_SPACE_TIMEOUT.write_text("3")
    pool.create("small", SIZE)
    pool.create("big", 2 * POOL_SIZE)
    small, big = pool.path("small"), pool.path("big")
    write(small, 0, b"kept")
    secret = random.Random(5).randbytes(MIB)
    written = fill(big, secret)
    assert POOL_SIZE - 2 * MIB < written < POOL_SIZE
    assert kernel().mode is Mode.OUT_OF_DATA

    with caplog.at_level(logging.INFO):
        pool.watch()
        pool.watch()
    assert caplog.text.count("lvextend -L +SIZE lunr-thin/po-ol") == 1
    capacity = pool.capacity()
    assert "full and writes fail" in capacity.full
    assert capacity.free_bytes == 0
    assert capacity.tight
    for attempt in (
        lambda: pool.create("more", SIZE),
        lambda: pool.snapshot(Snapshot("small", "s1")),
        lambda: pool.clone("more", "small", SIZE),
    ):
        with pytest.raises(PoolFull, match="thin pool lunr-thin/po-ol"):
            attempt()
    with pytest.raises(OSError, match=r"No space|Input/output"):
        write(small, BLOCK, b"lost, and the writer knows")
    write(small, 4, b" also")  # a block that it has
    for start in range(0, written, MIB):
        assert read(big, start, MIB) == secret

    # Enlarged, it takes writes again.
    sh("lvextend", "-qqy", "-L", f"+{16 * MIB}b", NAME)
    write(small, BLOCK, b"taken")
    assert read(small, 0, 9) == b"kept also"
    with caplog.at_level(logging.INFO):
        pool.delete("big")
        pool.watch()
    assert "has room again" in caplog.text
    assert pool.capacity().used["data"] < 0.1
    assert not pool.capacity().tight

    # Every block held the secret; a few bytes into each show only themselves.
    pool.create("next", SIZE)
    path = pool.path("next")
    with path.open("r+b") as file:
        for start in range(0, SIZE, BLOCK):
            file.seek(start + 5000)
            file.write(b"x")
    wanted = (bytes(5000) + b"x" + bytes(BLOCK - 5001)) * (SIZE // BLOCK)
    assert path.read_bytes() == wanted


def test_a_writer_waits_while_a_full_pool_is_enlarged(pool: ThinPool) -> None:
    NO_SPACE_TIMEOUT.write_text("60")
    pool.create("v1", 2 * POOL_SIZE)
    room = kernel().free
    piece = random.Random(6).randbytes(MIB)
    path, failed = pool.path("v1"), []

    def write_much() -> None:
        try:
            with path.open("r+b", buffering=0) as file:
                for _ in range(room // MIB + 4):
                    file.write(piece)
                    os.fsync(file.fileno())
        except OSError as error:
            failed.append(error)

    writer = threading.Thread(target=write_much)
    writer.start()
    try:
        wait_until(lambda: kernel().mode is Mode.OUT_OF_DATA)
        # Nothing that is done to other volumes meanwhile has to wait.
        pool.delete("v9")
        assert pool.volumes() == {"v1"}
        assert writer.is_alive()
    finally:
        sh("lvextend", "-qqy", "-L", f"+{16 * MIB}b", NAME)
        writer.join(60)
    assert not failed
    for start in range(0, room + 4 * MIB - room % MIB, MIB):
        assert read(path, start, MIB) == piece


def test_full_percent_stops_placement_before_the_pool_is_full(pool: ThinPool) -> None:
    pool.create("v1", SIZE)
    write(pool.path("v1"), 0, bytes(range(256)) * (SIZE // 256))
    capacity = look()
    assert not capacity.full
    assert 0 < capacity.used["data"] < 0.1
    assert 0 < capacity.used["metadata"] < 0.5
    assert capacity.free_bytes == pytest.approx(kernel().size - SIZE, abs=BLOCK)
    strict = ThinPool(GROUP, POOL, full_percent=2, overcommit=3.0)
    assert "% full" in strict.capacity().full
    assert strict.capacity().capacity_bytes == 3 * kernel().size


def test_what_is_deleted_or_discarded_comes_back(pool: ThinPool) -> None:
    pool.create("v1", SIZE)
    free = look().free_bytes
    write(pool.path("v1"), 0, b"x" * SIZE)
    assert look().free_bytes < free
    path = pool.path("v1")
    discard(path, MIB, SIZE - MIB)
    extents = pool.allocated("v1")
    assert extents is not None
    assert list(extents) == [Extent(0, MIB)]
    assert read(path, MIB, SIZE) == bytes(SIZE - MIB)
    pool.delete("v1")
    assert look().free_bytes == free


# --- which bytes ------------------------------------------------------------------------


def test_maps_agree_with_a_random_walk(pool: ThinPool) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    pool.create("v1", SIZE)
    path = pool.path("v1")
    shadow = bytearray(SIZE)
    last = Snapshot("v1", "s0")
    pool.snapshot(last)
    before = bytes(shadow)
    for number in (1, 2):
        touched: set[int] = set()
        for _ in range(chance.randrange(1, 20)):
            start, length = chance.randrange(len(shadow)), chance.randrange(1, 4 * BLOCK)
            end = min(start + length, len(shadow))
            touched.update(range(start // BLOCK, -(-end // BLOCK)))
            if chance.random() < 0.3:
                start, end = start // BLOCK * BLOCK, -(-end // BLOCK) * BLOCK
                discard(path, start, end - start)
                shadow[start:end] = bytes(end - start)
            else:
                data = chance.randbytes(end - start)
                write(path, start, data)
                shadow[start:end] = data
        if chance.random() < 0.5:
            pool.extend("v1", len(shadow) + SIZE)
            touched.update(range(len(shadow) // BLOCK, (len(shadow) + SIZE) // BLOCK))
            shadow += bytes(SIZE)
        snapshot = Snapshot("v1", f"s{number}", chance.choice(list(Purpose)))
        pool.snapshot(snapshot)
        now = bytes(shadow)
        assert pool.path(snapshot).read_bytes() == now
        changes = pool.changed(last, snapshot)
        assert changes is not None
        extents = list(changes)
        covers(extents, before.ljust(len(now), b"\0"), now)
        assert {b for start, end in extents for b in range(start // BLOCK, end // BLOCK)} <= touched
        whole = pool.allocated(snapshot)
        assert whole is not None
        covers(list(whole), bytes(len(now)), now)
        last, before = snapshot, now


def covers(extents: list[Extent], old: bytes, new: bytes) -> None:
    """Outside of `extents`, which are in order and do not touch, `old` and `new` are the same."""
    end = -1
    outside = []
    for extent in extents:
        assert end < extent.start < extent.end
        outside.append((max(end, 0), extent.start))
        end = extent.end
    outside.append((max(end, 0), len(new)))
    assert all(old[start:stop] == new[start:stop] for start, stop in outside)


def test_maps_are_read_one_after_another_and_kept_no_longer(pool: ThinPool) -> None:
    pool.create("v1", SIZE)
    write(pool.path("v1"), 0, b"x")
    old = Snapshot("v1", "s1")
    pool.snapshot(old)
    write(pool.path("v1"), 3 * BLOCK, b"x")
    allocated, changed = pool.allocated("v1"), pool.changed(old, "v1")
    assert not kernel().held
    assert allocated is not None
    assert changed is not None
    assert next(allocated) == Extent(0, BLOCK)
    write(pool.path("v1"), 9 * BLOCK, b"later than the question")
    assert next(changed) == Extent(3 * BLOCK, 4 * BLOCK)
    assert next(allocated) == Extent(3 * BLOCK, 4 * BLOCK)
    changed.close()
    assert list(allocated) == []
    assert pool.changed(Snapshot("v1", "gone"), "v1") is None


def test_a_map_that_cannot_be_read_means_the_slow_way(
    pool: ThinPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.create("v1", SIZE)
    command(tmp_path / "thin_dump", "echo '<superblock data_block_size=\"128\">'; exit 0")
    monkeypatch.setattr(system, "_PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert pool.allocated("v1") is None
    assert not kernel().held
    command(tmp_path / "thin_dump", "echo broken >&2; exit 1")
    assert pool.allocated("v1") is None
    assert not kernel().held


# --- use --------------------------------------------------------------------------------


def test_a_snapshot_of_a_mounted_file_system_is_of_one_moment(
    pool: ThinPool, tmp_path: Path
) -> None:
    pool.create("v1", 4 * SIZE)
    sh("mkfs.ext4", "-q", pool.path("v1"))
    sh("mount", pool.path("v1"), tmp_path)
    done, stop = [0], threading.Event()

    def write_files() -> None:
        while not stop.is_set():
            with (tmp_path / f"{done[0]}").open("wb") as file:
                file.write(b"%d." % done[0] * 2000)
                file.flush()
                os.fsync(file.fileno())
            done[0] += 1

    writer = threading.Thread(target=write_files)
    writer.start()
    snapshot = Snapshot("v1", "b1", Purpose.BACKUP)
    try:
        wait_until(lambda: done[0] > 20)
        first = done[0]
        pool.snapshot(snapshot)
        last = done[0]
        wait_until(lambda: done[0] > last)
    finally:
        stop.set()
        writer.join()
        sh("umount", tmp_path)
    sh("e2fsck", "-fn", pool.path(snapshot))
    sh("mount", "-o", "ro,noload", pool.path(snapshot), tmp_path)
    try:
        there = sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit())
        assert there == list(range(len(there)))
        assert first <= len(there) <= last + 2
        for number in range(first):
            assert (tmp_path / f"{number}").read_bytes() == b"%d." % number * 2000
    finally:
        sh("umount", tmp_path)
    with pytest.raises(OSError, match=r"not permitted|[Rr]ead-only"):
        write(pool.path(snapshot), 0, b"a snapshot is never written to")


def test_what_is_open_grows_and_is_not_deleted(pool: ThinPool) -> None:
    pool.create("v1", SIZE)
    with pool.path("v1").open("r+b") as file:
        pool.extend("v1", 2 * SIZE)
        assert file.seek(0, os.SEEK_END) == 2 * SIZE
        with pytest.raises(errors.InUse, match="v1"):
            pool.delete("v1")
        file.seek(0)
        file.write(b"still here")
    pool.delete("v1")
    assert not pool.volumes()


def test_what_is_not_lunrs_is_left_alone(alone: ThinPool) -> None:
    sh("lvcreate", "-qqy", "-V", "8M", "-T", NAME, "-n", "volume-v1")
    sh("lvcreate", "-qqy", "-L", "4M", "-n", "plain", "--addtag", "lunr.role=building", GROUP)
    try:
        alone.clean()
        assert not alone.volumes()
        with pytest.raises(errors.NotFound):
            alone.path("v1")
        alone.delete("v1")
        assert {"volume-v1", "plain"} <= set(sh("lvs", "--noheadings", "-o", "name", GROUP).split())
    finally:
        sh("lvremove", "-qqfy", f"{GROUP}/plain")


# --- after a crash ----------------------------------------------------------------------


def test_all_is_there_again_after_a_reboot(alone: ThinPool) -> None:
    snapshot = Snapshot("v1", "s1")
    alone.create("v1", SIZE)
    write(alone.path("v1"), 0, b"kept")
    alone.snapshot(snapshot)
    path = alone.path(snapshot)
    alone.close()
    sh("vgchange", "-qqan", GROUP)
    assert not path.exists()
    rebooted, second = (ThinPool(GROUP, POOL, full_percent=85) for _ in range(2))
    rebooted.check()
    second._group.patience = 0.5
    with pytest.raises(PoolUnusable, match="another process"):
        second.check()
    assert read(path, 0, 4) == b"kept"
    rebooted.close()


#: Does one thing with the pool, and hangs in the command that the test put into its way.
CHILD = f"""
import sys
from lunr.storage.pools.base import Snapshot
from lunr.storage.pools.thin.pool import ThinPool
pool = ThinPool({GROUP!r}, {POOL!r}, 85)
pool.check()
{{}}
"""


def killed_in(program: str, code: str, folder: Path) -> None:
    """Run `code` in a process of its own, and kill it with -9 while it waits for `program`."""
    command(
        folder / program,
        f"echo $$ >{folder}/pid.new; mv {folder}/pid.new {folder}/pid; exec sleep 99",
    )
    path = f"{folder}:{os.environ['PATH']}"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(code)], env={**os.environ, "PATH": path}
    )
    try:
        wait_until(lambda: (folder / "pid").exists() or child.poll() is not None)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == -signal.SIGKILL
    with contextlib.suppress(ProcessLookupError):
        os.kill(int((folder / "pid").read_text()), signal.SIGKILL)


def command(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_killed_reader_leaves_no_metadata_snapshot(alone: ThinPool, tmp_path: Path) -> None:
    alone.create("v1", SIZE)
    alone.close()
    killed_in("thin_dump", "pool.allocated('v1')", tmp_path)
    assert kernel().held
    alone.check()
    assert alone.allocated("v1") is None  # somebody reads, for all that is known
    alone.clean()
    assert not kernel().held
    assert alone.allocated("v1") is not None


def test_a_killed_clone_is_no_volume(alone: ThinPool, tmp_path: Path) -> None:
    alone.create("v1", SIZE)
    write(alone.path("v1"), 0, b"cloned")
    alone.close()
    killed_in("lvextend", f"pool.clone('v2', 'v1', {2 * SIZE})", tmp_path)
    alone.check()
    assert alone.volumes() == {"v1"}
    with pytest.raises(errors.NotFound):
        alone.path("v2")
    alone.clean()
    assert set(sh("lvs", "--noheadings", "-o", "name", GROUP).split()) == {POOL, "volume-v1"}


def test_a_clone_that_failed_half_way_can_be_run_again(pool: ThinPool) -> None:
    pool.create("v1", SIZE)
    write(pool.path("v1"), 0, b"cloned")
    tags = tags_for(Role.BUILDING, "v2", "v2")
    sh("lvcreate", "-qqy", "-s", "-kn", "-n", "volume-v2", *tags, f"{GROUP}/volume-v1")
    write(Path(f"/dev/{GROUP}/volume-v2"), 0, b"of another moment")
    assert pool.volumes() == {"v1"}
    pool.clone("v2", "v1", 2 * SIZE)
    assert pool.path("v2").read_bytes() == b"cloned" + bytes(2 * SIZE - 6)


def test_what_a_killed_lvm_left_is_finished(pool: ThinPool) -> None:
    """LVM writes its metadata before it makes a device: killed between, this is what there is."""
    pool.create("v1", SIZE)
    write(pool.path("v1"), 0, b"kept")
    snapshot = Snapshot("v1", "s1")
    for words in (
        ["-n", "snap-s1", *tags_for(Role.SNAPSHOT, "s1", "v1"), "-s", "-pr", f"{GROUP}/volume-v1"],
        ["-n", "volume-v2", *tags_for(Role.VOLUME, "v2", "v2"), "-V", f"{SIZE}b", "-T", NAME],
    ):
        sh("lvcreate", "-qqy", "-an", "-kn", *words)
    assert not pool.path(snapshot).exists()
    pool.snapshot(snapshot)
    pool.create("v2", SIZE)
    assert read(pool.path(snapshot), 0, 4) == b"kept"
    assert read(pool.path("v2"), 0, SIZE) == bytes(SIZE)


def test_a_volume_that_a_killed_lvm_left_suspended_goes_on(alone: ThinPool) -> None:
    alone.create("v1", SIZE)
    alone.snapshot(Snapshot("v1", "s1"))
    sh("dmsetup", "suspend", "lunr--thin-volume--v1")
    alone.snapshot(Snapshot("v1", "s1"))  # or whatever looks at the volumes, a start too
    assert "SUSPENDED" not in sh("dmsetup", "info", "lunr--thin-volume--v1")
    write(alone.path("v1"), 0, b"goes on")


# --- what is missing --------------------------------------------------------------------


def test_a_pool_that_cannot_be_used_says_why(alone: ThinPool) -> None:
    alone.close()
    with pytest.raises(PoolUnusable, match="there is none; make it: vgcreate nothing DISK"):
        ThinPool("nothing", POOL, 85).check()
    with pytest.raises(PoolUnusable, match="no thin pool other; make it: lvcreate --type thin-p"):
        ThinPool(GROUP, "other", 85).check()
    sh("lvcreate", "-qqy", "-L", "4M", "-n", "plain", GROUP)
    try:
        with pytest.raises(PoolUnusable, match="plain is no thin pool"):
            ThinPool(GROUP, "plain", 85).check()
    finally:
        sh("lvremove", "-qqfy", f"{GROUP}/plain")
    sh("lvchange", "-qq", "--zero", "n", NAME)
    with pytest.raises(PoolUnusable, match="mend it: lvchange --zero y lunr-thin/po-ol"):
        alone.check()
    sh("lvchange", "-qq", "--zero", "y", NAME)


def test_a_tool_that_is_missing_is_said(
    alone: ThinPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone.close()
    with monkeypatch.context() as patched:
        patched.setattr(system, "_PATH", str(tmp_path))
        with pytest.raises(system.CommandMissing, match="thin-provisioning-tools"):
            alone.check()


def test_a_pool_with_broken_metadata_is_refused_and_can_be_mended(alone: ThinPool) -> None:
    alone.create("v1", SIZE)
    write(alone.path("v1"), 0, b"kept")
    metadata = DEVICE.removesuffix("-tpool") + "_tmeta"
    table = sh("dmsetup", "table", metadata)
    with replaced(metadata, f"0 {table.split()[1]} error"), pytest.raises(OSError, match="put/out"):
        write(alone.path("v1"), SIZE // 2, b"x")
    assert kernel().broken
    assert "metadata" in alone.capacity().full
    with pytest.raises(PoolUnusable, match="metadata"):
        alone.create("v2", SIZE)
    assert alone.allocated("v1") is None
    alone.close()
    with pytest.raises(PoolUnusable, match=f"vgchange -an {GROUP}"):
        alone.check()
    sh("vgchange", "-qqan", GROUP)  # as the message says
    alone.check()
    assert not alone.capacity().full
    assert read(alone.path("v1"), 0, 4) == b"kept"
