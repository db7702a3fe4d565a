"""Every pool passes this class; here the files pool, on what it can stand on."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lunr.common import errors
from lunr.storage.pools.base import PoolFull, PoolUnusable
from lunr.storage.pools.files import FilesPool
from tests.support.pool_contract import PoolContract, write
from tests.support.services import need_command, need_root

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
    subprocess.run(["umount", folder], check=True)


@pytest.fixture(params=["xfs", "btrfs", "image"])
def pool(request: pytest.FixtureRequest) -> Iterator[FilesPool]:
    fixture = {"xfs": "xfs_mount", "btrfs": "btrfs_mount", "image": "plain_folder"}[request.param]
    pool = FilesPool(request.getfixturevalue(fixture), image_gib=1)
    pool.check()
    yield pool
    pool.close()


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

    def test_the_folder_is_private(self, pool: FilesPool) -> None:
        pool.create("v1", SIZE)
        path = pool.path("v1")
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700


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
