"""Limits of I/O hold for who they are for, and for nobody else: measured."""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lunr.storage.targets import limits
from lunr.storage.targets.base import Export
from tests.support.initiator import Initiator
from tests.support.slices import Slices
from tests.support.target_contract import export_of
from tests.vm.storage.conftest import Driver, logged_in, offered

#: Operations in a second, fewer than any machine does.
FEW = 5
#: Seconds of one measurement.
MEASUREMENT = 2.0


def rate(device: Path, write: bool) -> float:
    """Operations of 4 KiB in a second, some at once, that do not end in the page cache.

    One after the other would measure how long TCP waits to acknowledge, instead.
    """
    file = os.open(device, os.O_RDWR | os.O_DIRECT)
    deadline = time.monotonic() + MEASUREMENT
    done: list[int] = []

    def work(number: int) -> None:
        with mmap.mmap(-1, 4096) as page:
            count = 0
            while time.monotonic() < deadline:
                place = (count + number * 256) * 4096 % (8 << 20)
                if write:
                    os.pwrite(file, page, place)
                else:
                    os.preadv(file, [page], place)
                count += 1
            done.append(count)

    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        os.close(file)
    return sum(done) / MEASUREMENT


@contextlib.contextmanager
def exported(driver: Driver, initiator: Initiator, *exports: Export) -> Iterator[list[Path]]:
    """The initiator's disks."""
    for export in exports:
        driver.target.ensure(export)
    try:
        with contextlib.ExitStack() as stack:
            offers = [offered(export, driver.portal) for export in exports]
            yield [stack.enter_context(logged_in(initiator, offer)) for offer in offers]
    finally:
        for export in exports:
            driver.target.remove(export.volume_id, force=True)


def in_force() -> str:
    """All limits of the machine."""
    return "".join(path.read_text() for path in limits.CGROUPS.rglob("io.max"))


def test_limits_hold(driver: Driver, initiator: Initiator, slices: Slices) -> None:
    target = driver.target
    assert target.limits_io()
    free = export_of(slices.make("v1", 8 << 20), "v1")
    other = export_of(slices.make("v2", 8 << 20), "v2")
    with exported(driver, initiator, free, dataclasses.replace(other, username="u2")) as disks:
        disk, another = disks
        unlimited = rate(disk, write=False), rate(disk, write=True)
        # A share of what the machine can do now: how fast that is depends on who else is on it.
        reads, writes = (max(4, int(one / 12)) for one in unlimited)
        target.ensure(dataclasses.replace(free, read_iops=reads, write_iops=writes))
        alone = rate(disk, write=False), rate(disk, write=True)
        beside: list[float] = []
        thread = threading.Thread(target=lambda: beside.append(rate(another, write=False)))
        thread.start()
        together = rate(disk, write=False)
        thread.join()
        target.ensure(free)
        again = rate(disk, write=False)
    print(
        f"reads {unlimited[0]:.0f}/s, limited to {reads}: {alone[0]:.1f}; "
        f"writes {unlimited[1]:.0f}/s, limited to {writes}: {alone[1]:.1f}; beside each other: "
        f"limited {together:.1f}, unlimited {beside[0]:.0f}; limits gone: {again:.0f}"
    )
    for measured, limit in ((alone[0], reads), (alone[1], writes)):
        assert 0.5 * limit <= measured <= 1.4 * limit
    assert together <= 1.4 * reads
    assert min(beside[0], again) > 1.5 * reads
    assert in_force() == ""


def test_who_logs_in_later_is_limited(driver: Driver, initiator: Initiator, slices: Slices) -> None:
    export = dataclasses.replace(export_of(slices.make("v1", 8 << 20)), read_iops=FEW)
    with exported(driver, initiator, export) as disks:
        driver.target.exports()  # as each second
        assert rate(disks[0], write=False) <= 1.4 * FEW
        assert rate(disks[0], write=True) > 2 * FEW


@pytest.mark.parametrize("work", ["reopen", "ensure"])
def test_limits_go_along_with_a_volume_that_moves(
    driver: Driver, slices: Slices, work: str
) -> None:
    """As it does when it is full, from the device that it was filled by."""
    export = dataclasses.replace(export_of(slices.make("v1", 8 << 20)), read_iops=FEW)
    moved = dataclasses.replace(export, path=slices.make("moved", 8 << 20))
    driver.target.ensure(export)
    before = in_force()
    getattr(driver.target, work)(moved)
    driver.target.exports()  # as each second
    (line,) = in_force().splitlines()
    assert f" riops={FEW} wiops=max" in line
    assert line not in before
    driver.target.remove("v1")
    assert in_force() == ""


@pytest.mark.parametrize("read_iops", [0, FEW])
def test_limits_of_a_killed_agent_are_found(driver: Driver, slices: Slices, read_iops: int) -> None:
    """The next process knows nothing of them: it makes them what they must be."""
    export = export_of(slices.make("v1", 8 << 20))
    driver.target.ensure(dataclasses.replace(export, read_iops=1, write_iops=1))
    driver.again().ensure(dataclasses.replace(export, read_iops=read_iops))
    said = in_force()
    assert said == "" if read_iops == 0 else f"riops={FEW} wiops=max" in said
    driver.again().remove("v1")
    assert in_force() == ""
