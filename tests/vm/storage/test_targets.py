"""LIO and tgtd on block devices: what every target promises."""

from __future__ import annotations

import pytest

from lunr.storage.targets.base import Export
from lunr.storage.targets.lio.target import LioTarget
from lunr.storage.targets.tgt.target import TgtTarget
from tests.support.services import Tgtd
from tests.support.slices import Slices
from tests.support.target_contract import GrowVolume, MakeVolume, TargetContract, export_of


@pytest.fixture
def make_volume(slices: Slices) -> MakeVolume:
    return slices.make


@pytest.fixture
def grow_volume(slices: Slices) -> GrowVolume:
    return slices.resize


@pytest.fixture
def export(make_volume: MakeVolume) -> Export:
    return export_of(make_volume("v1", 8 << 20))


class TestLio(TargetContract):
    """LIO."""

    ADDRESS_ALONE = False
    ADDRESS_AT_LOGIN = False
    MANY = 4

    @pytest.fixture
    def target(self, lio: LioTarget) -> LioTarget:
        return lio

    @pytest.fixture
    def portal(self, lio_portal: str) -> str:
        return lio_portal


class TestTgt(TargetContract):
    """tgtd."""

    MANY = 4

    @pytest.fixture
    def target(self, tgt: TgtTarget) -> TgtTarget:
        return tgt

    @pytest.fixture
    def portal(self, tgtd: Tgtd) -> str:
        return tgtd.portal
