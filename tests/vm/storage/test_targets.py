"""LIO and tgtd on block devices: what every target promises, and what only the kernel shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lunr.storage.targets import lio_tree
from lunr.storage.targets.base import Export
from lunr.storage.targets.lio import LioTarget
from lunr.storage.targets.tgt import TgtTarget
from tests.support.services import Tgtd
from tests.support.slices import Slices
from tests.support.target_contract import (
    GrowVolume,
    MakeVolume,
    TargetContract,
    export_of,
)
from tests.support.waiting import free_port

POOL = Path("/dev/mapper")


@pytest.fixture
def slices(disk: Path) -> Iterator[Slices]:
    slices = Slices(disk)
    yield slices
    slices.close()


@pytest.fixture
def make_volume(slices: Slices) -> MakeVolume:
    return slices.make


@pytest.fixture
def grow_volume(slices: Slices) -> GrowVolume:
    return slices.grow


@pytest.fixture
def export(make_volume: MakeVolume) -> Export:
    return export_of(make_volume("v1", 8 << 20))


@pytest.fixture
def lio_portal() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def lio(slices: Slices, lio_portal: str) -> Iterator[LioTarget]:
    target = LioTarget(lio_portal, POOL)
    target.check()
    yield target
    for volume_id in target.exports():
        target.remove(volume_id, force=True)
    assert left_over() == []


def left_over() -> list[Path]:
    """What there is in the kernel's target."""
    return [*lio_tree.ROOT.glob("core/*_*"), *lio_tree.TARGETS.glob("iqn.*")]


class TestLio(TargetContract):
    """LIO."""

    ADDRESS_ALONE = False
    ADDRESS_AT_LOGIN = False
    MANY = 8

    @pytest.fixture
    def target(self, lio: LioTarget) -> LioTarget:
        return lio

    @pytest.fixture
    def portal(self, lio_portal: str) -> str:
        return lio_portal


class TestTgt(TargetContract):
    """tgtd, on devices."""

    MANY = 8

    @pytest.fixture
    def target(self, slices: Slices, tgtd: Tgtd) -> TgtTarget:
        return TgtTarget(tgtd.socket, POOL)

    @pytest.fixture
    def portal(self, tgtd: Tgtd) -> str:
        return tgtd.portal
