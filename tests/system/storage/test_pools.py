"""Every pool passes this class; here the files pool, on what it can stand on."""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from lunr.common import errors
from lunr.storage.pools.base import Pool, PoolFull, PoolUnusable, Purpose, Snapshot
from lunr.storage.pools.files import FilesPool
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


def write(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


class PoolContract:
    """What a pool promises, whatever it is made of. Takes a fixture ``pool`` that was checked."""

    def test_a_new_volume_is_zeros_of_the_size_asked_for(self, pool: Pool) -> None:
        pool.create("v1", SIZE)
        assert pool.volumes() == {"v1"}
        assert pool.size("v1") == SIZE
        assert pool.path("v1").read_bytes() == bytes(SIZE)

    def test_create_runs_twice_and_keeps_what_was_written(self, pool: Pool) -> None:
        pool.create("v1", SIZE)
        write(pool.path("v1"), 5, b"kept")
        pool.create("v1", SIZE)
        assert pool.path("v1").read_bytes()[5:9] == b"kept"

    def test_create_refuses_an_id_that_another_size_has(self, pool: Pool) -> None:
        pool.create("v1", SIZE)
        with pytest.raises(errors.Conflict, match="v1"):
            pool.create("v1", 2 * SIZE)
        assert pool.size("v1") == SIZE

    def test_a_snapshot_keeps_its_moment(self, pool: Pool) -> None:
        pool.create("v1", SIZE)
        write(pool.path("v1"), 0, b"old")
        for purpose in Purpose:
            pool.snapshot(Snapshot("v1", "s1", purpose))
        write(pool.path("v1"), 0, b"new")
        pool.snapshot(Snapshot("v1", "s1"))  # again: the first moment stays
        for purpose in Purpose:
            snapshot = Snapshot("v1", "s1", purpose)
            assert pool.path(snapshot).read_bytes()[:3] == b"old"
            assert pool.size(snapshot) == SIZE
        assert pool.snapshots() == {Snapshot("v1", "s1", purpose) for purpose in Purpose}

    def test_a_clone_grows_and_leaves_its_source(self, pool: Pool) -> None:
        pool.create("v1", SIZE)
        write(pool.path("v1"), 0, b"one")
        pool.snapshot(Snapshot("v1", "s1"))
        pool.clone("v2", Snapshot("v1", "s1"), 2 * SIZE)
        pool.clone("v3", "v2", 2 * SIZE)
        write(pool.path("v3"), 0, b"two")
        pool.clone("v3", "v2", 2 * SIZE)  # again: nothing is lost
        assert pool.path("v2").read_bytes() == b"one" + bytes(2 * SIZE - 3)
        assert pool.path("v3").read_bytes()[:3] == b"two"

    def test_a_clone_is_not_smaller_than_its_source(self, pool: Pool) -> None:
        pool.create("v1", SIZE)
        with pytest.raises(errors.Conflict):
            pool.clone("v2", "v1", SIZE - 4096)
        assert pool.volumes() == {"v1"}

    def test_what_is_not_there_is_not_found(self, pool: Pool) -> None:
        with pytest.raises(errors.NotFound, match="v9"):
            pool.path("v9")
        with pytest.raises(errors.NotFound, match="v9"):
            pool.extend("v9", SIZE)
        with pytest.raises(errors.NotFound, match="v9"):
            pool.snapshot(Snapshot("v9", "s1"))
        with pytest.raises(errors.NotFound, match="v9"):
            pool.clone("v2", "v9", SIZE)
        with pytest.raises(errors.NotFound, match="s9"):
            pool.clone("v2", Snapshot("v9", "s9"), SIZE)
        assert not pool.volumes()
        assert not pool.snapshots()

    def test_delete_runs_twice_and_leaves_snapshots(self, pool: Pool) -> None:
        pool.create("v1", SIZE)
        pool.snapshot(Snapshot("v1", "s1"))
        for _ in range(2):
            pool.delete("v1")
        assert not pool.volumes()
        assert pool.snapshots() == {Snapshot("v1", "s1")}
        for _ in range(2):
            pool.delete_snapshot(Snapshot("v1", "s1"))
        assert not pool.snapshots()

    def test_extend_adds_zeros_and_never_shrinks(self, pool: Pool) -> None:
        pool.create("v1", SIZE)
        write(pool.path("v1"), SIZE - 4, b"tail")
        for _ in range(2):
            pool.extend("v1", 2 * SIZE)
        assert pool.path("v1").read_bytes()[SIZE - 4 :] == b"tail" + bytes(SIZE)
        with pytest.raises(errors.Conflict):
            pool.extend("v1", SIZE)

    def test_deleted_bytes_are_never_seen_again(self, pool: Pool) -> None:
        secret = random.Random(1).randbytes(4096)
        for number in range(8):  # most of the pool has held the secret
            pool.create(f"old{number}", SIZE)
            with pool.path(f"old{number}").open("r+b") as file:
                file.write(secret * (SIZE // len(secret)))
                os.fsync(file.fileno())
        for number in range(8):
            pool.delete(f"old{number}")
        pool.create("new", SIZE)
        pool.extend("new", 8 * SIZE)
        assert pool.path("new").read_bytes() == bytes(8 * SIZE)

    @pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "a.b", "-x", "x\n", "x" * 65])
    def test_no_id_leads_out_of_the_pool(self, pool: Pool, bad: str) -> None:
        for call in (
            lambda: pool.create(bad, SIZE),
            lambda: pool.delete(bad),
            lambda: pool.path(bad),
            lambda: pool.snapshot(Snapshot(bad, "s")),
            lambda: pool.delete_snapshot(Snapshot("v", bad)),
        ):
            with pytest.raises(errors.InvalidField):
                call()

    def test_capacity_is_of_this_machine(self, pool: Pool) -> None:
        capacity = pool.capacity()
        assert 0 < capacity.free_bytes <= capacity.capacity_bytes

    def test_a_full_pool_is_a_clear_error_and_a_safe_state(self, pool: Pool) -> None:
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

    def test_random_work_agrees_with_a_model(self, pool: Pool) -> None:
        machine = type("Machine", (_Machine,), {"pool": pool})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=40,
                stateful_step_count=25,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


_names = st.sampled_from(["a", "b", "c"])
_BLOCK = 4096


class _Machine(RuleBasedStateMachine):
    """Volumes and snapshots against plain byte strings."""

    pool: Pool

    def __init__(self) -> None:
        super().__init__()
        self.volumes: dict[str, bytearray] = {}
        self.kept: dict[Snapshot, bytes] = {}

    def teardown(self) -> None:
        for volume in self.pool.volumes():
            self.pool.delete(volume)
        for snapshot in self.pool.snapshots():
            self.pool.delete_snapshot(snapshot)

    @rule(name=_names, blocks=st.integers(1, 6))
    def create(self, name: str, blocks: int) -> None:
        size = blocks * _BLOCK
        if name in self.volumes and len(self.volumes[name]) != size:
            with pytest.raises(errors.Conflict):
                self.pool.create(name, size)
        else:
            self.pool.create(name, size)
            self.volumes.setdefault(name, bytearray(size))

    @rule(name=_names, offset=st.integers(0, 5 * _BLOCK), data=st.binary(min_size=1, max_size=6000))
    def write(self, name: str, offset: int, data: bytes) -> None:
        if name in self.volumes and offset + len(data) <= len(self.volumes[name]):
            write(self.pool.path(name), offset, data)
            self.volumes[name][offset : offset + len(data)] = data

    @rule(name=_names, id_=_names, purpose=st.sampled_from(Purpose))
    def snapshot(self, name: str, id_: str, purpose: Purpose) -> None:
        snapshot = Snapshot(name, id_, purpose)
        if snapshot in self.kept:
            self.pool.snapshot(snapshot)
        elif name not in self.volumes:
            with pytest.raises(errors.NotFound):
                self.pool.snapshot(snapshot)
        else:
            self.pool.snapshot(snapshot)
            self.kept[snapshot] = bytes(self.volumes[name])

    @rule(new=_names, name=_names, id_=_names, purpose=st.sampled_from([None, *Purpose]))
    def clone(self, new: str, name: str, id_: str, purpose: Purpose | None) -> None:
        source = name if purpose is None else Snapshot(name, id_, purpose)
        if isinstance(source, Snapshot):
            content = self.kept.get(source)
        else:
            content = bytes(self.volumes[source]) if source in self.volumes else None
        if new in self.volumes or content is None:
            return
        self.pool.clone(new, source, len(content) + _BLOCK)
        self.volumes[new] = bytearray(content + bytes(_BLOCK))

    @rule(name=_names, blocks=st.integers(1, 8))
    def extend(self, name: str, blocks: int) -> None:
        size = blocks * _BLOCK
        if name not in self.volumes:
            with pytest.raises(errors.NotFound):
                self.pool.extend(name, size)
        elif size < len(self.volumes[name]):
            with pytest.raises(errors.Conflict):
                self.pool.extend(name, size)
        else:
            self.pool.extend(name, size)
            self.volumes[name] += bytes(size - len(self.volumes[name]))

    @rule(name=_names)
    def delete(self, name: str) -> None:
        self.pool.delete(name)
        self.volumes.pop(name, None)

    @rule(name=_names, id_=_names, purpose=st.sampled_from(Purpose))
    def delete_snapshot(self, name: str, id_: str, purpose: Purpose) -> None:
        snapshot = Snapshot(name, id_, purpose)
        self.pool.delete_snapshot(snapshot)
        self.kept.pop(snapshot, None)

    @invariant()
    def agrees(self) -> None:
        assert self.pool.volumes() == self.volumes.keys()
        assert self.pool.snapshots() == self.kept.keys()
        for name, content in self.volumes.items():
            assert self.pool.path(name).read_bytes() == content
        for snapshot, kept in self.kept.items():
            assert self.pool.path(snapshot).read_bytes() == kept


class TestFilesPool(PoolContract):
    """The files pool on XFS, on btrfs, and in an image of its own."""

    def test_clean_removes_what_a_killed_process_left(self, pool: FilesPool) -> None:
        pool.create("v1", SIZE)
        folder = pool.path("v1").parent
        (folder / "v2.0123456789abcdef.tmp").write_bytes(b"half")
        pool.clean()
        assert [path.name for path in folder.iterdir()] == ["v1"]

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
