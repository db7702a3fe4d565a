"""Which other backups a save is told of: their chunks need not be stored again."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import update

from lunr.api.services.backups import dedup_candidates
from lunr.db.models import Backup, Volume
from tests.functional.api.world import World


def _claim(world: World, volume: str, **request: Any) -> Any:
    world.services.backups.create("acme", volume, request)
    return world.claim(kinds=["backup.save"])


def _like(world: World, volume: str, **request: Any) -> list[str]:
    """What the next save of `volume` is told; it is DONE then, and its backup deleted."""
    job = _claim(world, volume, **request)
    world.done(job)
    world.services.backups.delete("acme", job["payload"]["backup_id"])
    world.work()
    like: list[str] = job["payload"]["like"]
    return like


def _change(world: World, id: str, **values: Any) -> None:
    world.services.context.db.write(
        lambda session: session.execute(update(Backup).where(Backup.id == id).values(**values))
    )


@pytest.fixture
def three(world: World) -> World:
    """The volumes v1, v2 and v3, of which v1 has two backups and v2 one."""
    for volume in ("v1", "v2", "v3"):
        world.volume(volume)
    world.backup("a1", "v1")
    world.backup("b1", "v2")
    world.backup("a2", "v1")
    return world


def test_the_newest_of_each_other_volume_the_newest_first(three: World) -> None:
    assert _like(three, "v3") == ["a2", "b1"]
    three.backup("b2", "v2")
    assert _like(three, "v3") == ["b2", "a2"]
    assert _like(three, "v1") == ["b2"], "its own are its parents"


def test_what_can_not_be_used_is_not_told(three: World) -> None:
    _change(three, "a2", damaged="A chunk is lost.")
    assert _like(three, "v3") == ["b1", "a1"]
    _change(three, "b1", internal=True)
    assert _like(three, "v3") == ["a1"]
    three.services.backups.delete("acme", "a1")
    assert _like(three, "v3") == []


def test_nothing_of_another_account_is_told(three: World) -> None:
    three.services.accounts.create("other")
    three.services.volumes.create("other", {"size": 1}, "theirs")
    three.work()
    three.services.backups.create("other", "theirs", {}, "t1")
    job = three.claim()
    assert (job["kind"], job["payload"]["like"]) == ("backup.save", [])
    three.done(job)
    assert _like(three, "v3") == ["a2", "b1"]
    # Not even where the volume's records name it.
    three.services.context.db.write(
        lambda session: session.execute(
            update(Volume)
            .where(Volume.id == "v3")
            .values(backup_id="t1", source_volume_id="theirs")
        )
    )
    assert _like(three, "v3") == ["a2", "b1"]


def test_a_full_backup_is_stored_anew(three: World) -> None:
    assert _like(three, "v3", full=True) == []


def test_what_it_was_restored_from_comes_first_and_newer_ones_after_it(three: World) -> None:
    three.backup("b2", "v2")
    three.restored("r1", "a1")
    three.fill_up()
    assert _like(three, "r1") == ["a1", "b2", "a2"]


def test_while_it_is_restored_that_is_its_parent(three: World) -> None:
    three.restored("r1", "a1")
    job = _claim(three, "r1")
    assert (job["payload"]["parent_id"], job["payload"]["like"]) == ("a1", ["a2", "b1"])


def test_the_newest_of_the_volume_it_was_cloned_from_comes_first(three: World) -> None:
    three.backup("b2", "v2")
    three.services.volumes.create("acme", {"source_volume": "v1"}, "clone")
    snapshot = three.services.snapshots.create("acme", "v1")["id"]
    three.work()
    three.services.volumes.create("acme", {"snapshot": snapshot}, "still")
    three.work()
    assert _like(three, "clone") == ["a2", "b2"]
    assert _like(three, "still") == ["a2", "b2"]
    assert _like(three, "v3") == ["b2", "a2"]


def test_no_more_than_so_many(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedup_candidates, "MOST", 3)
    monkeypatch.setattr(dedup_candidates, "_LOOKED_THROUGH", 4)
    for number in range(5):
        world.volume(f"v{number}")
        world.backup(f"b{number}", f"v{number}")
    assert _like(world, "v0") == ["b4", "b3", "b2"]
    for number in range(4):
        world.backup(f"c{number}", "v4")
    assert _like(world, "v0") == ["c3"]
