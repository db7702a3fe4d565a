"""What the kernel's initiator sees while it works: a larger disk, and a node that starts anew."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lunr.storage.engine import Engine
from lunr.storage.exports import Exports
from lunr.storage.pools.files.pool import FilesPool
from lunr.storage.targets.lio import tree
from lunr.storage.targets.lio.target import LioTarget
from tests.support.initiator import Initiator, sh
from tests.support.services import XFS_MINIMUM
from tests.support.slices import Slices
from tests.support.target_contract import export_of
from tests.system.storage.nodes import KEY, make_restores
from tests.vm.storage.conftest import (
    Driver,
    lio_left_over,
    lio_session,
    logged_in,
    offered,
)
from tests.vm.storage.thick import is_zeros

MIB = 1 << 20

#: Writes to the device from its beginning on, each time another number, until its input ends;
#: then says how many writes were acknowledged.
WRITER = """
import mmap, os, select, sys
file = os.open(sys.argv[1], os.O_WRONLY | os.O_DIRECT | os.O_SYNC)
page = mmap.mmap(-1, 4096)
count = 0
print("writing", flush=True)
while not select.select([0], [], [], 0)[0]:
    page[:8] = (count + 1).to_bytes(8, "big")
    os.pwrite(file, page, count % 256 * 4096)
    count += 1
print(count, flush=True)
"""


@contextlib.contextmanager
def writing(device: Path) -> Iterator[list[int]]:
    """Synchronous writes go on meanwhile; after, how many there were."""
    counted: list[int] = []
    with subprocess.Popen(
        [sys.executable, "-S", "-c", WRITER, device],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            process.stdout.readline()
            yield counted
            process.stdin.close()
            counted.append(int(process.stdout.readline()))
        finally:
            process.kill()


def assert_written(path: Path, count: int) -> None:
    """The volume itself has what was acknowledged last."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        for number in range(max(0, count - 256), count):
            read = os.pread(file, 8, number % 256 * 4096)
            assert int.from_bytes(read, "big") == number + 1
    finally:
        os.close(file)


def test_a_disk_grows_under_writes(driver: Driver, initiator: Initiator, slices: Slices) -> None:
    export = export_of(slices.make("v1", 8 * MIB))
    driver.target.ensure(export)
    offer = offered(export, driver.portal)
    with logged_in(initiator, offer) as device:
        before = session_of(driver)
        with writing(device) as counted:
            slices.resize(export.path, 16 * MIB)
            driver.target.resize("v1")
            wait_for_answer(device)
            initiator.rescan(offer)
            assert int(sh("blockdev", "--getsize64", device)) == 16 * MIB
        assert initiator.devices(offer) == [device]
        assert session_of(driver) == before
        assert_written(export.path, counted[0])
    driver.target.remove("v1")


def wait_for_answer(device: Path) -> None:
    """A session that was cut is there again when the disk has answered."""
    sh("dd", f"if={device}", "of=/dev/null", "bs=4k", "count=1", "iflag=direct")


def session_of(driver: Driver) -> str:
    """What LIO calls the session: it must stay. tgtd's is made anew."""
    return lio_session("v1") if isinstance(driver.target, LioTarget) else ""


def test_discards_and_identity(
    lio: LioTarget, lio_portal: str, initiator: Initiator, slices: Slices
) -> None:
    """Ids that differ in their last digit only are two disks also to udev and multipath."""
    exports = [
        export_of(
            slices.make(f"d{number}", 8 * MIB), f"11111111-aaaa-4aaa-8aaa-00000000000{number}"
        )
        for number in range(2)
    ]
    names = set()
    for export in exports:
        lio.ensure(export)
        with logged_in(initiator, offered(export, lio_portal)) as device:
            names.add(Path("/sys/block", device.name, "device/wwid").read_text().strip())
            serial = Path("/sys/block", device.name, "device/vpd_pg80").read_bytes()[4:]
            assert serial.decode().strip("\0").endswith(export.volume_id)
            sh("dd", "if=/dev/urandom", f"of={device}", "bs=1M", "count=4", "oflag=direct")
            sh("blkdiscard", device)
            assert is_zeros(export.path), "the disk below is one that discards to zeros"
            sh("dd", "if=/dev/urandom", f"of={device}", "bs=1M", "count=4", "oflag=direct")
            # Zeros are not written by discards, which LIO may ignore.
            mode = next(Path("/sys/block", device.name, "device/scsi_disk").glob("*/zeroing_mode"))
            assert mode.read_text().strip() in ("writesame", "write")
            sh("blkdiscard", "-z", device)
            assert is_zeros(export.path)
    assert len(names) == 2
    assert all(name.startswith("naa.6001405") for name in names)


@pytest.fixture
def loop_devices() -> None:
    sh("modprobe", "loop")


def test_a_node_starts_anew(
    lio: LioTarget,
    lio_portal: str,
    initiator: Initiator,
    loop_devices: None,
    make_xfs: Callable[[int], Path],
) -> None:
    """All is gone from the kernel; what restores it lets the initiator go on where it was."""
    pool = FilesPool(make_xfs(XFS_MINIMUM), image_gib=1)
    pool.check()
    pool.create("v1", 8 * MIB)
    export = dataclasses.replace(export_of(pool.path("v1")), ip="127.0.0.1")
    names = ("volume_id", "iqn", "lun", "username", "password", "serial", "initiator", "ip")
    wanted = {name: getattr(export, name) for name in names}
    restores = make_restores(pool, Engine(url=f"files:{pool.folder}/store", options={}, key=KEY))
    Exports(restores, lio).attach("v1", wanted)
    with (
        logged_in(initiator, offered(export, lio_portal)) as device,
        writing(device) as counted,
    ):
        tree.take_down(tree.disks()["v1"])
        tree.sweep()
        assert lio_left_over() == []
        target = LioTarget(lio_portal, pool.folder)
        target.check()
        Exports(restores, target).restore(lambda: [wanted])
        wait_for_answer(device)
        assert target.exports() == {"v1": [{"initiator": export.initiator, "ip": export.ip}]}
    assert_written(export.path, counted[0])
    target.remove("v1")
    pool.close()
