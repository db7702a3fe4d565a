"""Schedules: made, changed, and run by the housekeeper."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from lunr.api.orbit import Housekeeper
from lunr.common import config, times
from lunr.db.models import Schedule, ScheduleRun, Volume
from tests.functional.api.world import World

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def make(world: World, volume: str = "v1", **given: Any) -> Any:
    body = {"volume_id": volume, "every": "1d", **given}
    answer = world.call("POST", "/v1.0/acme/schedules", body)
    assert answer.status_int == 200, answer.text
    return answer.json


def run(world: World, now: datetime) -> list[Any]:
    """What one round of the housekeeper does at that time."""
    while world.services.scheduling.plan(now):
        pass
    return list(iter(lambda: world.services.scheduling.run(now), None))


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text.removesuffix("Z"))


def shown(world: World, id: str) -> Any:
    return world.call("GET", f"/v1.0/acme/schedules/{id}").json


def due(world: World, schedule: Any, days: int = 0) -> datetime:
    """A second after the volume's next time, or some days later."""
    return moment(shown(world, schedule["id"])["next_run"]) + timedelta(seconds=1) + days * DAY


@pytest.fixture
def admin(world: World) -> str:
    world.services.accounts.create("office")
    token: str = world.services.tokens.create("office", "admin")["token"]
    return token


def test_a_schedules_life(world: World) -> None:
    world.volume()
    made = make(world, at="03:30", name="nightly", spread=0)
    assert made["next_run"].endswith("T03:30:00.000000Z")
    assert moment(made["next_run"]) > times.now()
    assert (made["volumes"], made["last_run"], made["last_backup"]) == (1, None, None)
    path = f"/v1.0/acme/schedules/{made['id']}"
    assert world.call("GET", path).json == made
    assert world.call("GET", "/v1.0/acme/volumes/v1/schedule").json == made
    second = world.call("POST", "/v1.0/acme/schedules", {"volume_id": "v1", "every": "1h"})
    assert (second.status_int, second.json["code"]) == (409, "conflict")
    changed = world.call("POST", path, {"every": "1w"}).json
    assert (changed["at"], changed["spread"], changed["name"]) == ("sun 00:00", 60, "nightly")
    kept = world.call("POST", path, {"at": "mon 12:00"}).json
    assert (kept["every"], kept["at"], kept["spread"]) == ("1w", "mon 12:00", 60)
    wrong = world.call("POST", path, {"at": "12:00"})
    assert (wrong.status_int, wrong.json["code"]) == (400, "invalid_field")
    assert world.call("POST", path, {"every": "none"}).json["next_run"] is None
    listed = world.call("GET", "/v1.0/acme/schedules?name=nightly&volume_id=v1").json
    assert [s["id"] for s in listed["schedules"]] == [made["id"]]
    assert world.call("GET", "/v1.0/acme/schedules?name=other").json["schedules"] == []
    assert world.call("DELETE", path).status_int == 204
    assert world.call("GET", path).status_int == 404
    assert world.call("GET", "/v1.0/acme/volumes/v1/schedule").status_int == 404


@pytest.mark.parametrize(
    "body",
    [
        {"volume_id": "v1"},
        {"every": "1d"},
        {"volume_id": "v1", "every": "daily"},
        {"volume_id": "v1", "every": "1d", "at": "25:00"},
        {"volume_id": "v1", "every": "1d", "spread": -1},
        {"volume_id": "v1", "every": "1h", "spread": 61},
        {"volume_id": "v1", "every": "1d", "volume_type_name": "default"},
    ],
)
def test_what_is_no_schedule_is_refused_and_makes_none(world: World, body: Any) -> None:
    world.volume()
    answer = world.call("POST", "/v1.0/acme/schedules", body)
    assert answer.status_int == 400
    assert world.call("GET", "/v1.0/acme/schedules").json["schedules"] == []


def test_a_backup_says_which_schedule_made_it(world: World) -> None:
    world.volume()
    made = make(world, name="nightly")
    [ran] = run(world, due(world, made))
    backup = world.services.backups.get("acme", ran.backup_id)
    assert (backup["schedule"], backup["name"]) == (made["id"], "nightly")
    world.work()
    after = shown(world, made["id"])
    assert (after["last_backup"], after["last_error"]) == (ran.backup_id, None)
    assert after["last_run"] is not None
    assert world.backup("mine")["schedule"] is None


