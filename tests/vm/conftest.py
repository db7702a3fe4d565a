"""What is here needs kernel modules and empty disks: `tools/test vm` runs it in the VM.

The VM's disks are shared by all tests, one after another: each fixture makes
what it needs and removes it. See docs/development.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.faulty_disk import FaultyDisk
from tests.support.initiator import Initiator
from tests.vm.node import DISK_NAME, INITIATOR, Nursery, World, running

if "LUNR_VM" not in os.environ:
    collect_ignore_glob = ["*"]


#: Discards to zeros; can neither discard nor write zeros by itself; a small one.
DISK, PLAIN_DISK, SMALL_DISK = Path("/dev/vda"), Path("/dev/vdb"), Path("/dev/vdc")


@pytest.fixture
def disk() -> Path:
    return DISK


@pytest.fixture
def plain_disk() -> Path:
    return PLAIN_DISK


@pytest.fixture
def small_disk() -> Path:
    return SMALL_DISK


@pytest.fixture
def initiator() -> Iterator[Initiator]:
    initiator = Initiator(INITIATOR)
    yield initiator
    initiator.close()


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture(
    scope="package", params=[("lvm", "lio"), ("thin", "tgt")], ids=lambda kind: "-".join(kind)
)
def world(
    request: pytest.FixtureRequest, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """A service, which takes long to start: the tests of a kind of node share one."""
    pool, target = request.param
    disk = FaultyDisk(DISK, DISK_NAME)
    with running(pool, target, disk, tmp_path_factory.mktemp("world"), nursery) as world:
        yield world
    disk.remove()
