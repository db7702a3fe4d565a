"""A wall clock that was ten years ahead for a while: when it is right again, all goes on."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from lunr.api.orbit import Housekeeper
from lunr.api.services.pagination import Query
from lunr.common import config, times
from lunr.db.models import Account, Backup, Job, Node, ScheduleRun
from tests.functional.api.world import World

YEARS = timedelta(days=3650)


class Wall:
    """The wall clock of all that asks :func:`lunr.common.times.now`."""

    ahead = timedelta(0)


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    wall, now = Wall(), times.now
    monkeypatch.setattr(times, "now", lambda: now() + wall.ahead)
    return wall


@pytest.fixture
def world(tmp_path: Path, wall: Wall) -> Iterator[World]:
    world = World(tmp_path, retry_delay=5)
    world.volume("v1")
    yield world
    world.close()


@pytest.fixture
def housekeeper(world: World) -> Housekeeper:
    return Housekeeper(world.services, config.new())


def scalar(world: World, column: Any) -> Any:
    with world.services.context.db.read() as connection:
        return connection.scalar(select(column))


def test_a_schedule_goes_on(world: World, housekeeper: Housekeeper, wall: Wall) -> None:
    world.services.schedules.create("acme", "v1", {"every": "15m", "spread": 0})
    housekeeper.round()
    wall.ahead = YEARS
    world.beat("n1")
    housekeeper.round()
    assert "backup.save" in world.work()
    wall.ahead = timedelta(0)
    assert scalar(world, ScheduleRun.next_run) > times.now() + YEARS
    housekeeper.round()
    assert scalar(world, ScheduleRun.next_run) <= times.now() + timedelta(minutes=15)


def test_a_run_that_had_no_chance_is_tried_again(
    world: World, housekeeper: Housekeeper, wall: Wall
) -> None:
    world.services.schedules.create("acme", "v1", {"every": "1d"})
    housekeeper.round()
    wall.ahead = YEARS
    world.beat("n1")
    world.services.volumes.extend("acme", "v1", 2)  # another job is at work on it
    housekeeper.round()
    assert scalar(world, ScheduleRun.not_before) > datetime.now() + timedelta(days=300)
    wall.ahead = timedelta(0)
    housekeeper.round()
    assert scalar(world, ScheduleRun.not_before) is None


def test_jobs_are_tried_again_and_leases_run_out(
    world: World, housekeeper: Housekeeper, wall: Wall
) -> None:
    wall.ahead = YEARS
    world.beat("n1")
    for id in ("a", "b"):
        world.services.volumes.create("acme", {"size": 1}, id)
    world.fail(world.claim(), retry=True)
    held = world.claim()
    wall.ahead = timedelta(0)
    world.beat("n1")
    assert world.claim() is None, "it waits for ten years"
    housekeeper.round()
    assert world.claim()["id"] != held["id"]
    longest = timedelta(hours=1, minutes=10)
    assert scalar(world, func.max(Job.lease_until)) < times.now() + longest


def test_a_node_that_died_meanwhile_is_found_dead(
    world: World, housekeeper: Housekeeper, wall: Wall
) -> None:
    wall.ahead = YEARS
    world.beat("n1")
    wall.ahead = timedelta(0)
    housekeeper.round()
    assert scalar(world, Node.last_seen) <= times.now()
    wall.ahead = timedelta(minutes=3)
    housekeeper.round()
    assert scalar(world, Node.status) == "DOWN"


def test_garbage_is_collected_and_backups_are_verified(
    world: World, housekeeper: Housekeeper, wall: Wall
) -> None:
    world.backup("b1")
    wall.ahead = YEARS
    world.beat("n1")
    housekeeper.round()
    assert scalar(world, Account.collected_at) > datetime.now() + timedelta(days=300)
    wall.ahead = timedelta(0)
    for job in world.services.jobs.list(Query("acme"))["jobs"]:
        if job["status"] == "QUEUED":
            world.services.jobs.cancel("acme", job["id"])
    housekeeper.round()
    assert scalar(world, Account.collected_at) <= times.now()
    assert scalar(world, Account.verify_asked_at) <= times.now()


def test_a_backup_of_the_future_takes_no_place_of_others(world: World) -> None:
    world.backup("future")
    ahead = update(Backup).values(created_at=times.now() + YEARS)
    world.services.context.db.write(lambda session: session.execute(ahead))
    world.backup("now")
    pruned = world.services.retention.prune(
        "acme", "v1", {"keep_last": 1}, by_hand=True, dry_run=True
    )
    reasons = {one["id"]: (one["keep"], one["reasons"]) for one in pruned["backups"]}
    assert reasons["now"] == (True, ["last 1"])
    assert reasons["future"] == (True, ["made when the clock was ahead"])


def test_a_right_clock_changes_nothing(world: World, housekeeper: Housekeeper) -> None:
    world.services.schedules.create("acme", "v1", {"every": "1w", "at": "sun 00:00"})
    world.backup("b1")
    housekeeper.round()
    world.services.volumes.create("acme", {"size": 1}, "a")
    world.fail(world.claim(kinds=["volume.create"]), retry=True)
    assert world.services.clock.correct(times.now()) == {}
