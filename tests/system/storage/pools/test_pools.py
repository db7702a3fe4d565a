"""Every pool passes this class; here the files pool, on what it can stand on."""

from __future__ import annotations

import fcntl
import os
import random
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lunr.common import errors
from lunr.common.extents import Extent
from lunr.storage.pools.base import PoolFull, PoolUnusable, Purpose, Snapshot
from lunr.storage.pools.files.pool import FilesPool
from tests.support.pool_contract import PoolContract, check_covers, write
from tests.support.services import XFS_MINIMUM, need_command, need_root
from tests.support.waiting import wait_until
from tools.testing import leftovers

MIB = 1 << 20
SIZE = 8 * MIB


@pytest.fixture
def btrfs_mount(run_folder: Path) -> Iterator[Path]:
    need_root()
    need_command("mkfs.btrfs", "btrfs-progs")
    if not Path("/dev/loop-control").exists():
        pytest.skip("needs loop devices (/dev/loop-control)")
    folder = Path(tempfile.mkdtemp(prefix="btrfs-", dir=run_folder))
    image, point = folder / "image", folder / "mnt"
    point.mkdir()
    image.touch()
    os.truncate(image, 512 * MIB)
    subprocess.run(["mkfs.btrfs", "-q", image], check=True, stdin=subprocess.DEVNULL)
    subprocess.run(["mount", "-o", "loop", image, point], check=True, stdin=subprocess.DEVNULL)
    yield point
    subprocess.run(["umount", point], check=True)


@pytest.fixture
def plain_folder(run_folder: Path) -> Iterator[Path]:
    """A folder without reflink; what a pool mounts in it is unmounted after."""
    need_root()
    need_command("mkfs.xfs", "xfsprogs")
    folder = Path(tempfile.mkdtemp(prefix="plain-", dir=run_folder))
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
    yield folder
    if (folder / "mnt").is_mount():
        subprocess.run(["umount", folder / "mnt"], check=True)
    # The kernel lets go of the loop device, whose file is in there, a moment later.
    wait_until(lambda: not leftovers.loop_devices(folder), what="the loop device is detached")
    subprocess.run(["umount", folder], check=True)


@pytest.fixture(params=["xfs", "btrfs", "image"])
def pool(request: pytest.FixtureRequest) -> Iterator[FilesPool]:
    fixture = {"xfs": "xfs_mount", "btrfs": "btrfs_mount", "image": "plain_folder"}[request.param]
    pool = FilesPool(request.getfixturevalue(fixture), image_gib=1)
    pool.check()
    yield pool
    pool.close()


#: linux/fs.h: _IOW(0x94, 13, struct file_clone_range)
FICLONERANGE = 0x4020940D


