"""The races on SQLite, with threads of three Services that share no lock but the file's."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from pathlib import Path

import pytest

from lunr.common import errors
from tests.functional.api.races import Races
from tests.functional.api.world import World, outcome


class TestSQLite(Races):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/lunr.db"

    @pytest.fixture
    def jobs(self) -> int:
        return 1000


def _create_many(folder: Path, number: int, queue: multiprocessing.Queue[object]) -> None:
    world = World.__new__(World)
    world.url, world.key = f"sqlite:///{folder}/lunr.db", folder / "secret.key"
    world.settings = _settings()
    services = world.another()
    queue.put([outcome(services.volumes.create, "acme", {"size": 1}).error for _ in range(number)])
    services.close()


def _settings() -> object:
    from lunr.api.services.core import Settings

    return Settings()


def test_five_processes_share_the_room(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.beat("n1", gib=10)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_create_many, args=(tmp_path, 10, queue)) for _ in range(5)]
    for process in processes:
        process.start()
    results = Counter(error for _ in processes for error in queue.get(timeout=60))
    for process in processes:
        process.join(30)
    world.close()
    assert results == {None: 10, errors.NoRoom: 40}