def test_what_was_missed_is_made_up_for_once(world: World) -> None:
    world.volume()
    made = make(world)
    late = due(world, made, days=40)
    assert len(run(world, late)) == 1
    world.work()
    assert run(world, late) == []
    following = moment(shown(world, made["id"])["next_run"])
    assert late < following <= late + DAY
    assert run(world, following - timedelta(seconds=1)) == []
    assert len(run(world, following)) == 1


def test_no_second_backup_while_one_is_running_or_waiting(world: World) -> None:
    world.volume()
    made = make(world)
    [first] = run(world, due(world, made))
    [skipped] = run(world, due(world, made))
    assert skipped.backup_id is None
    assert "running or waiting" in shown(world, made["id"])["last_error"]
    save = world.claim(kinds=["backup.save"])
    [skipped] = run(world, due(world, made))
    assert skipped.backup_id is None
    world.done(save)
    [second] = run(world, due(world, made))
    assert second.backup_id not in (None, first.backup_id)
    assert shown(world, made["id"])["last_error"] is None
    world.work()
    world.services.backups.create("acme", "v1", {}, "by-hand")
    [skipped] = run(world, due(world, made))
    assert skipped.backup_id is None


def test_a_volume_that_can_not_be_backed_up_is_skipped(world: World) -> None:
    world.volume()
    world.backup()
    world.services.volumes.create("acme", {"backup": "b1"}, "copy")
    made = make(world, "copy")
    [skipped] = run(world, due(world, made))
    assert "NEW" in skipped.reason
    restore = world.claim(kinds=["volume.restore"])
    [skipped] = run(world, due(world, made))
    assert "RESTORING" in skipped.reason
    world.fail(restore)
    [skipped] = run(world, due(world, made))
    assert "ERROR" in skipped.reason
    assert shown(world, made["id"])["last_error"] == skipped.reason
    assert moment(shown(world, made["id"])["next_run"]) > times.now()


def test_what_has_no_chance_now_stays_due(world: World) -> None:
    world.volume()
    made = make(world)
    when = due(world, made)
    world.services.volumes.extend("acme", "v1", 2)
    [tried] = run(world, when)
    assert tried.backup_id is None and "job" in tried.reason
    assert run(world, when + timedelta(minutes=4)) == []
    world.work()
    [ran] = run(world, when + timedelta(minutes=5))
    assert ran.backup_id is not None
    world.work()
    world.services.accounts.update("acme", {"backups": 1})
    when = due(world, made)
    [tried] = run(world, when)
    assert "quota" in tried.reason
    world.services.accounts.update("acme", {"backups": 2})
    [ran] = run(world, when + DAY * 3)
    assert ran.backup_id is not None


def test_a_failed_backup_is_told(world: World) -> None:
    world.volume()
    made = make(world)
    run(world, due(world, made))
    world.fail(world.claim(kinds=["backup.save"]), reason="The disk is gone.")
    assert shown(world, made["id"])["last_error"] == "The disk is gone."
    assert "lunr_schedules_failing 1.0" in world.call("GET", "/metrics").text
    run(world, due(world, made))
    assert shown(world, made["id"])["last_error"] is None
    assert "lunr_schedules_failing 0.0" in world.call("GET", "/metrics").text


def test_what_is_due_for_long_is_overdue(world: World) -> None:
    world.volume()
    make(world)

    def owed_since(age: timedelta) -> None:
        since = times.now() - age
        world.services.context.db.write(
            lambda session: session.execute(update(ScheduleRun).values(next_run=since))
        )

    owed_since(timedelta(minutes=29))
    assert "lunr_schedules_overdue 0.0" in world.call("GET", "/metrics").text
    owed_since(timedelta(minutes=31))
    assert "lunr_schedules_overdue 1.0" in world.call("GET", "/metrics").text
    run(world, times.now())
    assert "lunr_schedules_overdue 0.0" in world.call("GET", "/metrics").text


