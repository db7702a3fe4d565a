"""Groups on PostgreSQL: told twice at once, and at once with the end of a collection."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.functional.api.backups import test_groups as groups
from tests.functional.api.world import World, outcome


@pytest.fixture
def world(tmp_path: Path, migrated_postgresql: str) -> Iterator[World]:
    found = World(tmp_path, migrated_postgresql)
    yield found
    found.close()


def test_told_by_several_at_once(world: World) -> None:
    with ThreadPoolExecutor(8) as pool:
        for status in ("SAVING", "AVAILABLE"):
            told = [pool.submit(outcome, groups.put, world, status=status) for _ in range(8)]
            assert {one.result().error for one in told} == {None}
            assert groups.only(world) == {status}
        deleted = [
            pool.submit(outcome, world.services.groups.delete, "acme", "g1") for _ in range(8)
        ]
        assert {one.result().error for one in deleted} == {None}
    assert world.work() == ["backup.delete"] * 3
    assert groups.only(world) == {"DELETED"}


def test_told_at_once_with_the_end_of_a_collection(world: World) -> None:
    for number in range(10):
        job = groups.collect(world)
        with ThreadPoolExecutor(2) as pool:
            ended = pool.submit(world.done, job, collection=f"c{number}")
            told = pool.submit(groups.put, world, f"g{number}").result()
            ended.result()
        is_told = f"c{number}" in told["condemned"]
        sweep = world.claim(kinds=["repository.sweep"])
        assert is_told == (sweep is not None), "who is not told of it is waited for"
        groups.put(world, f"g{number}", status="AVAILABLE")
        world.done(sweep or world.claim(kinds=["repository.sweep"]))
