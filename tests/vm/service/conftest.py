"""A whole service on the VM's disk."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.faults.faulty_disk import FaultyDisk
from tests.support.initiator import Initiator
from tests.vm.conftest import DISK
from tests.vm.service.running import DISK_NAME, INITIATOR, Nursery, World, running


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the module of a test does not choose: see test_kill.py."""
    left_out = []
    for item in items:
        is_chosen = getattr(getattr(item, "module", None), "is_chosen", None)
        params = (
            item.callspec.params
            if isinstance(item, pytest.Function) and hasattr(item, "callspec")
            else {}
        )
        if (
            is_chosen is not None
            and "name" in params
            and not is_chosen(params["name"], params["world"][0])
        ):
            left_out.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


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