def test_a_types_schedule_is_for_volumes_without_their_own(world: World, admin: str) -> None:
    for id in ("v1", "v2", "v3"):
        world.volume(id)
    make(world, "v2", every="none")
    body = {"volume_type_name": "default", "every": "6h", "name": "all"}
    of_type = world.call("POST", "/v1.0/admin/schedules", body, admin).json
    again = world.call("POST", "/v1.0/admin/schedules", body, admin)
    assert (again.status_int, again.json["code"]) == (409, "conflict")
    unknown = world.call("POST", "/v1.0/admin/schedules", {**body, "volume_type_name": "x"}, admin)
    assert unknown.status_int == 404
    assert run(world, times.now()) == []
    day = times.now() + DAY
    assert {ran.volume_id for ran in run(world, day)} == {"v1", "v3"}
    assert world.call("GET", "/v1.0/acme/volumes/v2/schedule").json["every"] == "none"
    own = world.call("GET", "/v1.0/acme/volumes/v1/schedule").json
    assert (own["id"], own["volumes"]) == (of_type["id"], 1)
    backup = world.services.backups.get("acme", own["last_backup"])
    assert (backup["volume_id"], backup["name"]) == ("v1", "all")
    world.work()
    # A tenant can neither see nor touch it by its id.
    for method in ("GET", "POST", "DELETE"):
        answer = world.call(method, f"/v1.0/acme/schedules/{of_type['id']}")
        assert answer.status_int == 404
    # v1 gets its own, v2 loses its own, a new one comes: each is planned anew, nothing made up.
    own_of_v2 = world.call("GET", "/v1.0/acme/schedules?volume_id=v2").json["schedules"][0]["id"]
    assert world.call("DELETE", f"/v1.0/acme/schedules/{own_of_v2}").status_int == 204
    make(world, "v1", every="1w")
    world.volume("v4")
    assert run(world, day) == []
    assert {ran.volume_id for ran in run(world, day + 6 * HOUR)} == {"v2", "v3", "v4"}
    world.work()
    # Another time is good from then on, also for volumes that would have been due.
    path = f"/v1.0/admin/schedules/{of_type['id']}"
    changed = world.call("POST", path, {"every": "1d"}, admin).json
    assert (changed["volumes"], changed["next_run"]) == (0, None)
    assert run(world, day + 12 * HOUR) == []
    assert world.call("GET", path, token=admin).json["volumes"] == 3
    assert world.call("DELETE", path, token=admin).status_int == 204
    assert {ran.volume_id for ran in run(world, day + 30 * DAY)} == {"v1"}


def test_a_name_alone_keeps_what_is_due(world: World) -> None:
    world.volume()
    made = make(world)
    when = due(world, made)
    world.call("POST", f"/v1.0/acme/schedules/{made['id']}", {"name": "other", "every": "1d"})
    [ran] = run(world, when)
    assert world.services.backups.get("acme", ran.backup_id)["name"] == "other"


def test_a_schedule_goes_with_its_volume(world: World) -> None:
    world.volume()
    made = make(world)
    world.services.volumes.delete("acme", "v1")
    [skipped] = run(world, due(world, made))
    assert "DELETING" in skipped.reason
    world.work()
    Housekeeper(world.services, config.new()).round()
    assert world.call("GET", "/v1.0/acme/schedules").json["schedules"] == []
    assert run(world, times.now() + 30 * DAY) == []
    world.services.maintenance.purge(times.now() + DAY, 0)
    with world.services.context.db.read() as connection:
        for model in (Schedule, ScheduleRun, Volume):
            assert connection.execute(select(model)).all() == []


def test_the_housekeeper_runs_what_is_due(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.volume()
    make(world, every="15m")
    housekeeper = Housekeeper(world.services, config.new())
    housekeeper.round()
    assert world.call("GET", "/v1.0/acme/backups").json["backups"] == []
    later = times.now() + HOUR
    monkeypatch.setattr("lunr.api.orbit.times.now", lambda: later)
    for _ in range(3):
        housekeeper.round()
    assert len(world.call("GET", "/v1.0/acme/backups").json["backups"]) == 1
