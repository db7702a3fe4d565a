"""The races on PostgreSQL, where rows are locked and claims skip what is locked."""

from __future__ import annotations

import pytest

from tests.functional.api.races import Races


class TestPostgreSQL(Races):
    @pytest.fixture
    def url(self, postgresql: str) -> str:
        return postgresql

    @pytest.fixture
    def jobs(self) -> int:
        return 600
