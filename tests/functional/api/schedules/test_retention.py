"""Protected backups, rules, and what a prune does."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from lunr.api.orbit import Housekeeper
from lunr.common import config, errors, times
from lunr.db.models import Backup, Job, Snapshot, Volume
from tests.functional.api.world import World

NOON = datetime(2026, 11, 23, 12)
DAY = timedelta(days=1)


def put(world: World, id: str, age: timedelta, volume: str = "v1", **values: Any) -> None:
    """A backup that a schedule made, `age` before NOON."""
    made = {"account_id": "acme", "size": 1, "status": "AVAILABLE", "schedule_id": "s1", **values}
    backup = Backup(id=id, volume_id=volume, created_at=NOON - age, **made)
    world.services.context.db.write(lambda session: session.add(backup))


def verdicts(told: Any) -> dict[str, list[str]]:
    return {backup["id"]: backup["reasons"] for backup in told["backups"] if backup["keep"]}


def statuses(world: World) -> dict[str, str]:
    with world.services.context.db.read() as connection:
        rows = connection.execute(select(Backup.id, Backup.status))
        return {row.id: row.status for row in rows}


@pytest.fixture
def week(world: World) -> World:
    """v1 with a backup a day: b0 is the newest, b6 the oldest."""
    world.volume()
    for number in range(7):
        put(world, f"b{number}", number * DAY)
    return world


def test_a_protected_backup_can_not_be_deleted(world: World) -> None:
    world.volume()
    world.backup(protected=True)
    answer = world.call("DELETE", "/v1.0/acme/backups/b1")
    assert (answer.status_int, answer.json["code"]) == (409, "backup_protected")
    answer = world.call("POST", "/v1.0/acme/backups/b1", {"protected": False, "name": "old"})
    assert (answer.json["protected"], answer.json["name"]) == (False, "old")
    assert world.call("DELETE", "/v1.0/acme/backups/b1").status_int == 202
    answer = world.call("POST", "/v1.0/acme/backups/b1", {"protected": True})
    assert (answer.status_int, answer.json["code"]) == (409, "in_use")
    world.work()
    assert world.call("POST", "/v1.0/acme/backups/b1", {"protected": True}).status_int == 404


def test_rules_of_the_volume_come_before_those_of_its_type(week: World) -> None:
    retention = week.services.retention
    told = retention.get("acme", "v1")
    assert (told["rules"], told["rules_of"]) == ({}, None)
    assert len(verdicts(told)) == 7
    week.services.volume_types.update("default", retention={"keep_daily": 2})
    told = retention.get("acme", "v1")
    assert (told["rules"], told["rules_of"]) == ({"keep_daily": 2}, "volume_type")
    assert verdicts(told) == {"b0": ["daily 1"], "b1": ["daily 2"]}
    told = retention.set("acme", "v1", {"keep_last": 3, "keep_weekly": 0})
    assert (told["rules"], told["rules_of"]) == ({"keep_last": 3}, "volume")
    told = retention.set("acme", "v1", {})
    assert (told["rules"], told["rules_of"], len(verdicts(told))) == ({}, "volume", 7)
    assert retention.set("acme", "v1", None)["rules_of"] == "volume_type"


def test_a_dry_run_changes_nothing_and_a_prune_does_what_it_said(week: World) -> None:
    path = "/v1.0/acme/volumes/v1/prune"
    before = statuses(week)
    said = week.call("POST", path, {"keep_last": 2, "keep_weekly": 2, "dry_run": True})
    assert (said.status_int, statuses(week)) == (200, before)
    done = week.call("POST", path, {"keep_last": 2, "keep_weekly": 2})
    assert (done.status_int, done.json["rules_of"]) == (202, "request")
    assert verdicts(done.json) == verdicts(said.json)
    doomed = {b["id"] for b in done.json["backups"] if not b["keep"]}
    assert {id for id, status in statuses(week).items() if status == "DELETING"} == doomed
    again = week.call("POST", path, {"keep_last": 2, "keep_weekly": 2})
    assert verdicts(again.json) == verdicts(said.json)
    assert {b["id"] for b in again.json["backups"]} == set(verdicts(said.json))
    assert week.work() == ["backup.delete"] * len(doomed)


def test_what_is_not_the_rules_business_stays(week: World) -> None:
    week.volume("v2")
    put(week, "other-volume", 8 * DAY, "v2")
    put(week, "by-hand", 8 * DAY, schedule_id=None)
    put(week, "protected", 8 * DAY, protected=True)
    put(week, "damaged", -DAY, damaged="an object is lost")
    put(week, "internal", 8 * DAY, internal=True, schedule_id=None)
    put(week, "running", -DAY, status="SAVING")
    week.services.snapshots.create("acme", "v1")
    told = week.services.retention.prune("acme", "v1", {"keep_last": 1})
    assert verdicts(told) == {
        "damaged": ["damaged"],
        "b0": ["last 1"],
        "by-hand": ["made by hand"],
        "protected": ["protected"],
    }
    doomed = {id for id, status in statuses(week).items() if status == "DELETING"}
    assert doomed == {f"b{number}" for number in range(1, 7)}
    told = week.services.retention.prune("acme", "v1", {"keep_last": 1}, by_hand=True)
    assert set(verdicts(told)) == {"damaged", "b0", "protected"}
    with week.services.context.db.read() as connection:
        assert list(connection.scalars(select(Snapshot.status))) == ["NEW"]
        assert set(connection.scalars(select(Volume.status))) == {"ACTIVE"}


def test_a_failed_backup_goes_a_week_after_it_failed(week: World) -> None:
    put(week, "old", 10 * DAY, status="ERROR", updated_at=times.now() - 8 * DAY)
    put(week, "fresh", 10 * DAY, status="ERROR", updated_at=times.now() - 6 * DAY)
    mine = {"status": "ERROR", "schedule_id": None}
    put(week, "mine", 10 * DAY, updated_at=times.now() - 8 * DAY, **mine)
    prune = week.services.retention.prune
    assert set(verdicts(prune("acme", "v1"))) == set(statuses(week))  # no rules
    told = prune("acme", "v1", {"keep_last": 7})
    assert {"fresh", "mine"} < set(verdicts(told)) and "old" not in verdicts(told)
    assert statuses(week)["old"] == "DELETING"


def test_what_is_in_use_is_pruned_later(week: World) -> None:
    services = week.services
    services.volumes.create("acme", {"backup": "b6"}, "copy")
    services.backups.verify("acme", "b5")
    services.backups.create("acme", "v1", {}, "child")
    save = week.claim(kinds=["backup.save"])
    parent = save["payload"]["parent_id"]
    assert parent == "b0"
    put(week, "newer", -DAY)
    told = services.retention.prune("acme", "v1", {"keep_last": 1})
    assert verdicts(told)["newer"] == ["last 1"]
    left = {b["id"]: b["reasons"] for b in told["backups"] if b["status"] == "AVAILABLE"}
    assert set(left) == {"newer", "b0", "b5", "b6"}
    assert "parent" in left["b0"][0] and "restored" in left["b6"][0]
    week.done(save)
    while week.work():
        pass
    services.retention.prune("acme", "v1", {"keep_last": 1})
    found = statuses(week)
    assert [found[id] for id in ("b0", "b5", "b6")] == ["DELETING"] * 3


def test_backups_of_a_deleted_volume_stay_until_somebody_prunes_them(week: World) -> None:
    week.services.volume_types.update("default", retention={"keep_last": 1})
    week.services.volumes.delete("acme", "v1")
    for _ in range(2):  # while it is deleted, and then
        assert week.services.retention.due(None) == []
        told = week.services.retention.prune("acme", "v1")
        assert (told["rules_of"], len(verdicts(told))) == (None, 7)
        week.work()
    week.services.context.db.write(_forget_volume)
    assert len(verdicts(week.services.retention.get("acme", "v1"))) == 7
    assert set(verdicts(week.services.retention.prune("acme", "v1", {"keep_last": 1}))) == {"b0"}
    week.work()
    with pytest.raises(errors.NotFound):
        week.services.retention.set("acme", "v1", {})


def _forget_volume(session: Session) -> None:
    session.delete(session.get_one(Volume, "v1"))


def test_a_volume_with_nothing_left_is_not_there(world: World) -> None:
    for method, path in (("GET", "retention"), ("PUT", "retention"), ("POST", "prune")):
        answer = world.call(method, f"/v1.0/acme/volumes/v9/{path}")
        assert (answer.status_int, answer.json["code"]) == (404, "not_found")


@pytest.mark.parametrize("count", [-1, 10001, "many", 1.5, True, []])
def test_a_rule_is_a_number(week: World, count: Any) -> None:
    for method, path, body in (
        ("PUT", "retention", {"keep_last": count}),
        ("POST", "prune", {"keep_last": count}),
    ):
        answer = week.call(method, f"/v1.0/acme/volumes/v1/{path}", body)
        assert (answer.status_int, answer.json["code"]) == (400, "invalid_field")


def test_the_housekeeper_prunes_after_a_backup_and_all_once_a_day(
    week: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = week.services
    week.volume("quiet")
    put(week, "q1", DAY, "quiet")
    put(week, "q0", timedelta(0), "quiet")
    services.retention.set("acme", "v1", {"keep_last": 2})
    housekeeper = Housekeeper(services, config.new())
    housekeeper.round()
    assert services.retention.get("acme", "v1")["backups"][-1]["id"] == "b1"
    # A quiet volume's rules are looked at a day later; a new backup's at once.
    services.retention.set("acme", "quiet", {"keep_last": 1})
    old = times.now() - timedelta(hours=1)
    services.context.db.write(
        lambda session: session.execute(update(Backup).values(updated_at=old))
    )
    put(week, "new", -DAY)
    housekeeper.round()
    found = statuses(week)
    assert (found["b1"], found["q1"]) == ("DELETING", "AVAILABLE")
    later = time.monotonic() + 25 * 3600
    monkeypatch.setattr("lunr.api.orbit.time.monotonic", lambda: later)
    housekeeper.round()
    assert statuses(week)["q1"] == "DELETING"


def test_a_prune_that_dies_has_done_all_or_nothing(
    week: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def die(session: Session) -> None:
        begun.append(session)
        if len(begun) == 4:
            raise KeyboardInterrupt

    flush = Session.flush
    monkeypatch.setattr(Session, "flush", lambda self, *a: (die(self), flush(self, *a))[1])
    with pytest.raises(KeyboardInterrupt):
        week.services.retention.prune("acme", "v1", {"keep_last": 1})
    monkeypatch.undo()
    assert set(statuses(week).values()) == {"AVAILABLE"}
    with week.services.context.db.read() as connection:
        assert connection.execute(select(Job.id).where(Job.kind == "backup.delete")).all() == []
    week.services.retention.prune("acme", "v1", {"keep_last": 1})
    assert sorted(statuses(week).values()) == ["AVAILABLE"] + ["DELETING"] * 6
