"""The races on PostgreSQL, where rows are locked and claims skip what is locked."""

from __future__ import annotations

import pytest

from tests.functional.api.races import Races
from tests.support.thorough import examples


class TestPostgreSQL(Races):
    @pytest.fixture
    def url(self, migrated_postgresql: str) -> str:
        return migrated_postgresql

    @pytest.fixture
    def jobs(self) -> int:
        return examples(200, 600)
