"""Volumes that the kernel fills from a backup, by dm-clone, on both pools of LVM."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lunr.backup.lazy_image.missing_extents import MissingExtents
from lunr.storage.engine import Engine
from lunr.storage.exports import Exports
from lunr.storage.pools.base import DevicePool, Snapshot
from lunr.storage.pools.lvm.pool import LvmPool
from lunr.storage.pools.thin.pool import ThinPool
from lunr.storage.restore.dm_clone import device as clone_device
from lunr.storage.restore.dm_clone.backend import DmCloneBackend
from lunr.storage.restore.lazy_restore import LazyRestore
from lunr.storage.restore.process import attach
from lunr.storage.restore.registry import RestoreRegistry
from lunr.storage.restore.spec import RestoreSpec
from lunr.storage.restore.status import RestoreSettings
from lunr.storage.targets.lio import tree
from lunr.storage.targets.lio.target import LioTarget
from tests.support.initiator import Initiator, sh
from tests.support.target_contract import export_of
from tests.support.volume_groups import volume_group
from tests.support.waiting import PATIENCE, wait_until
from tests.system.backup.lazy_image.mounted import KEY, Place, away
from tests.vm.conftest import SMALL_DISK
from tests.vm.service.running import stray_mappings
from tests.vm.storage.conftest import lio_session, logged_in, offered

pytestmark = pytest.mark.timeout(300)

GROUP = "lunr-test"
MIB = 1 << 20
UNIT = 4096
#: Of the backup, and of the volume.
STORED, SIZE = 48 * MIB, 64 * MIB
#: Where the backup has data; the rest of it is zeros.
DATA = ((0, 10 * MIB), (32 * MIB, 9 * MIB))
#: Where somebody writes meanwhile: what has data, and some of the zeros beside it.
BUSY = (*range(0, 16 * MIB, UNIT), *range(32 * MIB, 48 * MIB, UNIT))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A backup of a disk that a guest has made a group of, by the name of the node's."""
    if not clone_device.available():
        pytest.skip("needs the kernel's module dm-clone: tools/setup --vm builds it")
    content = bytearray(STORED)
    for offset, length in DATA:
        content[offset : offset + length] = random.Random(offset).randbytes(length)
    folder = tmp_path_factory.mktemp("stored")
    content[:MIB] = label(folder / "guest")
    return Place(folder, bytes(content))


def label(image: Path) -> bytes:
    """How a disk begins that is all there is of a group."""
    with image.open("wb") as file:
        file.truncate(STORED)
    device = sh("losetup", "--find", "--show", image).strip()
    sh("pvcreate", "-q", device)
    sh("vgcreate", "-q", GROUP, device)
    sh("losetup", "--detach", device)
    return image.read_bytes()[:MIB]


@pytest.fixture(scope="module", params=["lvm", "thin"])
def pool(request: pytest.FixtureRequest, stored: Place) -> Iterator[DevicePool]:
    thin = "pool" if request.param == "thin" else None
    with volume_group(GROUP, SMALL_DISK, thin_pool=thin):
        pool = ThinPool(GROUP, "pool", 85) if thin else LvmPool(GROUP)
        pool.hide_loops()
        pool.check()
        yield pool
        pool.close()


