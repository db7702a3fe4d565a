"""The migrations make what the models say, on PostgreSQL; what is gone is told as such."""

from __future__ import annotations

import pytest

from lunr.common import errors
from lunr.db import migrate
from lunr.db.session import Database
from tests.support.waiting import free_port
from tests.unit.db.test_migrate import check_groups_of_old, check_volumes_of_old, differences


def test_models_equal_migrations(postgresql: str) -> None:
    migrate.upgrade(postgresql)
    migrate.upgrade(postgresql)
    assert differences(postgresql) == []


def test_groups_of_old(postgresql: str) -> None:
    check_groups_of_old(postgresql)


def test_external_volumes_of_old(postgresql: str) -> None:
    check_volumes_of_old(postgresql)


def test_a_server_that_is_not_there_is_unavailable() -> None:
    url = f"postgresql://lunr:secret-word@127.0.0.1:{free_port()}/lunr"
    database = Database(url)
    with pytest.raises(errors.Unavailable) as told, database.read():
        pass
    database.close()
    assert "secret-word" not in str(told.value)
    with pytest.raises(errors.Unavailable):
        migrate.upgrade(url)
