"""No list is longer than a page, whoever asks and for however much."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.functional.api.world import World

#: Of each thing there is one more than a page holds.
PAGE = 2


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, page_limit=PAGE)
    yield world
    world.close()


@pytest.mark.parametrize("query", ["", "limit=1000"])
def test_a_page_has_its_limit(world: World, query: str) -> None:
    world.services.accounts.create("office")
    world.services.accounts.create("rival")
    admin = world.services.tokens.create("office", "admin")["token"]
    for number in range(PAGE + 1):
        volume = f"v{number}"
        world.volume(volume)
        world.backup(f"b{number}", volume)
        world.services.snapshots.create("acme", volume)
        world.services.exports.create("acme", volume, "iqn.2026-11.a:b", None)
        world.services.schedules.create("acme", volume, {"every": "1d"})
        world.work()
    for number in range(PAGE):
        world.add_node(f"other{number}")
    own = ("volumes", "snapshots", "backups", "jobs", "schedules")
    everyones = ("accounts", "nodes", "volumes", "snapshots", "backups", "exports", "jobs")
    for path in (*(f"acme/{name}" for name in own), *(f"admin/{name}" for name in everyones)):
        seen: list[str] = []
        marker: str | None = ""
        while marker is not None:
            at = f"&marker={marker}" if marker else ""
            page = world.call("GET", f"/v1.0/{path}?{query}{at}", token=admin).json
            things = page[path.rpartition("/")[2]]
            assert len(things) <= PAGE, path
            seen.extend(str(thing) for thing in things)
            marker = page["next"]
        assert len(seen) == len(set(seen)) > PAGE, path