class Node:
    """What a node has to do with one filling volume, which is compared with a copy."""

    def __init__(self, pool: DevicePool, place: Place, folder: Path) -> None:
        self.pool, self.place, self.folder = pool, place, folder
        self.store = folder / "store"
        shutil.copytree(place.store, self.store)
        self.engine = Engine(url=f"files:{self.store}", options={}, key=KEY)
        self.shadow = bytearray(place.data) + bytes(SIZE - len(place.data))
        self.restores = self.make()
        pool.create("v1", SIZE)
        self.spec = RestoreSpec("b1", "account", SIZE)
        self.restores.begin("v1", self.spec, lambda: None)

    def make(self) -> RestoreRegistry:
        places = self.folder / "state", self.folder / "run"
        return RestoreRegistry(self.pool, self.engine, *places, dm_clone=True)

    @property
    def volume(self) -> LazyRestore:
        return self.restores.need("v1")

    @property
    def backend(self) -> DmCloneBackend:
        backend = self.volume._backend
        assert isinstance(backend, DmCloneBackend)
        return backend

    def read(self, offset: int, length: int) -> bytes:
        """Past the page cache."""
        file = os.open(self.restores.path("v1"), os.O_RDONLY | os.O_DIRECT)
        try:
            with mmap.mmap(-1, length) as buffer:
                assert os.preadv(file, [buffer], offset) == length
                return buffer[:]
        finally:
            os.close(file)

    def write(self, offset: int, data: bytes) -> None:
        """To the device, and to the copy; synced."""
        file = os.open(self.volume.path, os.O_RDWR)
        try:
            os.pwrite(file, data, offset)
            os.fsync(file)
        finally:
            os.close(file)
        self.shadow[offset : offset + len(data)] = data

    def is_right(self, offset: int = 0, length: int = SIZE) -> bool:
        return all(
            self.read(at, MIB) == self.shadow[at : at + MIB]
            for at in range(offset, offset + length, MIB)
        )

    def abandon(self) -> None:
        """Stop here as an agent that is killed does."""
        backend, supervisor = self.backend, self.volume._supervisor
        backend.stop()
        if supervisor._process is not None:
            supervisor._process._connection.shutdown(2)
        for thread in (backend._driver, supervisor._thread):
            assert thread is not None
            thread.join(PATIENCE)

    def restart(self) -> None:
        """Begin anew as the next agent does."""
        self.restores = self.make()
        self.restores.load(["v1"], ["v1"], [])

    def kill_process(self) -> None:
        worker = attach(self.folder / "run" / "fillings" / "v1")
        worker.kill()
        worker.close()


@pytest.fixture
def node(pool: DevicePool, stored: Place, tmp_path: Path) -> Iterator[Node]:
    node = Node(pool, stored, tmp_path)
    yield node
    node.restores.remove("v1")
    pool.delete("v1")
    assert nothing_left(tmp_path)


def nothing_left(folder: Path) -> bool:
    """No device, loop, mount, process or logical volume of a fill."""
    wait_until(lambda: sh("lvs", "--noheadings", "-o", "lv_tags", GROUP).count("lunr.") == 0)
    assert stray_mappings() == []
    assert sh("losetup", "-a") == ""
    assert str(folder) not in Path("/proc/self/mounts").read_text()
    said = subprocess.run(["pgrep", "-f", "lazy_image.process"], capture_output=True, check=False)
    assert not said.stdout
    return True


@contextlib.contextmanager
def writing(node: Node, chance: random.Random) -> Iterator[None]:
    """Somebody who has the device open writes and reads back all the time."""
    file = os.open(node.volume.path, os.O_RDWR)
    over, failed = threading.Event(), []

    def work() -> None:
        while not over.is_set():
            offset = chance.choice(BUSY)
            data = chance.randbytes(UNIT)
            try:
                os.pwrite(file, data, offset)
                node.shadow[offset : offset + UNIT] = data
                at = chance.choice(BUSY)
                if os.pread(file, UNIT, at) != node.shadow[at : at + UNIT]:
                    failed.append(at)
            except OSError as error:
                failed.append(error)
            time.sleep(0.005)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        os.fsync(file)
        os.close(file)
    assert failed == []


