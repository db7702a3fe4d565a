"""Targets on block devices, and pools of thick volumes."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from lunr.storage.pools.lvm.pool import LvmPool
from lunr.storage.targets.base import Export, Target
from lunr.storage.targets.lio import tree
from lunr.storage.targets.lio.target import LioTarget
from lunr.storage.targets.tgt.target import TgtTarget
from tests.support.initiator import Initiator
from tests.support.services import Tgtd
from tests.support.slices import SLICES, Slices
from tests.support.waiting import free_port
from tests.system.storage import iscsi
from tests.vm.conftest import DISK, PLAIN_DISK
from tests.vm.storage.thick import MIB, make_group, remove_group, start_again


@pytest.fixture(scope="module")
def slices() -> Iterator[Slices]:
    slices = Slices(DISK)
    yield slices
    slices.close()


@pytest.fixture(scope="module")
def lio_portal() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def lio(slices: Slices, lio_portal: str) -> Iterator[LioTarget]:
    """LIO on devices; when a test is over, the kernel's target is empty."""
    target = LioTarget(lio_portal, SLICES)
    target.check()
    yield target
    for volume_id in LioTarget(lio_portal, SLICES).exports():  # also what is half made
        target.remove(volume_id, force=True)
    assert lio_left_over() == []


def lio_left_over() -> list[Path]:
    """What there is in the kernel's target, of anybody's."""
    return [*tree.ROOT.glob("core/*_*"), *tree.TARGETS.glob("*:*")]


def lio_session(volume_id: str) -> str:
    """What LIO calls the volume's session: another one has another name."""
    acl = tree.acl_of(tree.disks()[volume_id])
    assert acl is not None
    lines = (acl / "info").read_text().splitlines()
    return next(line for line in lines if "LIO Session ID" in line)


@pytest.fixture(scope="module")
def tgtd(run_folder: Path) -> Iterator[Tgtd]:
    """One for all tests of a file."""
    daemon = Tgtd(Path(tempfile.mkdtemp(prefix="tgtd-", dir=run_folder)))
    daemon.start()
    yield daemon
    daemon.kill()


@pytest.fixture
def tgt(slices: Slices, tgtd: Tgtd) -> Iterator[TgtTarget]:
    """tgtd on devices; when a test is over, it has no targets."""
    target = TgtTarget(tgtd.socket, SLICES)
    yield target
    for volume_id in TgtTarget(tgtd.socket, SLICES).exports():  # also what is half made
        target.remove(volume_id, force=True)


class Driver(NamedTuple):
    """A target, where it listens, and how it is made by another process."""

    target: Target
    portal: str
    again: Callable[[], Target]


@pytest.fixture(params=["lio", "tgt"])
def driver(request: pytest.FixtureRequest) -> Driver:
    """One after the other."""
    target: Target = request.getfixturevalue(request.param)
    if request.param == "lio":
        portal = request.getfixturevalue("lio_portal")
        return Driver(target, portal, lambda: LioTarget(portal, SLICES))
    tgtd: Tgtd = request.getfixturevalue("tgtd")
    return Driver(target, tgtd.portal, lambda: TgtTarget(tgtd.socket, SLICES))


class Offered(NamedTuple):
    """An export as the kernel's initiator is told of it."""

    target_iqn: str
    target_portal: str
    auth_username: str | None
    auth_password: str | None


def offered(export: Export, portal: str) -> Offered:
    return Offered(export.iqn, portal, export.username, export.password)


@contextlib.contextmanager
def logged_in(initiator: Initiator, offer: Offered) -> Iterator[Path]:
    """The disk; no session is left, which commands that look at all disks would wait for."""
    device = initiator.login(offer)
    try:
        yield device
    finally:
        initiator.logout(offer)


@pytest.fixture(scope="module")
def initiator() -> Iterator[Initiator]:
    initiator = Initiator(iscsi.INITIATOR)
    yield initiator
    initiator.close()


# --- pools of thick volumes ---------------------------------------------------------------


@pytest.fixture(scope="module")
def _discarding() -> Iterator[LvmPool]:
    make_group("lunr-thick", DISK)
    pool = LvmPool("lunr-thick", wipe_mib_per_second=0)
    pool.check()
    yield pool
    pool.close()
    remove_group("lunr-thick", DISK)


@pytest.fixture
def pool(_discarding: LvmPool) -> Iterator[LvmPool]:
    yield _discarding
    start_again(_discarding, DISK)


@pytest.fixture(scope="module")
def _plain() -> Iterator[LvmPool]:
    make_group("lunr-plain", PLAIN_DISK)
    pool = LvmPool("lunr-plain", wipe_mib_per_second=0)
    pool.check()
    yield pool
    pool.close()
    remove_group("lunr-plain", PLAIN_DISK)


@pytest.fixture
def plain(_plain: LvmPool) -> Iterator[LvmPool]:
    """On a disk that can neither discard nor write zeros by itself."""
    yield _plain
    start_again(_plain, PLAIN_DISK)


@pytest.fixture
def small_areas(pool: LvmPool) -> Iterator[LvmPool]:
    """A pool whose snapshots begin with a tenth of their volume, however small that is."""
    pool.areas.look()  # there are no snapshots: what an earlier test's could not do is forgotten
    pool.areas.least = MIB
    yield pool
    del pool.areas.least