def _change(pool: FilesPool, chance: random.Random) -> None:
    """Do to v1 what initiators, and those who restore, do to volumes."""
    size = pool.size("v1")
    start = chance.randrange(size // 4096) * 4096
    length = min(chance.randrange(1, 40) * 4096, size - start)
    path = pool.path("v1")
    match chance.choice(["write", "bytes", "zeros", "punch", "zero", "room", "share", "copy"]):
        case "write":
            write(path, start, chance.randbytes(length))
        case "bytes":
            write(path, start + chance.randrange(4096 - 10), chance.randbytes(10))
        case "zeros":
            write(path, start, bytes(length))
        case "punch":
            _fallocate(path, "--punch-hole", start, length)
        case "zero":
            _fallocate(path, "--zero-range", start, length)
        case "room":
            _fallocate(path, "--keep-size", start, length)
        case "share":  # elsewhere in the same volume
            target = chance.randrange((size - length) // 4096 + 1) * 4096
            _share(path, start, length, path, target)
        case "copy":  # of another volume, at the same place: as if it had always been there
            other = pool.path("v2")
            length = min(length, SIZE - start)
            if length > 0:
                write(other, start, chance.randbytes(length))
                _share(other, start, length, path, start)


def _fallocate(path: Path, how: str, start: int, length: int) -> None:
    subprocess.run(["fallocate", how, "-o", str(start), "-l", str(length), path], check=True)


def _share(source: Path, start: int, length: int, target: Path, at: int) -> None:
    if source == target and abs(start - at) < length:
        return  # the kernel refuses
    with source.open("rb") as old, target.open("r+b") as new:
        order = struct.pack("=qQQQ", old.fileno(), start, length, at)
        fcntl.ioctl(new.fileno(), FICLONERANGE, order)


class TestFilesPool(PoolContract):
    """The files pool on XFS, on btrfs, and in an image of its own."""

    def test_clean_removes_what_a_killed_process_left(self, pool: FilesPool) -> None:
        pool.create("v1", SIZE)
        folder = pool.path("v1").parent
        (folder / "v2.0123456789abcdef.tmp").write_bytes(b"half")
        pool.clean()
        assert [path.name for path in folder.iterdir()] == ["v1"]

    def test_a_full_pool_is_a_clear_error_and_a_safe_state(self, pool: FilesPool) -> None:
        pool.create("big", 64 << 30)  # thin: more than there is
        free = pool.capacity().free_bytes
        with pool.path("big").open("r+b") as file, pytest.raises(OSError, match="No space"):
            while True:
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_blocks * 512, 4 * MIB)
        before = pool.volumes()
        made = 0
        try:
            for made in range(20000):
                pool.create(f"v{made}", 4096)
                write(pool.path(f"v{made}"), 0, bytes(4096))
        except (PoolFull, OSError) as error:
            assert isinstance(error, PoolFull) or error.errno == 28
        assert free > pool.capacity().free_bytes
        for number in range(made + 1):
            pool.delete(f"v{number}")
        assert pool.volumes() == before
        pool.delete("big")
        pool.create("after", SIZE)

    def test_random_changes_are_all_told(self, pool: FilesPool) -> None:
        seed = random.randrange(1 << 32)
        print(f"seed {seed}")
        chance = random.Random(seed)
        pool.create("v1", SIZE)
        pool.create("v2", SIZE)
        kept: list[tuple[Snapshot, bytes]] = []
        for number in range(40):
            for _ in range(chance.randrange(6)):
                _change(pool, chance)
            if chance.random() < 0.1:
                pool.extend("v1", pool.size("v1") + chance.randrange(3) * 4096)
            new = Snapshot("v1", f"b{number}", Purpose.BACKUP)
            pool.snapshot(new)
            content = pool.path(new).read_bytes()
            for old, before in kept:
                extents = pool.changed(old, new)
                assert extents is not None
                check_covers(extents, before, content)
            kept.append((new, content))
            if len(kept) > 3:
                pool.delete_snapshot(kept.pop(chance.randrange(3))[0])

    def test_changes_are_told_to_the_block(self, pool: FilesPool) -> None:
        blocks = random.Random(4).sample(range(1, SIZE // 4096, 2), 100)
        pool.create("v1", SIZE)
        pool.path("v1").write_bytes(random.Random(5).randbytes(SIZE))
        pool.snapshot(old := Snapshot("v1", "b1", Purpose.BASELINE))
        assert list(pool.changed(old, "v1") or [Extent(0, 1)]) == []
        for block in blocks:
            write(pool.path("v1"), block * 4096, b"!")
        pool.snapshot(new := Snapshot("v1", "b2", Purpose.BACKUP))
        assert list(pool.changed(old, new) or ()) == [
            Extent(block * 4096, (block + 1) * 4096) for block in sorted(blocks)
        ]
        assert pool.changed(Snapshot("v1", "none", Purpose.BASELINE), new) is None

    def test_the_folder_is_private(self, pool: FilesPool) -> None:
        pool.create("v1", SIZE)
        path = pool.path("v1")
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700


def test_what_is_compressed_counts_as_changed(btrfs_mount: Path) -> None:
    pool = FilesPool(btrfs_mount, image_gib=1)
    pool.check()
    folder = btrfs_mount / "volumes"
    subprocess.run(["btrfs", "property", "set", folder, "compression", "zstd"], check=True)
    pool.create("v1", SIZE)
    write(pool.path("v1"), MIB, bytes(range(256)) * 1024)
    pool.snapshot(old := Snapshot("v1", "b1", Purpose.BASELINE))
    write(pool.path("v1"), 4 * MIB, random.Random(1).randbytes(8192))  # does not shrink
    pool.snapshot(new := Snapshot("v1", "b2", Purpose.BACKUP))
    extents = list(pool.changed(old, new) or ())
    assert extents == [Extent(MIB, MIB + 256 * 1024), Extent(4 * MIB, 4 * MIB + 8192)]
    pool.close()


def test_an_image_stays_mounted_for_the_next_process(plain_folder: Path) -> None:
    first = FilesPool(plain_folder, image_gib=1)
    first.check()
    first.create("v1", SIZE)
    write(first.path("v1"), 0, b"kept")
    with pytest.raises(PoolUnusable, match="another process"):
        FilesPool(plain_folder, image_gib=1).check()
    first.close()
    again = FilesPool(plain_folder, image_gib=1)
    again.check()
    assert again.path("v1").read_bytes()[:4] == b"kept"
    again.close()
    subprocess.run(["umount", plain_folder / "mnt"], check=True)
    rebooted = FilesPool(plain_folder, image_gib=1)
    rebooted.check()
    assert rebooted.path("v1").read_bytes()[:4] == b"kept"
    rebooted.close()


def test_a_pool_with_less_than_a_tenth_free_is_tight(make_xfs: Callable[[int], Path]) -> None:
    pool = FilesPool(make_xfs(XFS_MINIMUM), image_gib=1)
    pool.check()
    pool.create("v1", 1 << 30)
    while (room := pool.capacity()).free_bytes > room.capacity_bytes // 8:
        assert not room.tight
        taken = pool.path("v1").stat().st_blocks * 512
        subprocess.run(
            ["fallocate", "-o", str(taken), "-l", str(8 * MIB), pool.path("v1")], check=True
        )
    _fallocate(pool.path("v1"), "--keep-size", 1 << 29, room.capacity_bytes // 20)
    assert pool.capacity().tight
    pool.close()


def test_an_image_counts_the_disk_below_it(run_folder: Path) -> None:
    need_root()
    need_command("mkfs.xfs", "xfsprogs")
    folder = Path(tempfile.mkdtemp(prefix="small-", dir=run_folder))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", folder], check=True)
    try:
        pool = FilesPool(folder, image_gib=8, overcommit=2.0)
        pool.check()
        capacity = pool.capacity()
        assert capacity.free_bytes <= 256 * MIB
        assert capacity.capacity_bytes <= 512 * MIB
        pool.close()
    finally:
        subprocess.run(["umount", folder / "mnt"], check=False)
        wait_until(lambda: not leftovers.loop_devices(folder), what="the loop device is detached")
        subprocess.run(["umount", folder], check=True)


def test_a_pool_whose_disk_has_no_room_is_full(run_folder: Path) -> None:
    need_root()
    need_command("mkfs.xfs", "xfsprogs")
    folder = Path(tempfile.mkdtemp(prefix="full-", dir=run_folder))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", folder], check=True)
    try:
        pool = FilesPool(folder, image_gib=8)
        pool.check()
        assert pool.capacity().full == ""
        other = folder / "of-another-program"
        free = pool.capacity().free_bytes
        subprocess.run(["fallocate", "-l", str(free - 8 * MIB), other], check=True)
        assert str(folder) in pool.capacity().full
        other.unlink()
        assert pool.capacity().full == ""
        pool.close()
    finally:
        subprocess.run(["umount", folder / "mnt"], check=False)
        wait_until(lambda: not leftovers.loop_devices(folder), what="the loop device is detached")
        subprocess.run(["umount", folder], check=True)


def test_a_foreign_mount_in_the_folder_is_refused(plain_folder: Path) -> None:
    (plain_folder / "mnt").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", plain_folder / "mnt"], check=True)
    with pytest.raises(PoolUnusable, match="unmount it"):
        FilesPool(plain_folder, image_gib=1).check()


def test_a_half_made_image_is_made_again(plain_folder: Path) -> None:
    (plain_folder / "pool.img.tmp").write_bytes(b"killed in mkfs")
    pool = FilesPool(plain_folder, image_gib=1)
    pool.check()
    pool.create("v1", SIZE)
    assert not (plain_folder / "pool.img.tmp").exists()
    pool.close()


def test_a_folder_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PoolUnusable, match="file"):
        FilesPool(tmp_path / "file", image_gib=1).check()


def test_a_missing_tool_names_its_package(
    plain_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lunr.storage.system._PATH", str(plain_folder))
    monkeypatch.setenv("PATH", str(plain_folder))
    with pytest.raises(errors.LunrError, match="xfsprogs"):
        FilesPool(plain_folder, image_gib=1).check()