def test_it_is_used_while_it_is_filled_and_then_it_is_plain(
    node: Node, pool: DevicePool, tmp_path: Path
) -> None:
    chance = random.Random(1)
    # Zeros are there, and nobody copied them; the rest is fetched when it is read.
    assert node.volume.path.is_block_device()
    wait_until(lambda: node.volume.status.done)
    zeros = SIZE - 12 * MIB - 12 * MIB  # all but the chunks that have data
    wait_until(lambda: node.volume.status.done == zeros)
    assert node.is_right(32 * MIB, 2 * MIB)
    node.write(5 * UNIT, chance.randbytes(UNIT))  # where nothing is: no fetch
    node.write(33 * MIB + 512, chance.randbytes(700 * 512))
    node.write(60 * MIB, chance.randbytes(3 * UNIT))
    # A snapshot has all but just what it is told to lack.
    snapshot = Snapshot("v1", "s1")
    with node.volume.freeze() as absent:
        pool.snapshot(snapshot)
    assert sum(end - start for start, end in absent) == 24 * MIB - UNIT - 88 * UNIT
    lacks = bytearray(pool.path(snapshot).read_bytes())
    for start, end in absent:
        assert node.shadow[start:end] == node.place.data[start:end]
        lacks[start:end] = node.shadow[start:end]
    assert lacks == node.shadow
    # What is made from it is filled from the same backup, through FUSE.
    node.restores.prepare("v2", node.spec, MissingExtents("b1", absent))
    pool.clone("v2", snapshot, SIZE)
    pool.delete_snapshot(snapshot)
    node.restores.begin("v2", node.spec, lambda: None)
    made = node.restores.need("v2")
    assert made.path.read_bytes() == node.shadow
    wait_until(lambda: made.is_filled and made.make_plain(), what="it was filled by being read")
    assert pool.path("v2").read_bytes() == node.shadow
    node.restores.remove("v2")
    pool.delete("v2")
    # The agent dies in the middle of a snapshot, then the process; then it is another boot.
    node.abandon()
    sh("dmsetup", "suspend", pool.clone_name("v1"))
    node.kill_process()
    node.restart()
    assert node.is_right(32 * MIB, 2 * MIB)
    node.abandon()
    node.kill_process()
    sh("dmsetup", "remove", pool.clone_name("v1"))
    sh("umount", "-l", tmp_path / "run/fillings/v1/mnt")
    shutil.rmtree(tmp_path / "run")
    node.restart()
    assert node.is_right(0, MIB)
    # Filled under who uses it; then there is the volume and nothing else.
    free = pool.capacity().free_bytes
    with writing(node, chance):
        node.volume.apply_settings(RestoreSettings("eager"))
        wait_until(lambda: node.volume.is_filled, what="it is filled")
        table = ["dmsetup", "table", pool.clone_name("v1")]
        wait_until(lambda: "linear" in sh(*table))
        time.sleep(1)
    assert free - pool.capacity().free_bytes < 40 * MIB  # zeros that nobody writes take no room
    wait_until(node.volume.make_plain)
    assert node.restores.path("v1") == pool.path("v1")
    assert node.is_right()
    assert "filling" not in sh("lvs", "-o", "lv_tags", GROUP)


# These on one pool each: it makes no difference to them.


@pytest.mark.parametrize("pool", ["lvm"], indirect=True)
def test_the_store_is_away_and_part_of_it_is_lost(node: Node) -> None:
    chance = random.Random(2)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(node.read(4 * MIB, UNIT)))
    with away(node.store):
        reader.start()
        began = time.monotonic()
        node.write(8 * MIB, chance.randbytes(UNIT))  # nobody waits who needs nothing
        assert time.monotonic() - began < 5
        time.sleep(1)
        assert got == []
    reader.join(PATIENCE)
    assert got == [bytes(node.shadow[4 * MIB : 4 * MIB + UNIT])]

    def try_to_read() -> None:
        with contextlib.suppress(OSError):
            node.read(33 * MIB, UNIT)

    # What a process that was killed said of the store is not true for ever.
    with away(node.store):
        reader = threading.Thread(target=try_to_read)
        reader.start()
        wait_until(lambda: node.volume.status.store_trouble, what="it knows that the store is away")
        node.kill_process()
        reader.join(PATIENCE)
    wait_until(lambda: not node.volume.status.trouble, what="all is well again")
    # One object rots: all else comes.
    chunk = max((path for path in node.store.rglob("*") if path.is_file()), key=os.path.getsize)
    good = chunk.read_bytes()
    middle = len(good) // 2
    chunk.write_bytes(good[:middle] + bytes(64) + good[middle + 64 :])
    node.kill_process()  # it has that in memory, perhaps
    wait_until(lambda: node.volume._supervisor.is_mounted)
    node.volume.apply_settings(RestoreSettings("eager"))
    wait_until(lambda: node.volume.status.is_stuck, what="all is there but what is lost")
    assert node.volume.status.damage
    assert SIZE - node.volume.status.done in (32 << 10, 64 << 10)
    chunk.write_bytes(good)
    node.volume.apply_settings(RestoreSettings("eager"))
    wait_until(lambda: node.volume.is_filled, what="it is filled")
    assert node.is_right()


@pytest.mark.parametrize("pool", ["lvm"], indirect=True)
def test_it_grows_while_it_is_used_and_is_left_after(
    node: Node,
    lio: LioTarget,
    lio_portal: str,
    initiator: Initiator,
    caplog: pytest.LogCaptureFixture,
) -> None:
    exports = Exports(node.restores, lio)
    export = export_of(node.volume.path)
    names = ("volume_id", "iqn", "lun", "username", "password", "serial", "initiator")
    exports.attach("v1", {name: getattr(export, name) for name in names})
    offer = offered(export, lio_portal)
    with logged_in(initiator, offer) as device:
        node.volume.apply_settings(RestoreSettings("eager"))
        wait_until(lambda: node.volume.is_filled, what="it is filled")
        before = lio_session("v1")
        node.pool.extend("v1", 2 * SIZE)
        exports.resize("v1")
        initiator.rescan(offer)
        assert int(sh("blockdev", "--getsize64", device)) == 2 * SIZE
        sh("dd", "if=/dev/urandom", f"of={device}", "bs=1M", "seek=100", "count=1", "oflag=direct")
        assert lio_session("v1") == before
        exports.watch()
        assert not node.volume.is_plain
    wait_until(lambda: not exports.watch().sessions_changed)
    wait_until(lambda: node.volume.is_plain, what="nobody uses the device any more")
    wait_until(lambda: "v1" in exports.present())
    assert tree.backing(tree.disks()["v1"]) == node.pool.path("v1")
    assert node.is_right()
    assert any(node.read(100 * MIB, MIB))
    exports.detach("v1")
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


@contextlib.contextmanager
def slow(device: Path, milliseconds: int) -> Iterator[None]:
    """All that is asked of a linear device of device-mapper's takes so long."""
    start, length, _, below, offset = sh("dmsetup", "table", device).split()

    def become(*table: str) -> None:
        sh("dmsetup", "load", device, "--table", " ".join((start, length, *table)))
        sh("dmsetup", "resume", device)

    become("delay", below, offset, str(milliseconds))
    try:
        yield
    finally:
        become("linear", below, offset)


@pytest.mark.parametrize("pool", ["lvm"], indirect=True)
def test_it_is_filled_however_busy_it_is(node: Node) -> None:
    """The kernel copies only in moments in which nobody else has a request under way."""
    over = threading.Event()

    def work(number: int) -> None:
        file = os.open(node.volume.path, os.O_RDWR | os.O_DIRECT)
        with mmap.mmap(-1, UNIT) as buffer:
            while not over.is_set():
                os.preadv(file, [buffer], (number + 48) * MIB)
        os.close(file)

    busy = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    with slow(node.pool.path("v1"), 20):
        for thread in busy:
            thread.start()
        try:
            node.volume.apply_settings(RestoreSettings("eager"))
            wait_until(lambda: node.volume.is_filled, what="it is filled")
        finally:
            over.set()
            for thread in busy:
                thread.join()
    assert node.is_right()


@pytest.mark.parametrize("pool", ["thin"], indirect=True)
def test_it_goes_while_it_is_filled(node: Node, tmp_path: Path) -> None:
    node.volume.apply_settings(RestoreSettings("eager", MIB))
    wait_until(lambda: node.volume.status.rate)
    with away(node.store):
        began = time.monotonic()
        node.restores.remove("v1")
        node.pool.delete("v1")
        assert time.monotonic() - began < 15
        assert nothing_left(tmp_path)
