"""Groups of a live client: all of it AVAILABLE or nothing, and safe from collections meanwhile."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from lunr.api.services.backups.groups import GroupReport, MemberReport
from lunr.api.services.backups.records import StoredBackup
from lunr.api.services.pagination import Query
from lunr.common import errors, times
from lunr.common.units import GIB
from lunr.db.models import STORED, Backup, Job, Volume
from tests.functional.api.world import World

AT = datetime(2026, 11, 23, 12)


def told(status: str = "SAVING", name: str = "g1", **fields: Any) -> GroupReport:
    saved = {"bytes_read": 7, "bytes_stored": 5, "objects_stored": 3} if status != "SAVING" else {}
    backups = (
        MemberReport(f"{name}-root", "root", "web-root", 3 * GIB + 1, **saved),
        MemberReport(f"{name}-data", "data", "web-data", GIB, **saved),
    )
    return GroupReport(
        **{"machine": "web", "created_at": AT, "status": status, "backups": backups} | fields
    )


def put(world: World, id: str = "g1", account: str = "acme", **fields: Any) -> Any:
    return world.services.groups.put(account, id, told(**{"name": id, **fields}))


def states(world: World) -> dict[str, str]:
    with world.services.context.db.read() as connection:
        return {
            row.id: row.status
            for model in STORED
            for row in connection.execute(select(model.id, model.status))
        }


def only(world: World) -> set[str]:
    """The one state that the groups and all backups are in."""
    return set(states(world).values())


def test_a_group_becomes_available_as_a_whole(world: World) -> None:
    begun = put(world)
    assert (begun["status"], begun["machine"], begun["cancel"]) == ("SAVING", "web", False)
    assert begun["condemned"] == []
    assert only(world) == {"SAVING"}
    assert world.work() == [], "no node does it"
    again = put(world, progress=40)
    assert (again["job_id"], again["progress"]) == (begun["job_id"], 40)
    assert world.services.jobs.get("acme", begun["job_id"])["progress"] == 40

    done = put(world, status="AVAILABLE", metadata={"frozen": "2"})
    assert (done["status"], done["progress"], done["metadata"]) == (
        "AVAILABLE",
        100,
        {"frozen": "2"},
    )
    assert only(world) == {"AVAILABLE"}
    assert put(world, status="AVAILABLE") == {**done, "updated_at": done["updated_at"]}
    assert put(world)["status"] == "AVAILABLE", "a late sign of life changes nothing"
    assert world.services.jobs.get("acme", begun["job_id"])["status"] == "DONE"
    root = world.services.backups.get("acme", "g1-root")
    assert (root["size"], root["bytes_stored"], root["group"]) == (4, 5, "g1")
    assert world.services.groups.get("acme", "g1")["backups"][1] == root
    listed = world.services.backups.list(Query("acme"))["backups"]
    assert [one["id"] for one in listed] == ["g1-root", "g1-data"], "the group is none of them"


def test_a_group_that_was_never_announced(world: World) -> None:
    assert put(world, status="AVAILABLE")["status"] == "AVAILABLE"
    assert only(world) == {"AVAILABLE"}


def test_over_http(world: World) -> None:
    backup = {"id": "g-root", "disk": "root", "volume_id": "web-root", "size_bytes": 5}
    body = {
        "machine": "web",
        "created_at": "2026-11-23T13:00:00+01:00",
        "status": "SAVING",
        "backups": [backup],
    }
    path = "/v1.0/acme/groups/g"
    assert world.call("PUT", path, body).status_int == 202
    done = world.call("PUT", path, {**body, "status": "AVAILABLE"})
    assert (done.status_int, done.json["created_at"]) == (200, "2026-11-23T12:00:00.000000Z")
    assert world.call("GET", path).json["backups"][0]["id"] == "g-root"
    page = world.call("GET", "/v1.0/acme/groups?machine=web&status=AVAILABLE").json
    assert [group["id"] for group in page["groups"]] == ["g"]
    assert world.call("GET", "/v1.0/acme/groups?machine=other").json["groups"] == []
    huge = {**backup, "size_bytes": 1 << 62}
    for wrong in (
        {"backups": []},
        {"backups": [backup, backup]},
        {"backups": [huge]},
        {"created_at": "noon"},
        {"created_at": "2026-11-23T12:00:00"},
        {"status": "DELETED"},
    ):
        assert world.call("PUT", "/v1.0/acme/groups/h", {**body, **wrong}).status_int == 400
    assert world.call("PUT", path, {**body, "machine": "x"}).json["code"] == "id_in_use"
    deleted = world.call("DELETE", path)
    assert (deleted.status_int, deleted.json["status"]) == (202, "DELETING")


def test_a_disk_is_an_external_volume(world: World) -> None:
    put(world, status="AVAILABLE")
    volume = world.services.volumes.get("acme", "web-root")
    assert (volume["status"], volume["node_id"], volume["size"]) == ("EXTERNAL", None, 4)
    assert (volume["name"], volume["usable"]) == ("web-root", False)
    for method, path, body in (
        ("PUT", "web-root/export", {"ip": "10.0.0.1"}),
        ("POST", "web-root/extend", {"size": 9}),
        ("POST", "web-root/backups", {}),
        ("POST", "web-root/snapshots", {}),
        ("POST", "", {"source_volume": "web-root"}),
    ):
        refused = world.call(method, f"/v1.0/acme/volumes/{path}".rstrip("/"), body)
        assert refused.status_int == 409, (path, refused.text)
    wish = {"volume_id": "web-root", "every": "1d"}
    assert world.call("POST", "/v1.0/acme/schedules", wish).status_int == 409
    assert world.services.nodes.get("n1")["allocated_bytes"] == 0
    assert world.services.volumes.delete("acme", "web-root")["status"] == "DELETED"
    with pytest.raises(errors.NotFound):
        world.services.volumes.get("acme", "web-root")
    assert world.services.backups.get("acme", "g1-root")["status"] == "AVAILABLE"
    put(world, "g2")
    assert world.services.volumes.get("acme", "web-root")["status"] == "EXTERNAL"
    with pytest.raises(errors.InUse, match="is running"):
        world.services.volumes.delete("acme", "web-root")


def test_a_disk_that_is_a_volume_of_lunrs(world: World) -> None:
    world.volume("v1")
    backups = (MemberReport("g1-root", "root", "v1", GIB),)
    put(world, backups=backups)
    with pytest.raises(errors.InUse, match="is running"):
        world.services.volumes.delete("acme", "v1")
    put(world, backups=backups, status="AVAILABLE")
    assert world.services.volumes.get("acme", "v1")["status"] == "ACTIVE"
    world.services.backups.create("acme", "v1", {}, "b1")
    job = world.claim()
    assert job["payload"]["parent_id"] == "g1-root", "the next backup is built upon it"


def test_restored_by_the_ordinary_way(world: World) -> None:
    with pytest.raises(errors.NotFound):
        world.services.volumes.create("acme", {"backup": "g1-root"})
    put(world)
    with pytest.raises(errors.WrongState):
        world.services.volumes.create("acme", {"backup": "g1-root"})
    put(world, status="AVAILABLE")
    with pytest.raises(errors.NotFound):
        world.services.volumes.create("acme", {"backup": "g1"})
    restored = world.restored("r1", "g1-root")
    assert restored["size"] == 4
    with pytest.raises(errors.InUse, match="restored from it"):
        world.services.groups.delete("acme", "g1")
    assert only(world) == {"AVAILABLE"}, "all of it is deleted, or nothing"
    world.fill_up()
    world.services.groups.delete("acme", "g1")


def test_a_group_is_deleted_as_a_whole(world: World) -> None:
    put(world, status="AVAILABLE")
    with pytest.raises(errors.InUse, match="belongs to the group g1"):
        world.services.backups.delete("acme", "g1-root")
    world.services.backups.update("acme", "g1-data", {"protected": True})
    with pytest.raises(errors.Conflict, match="protected"):
        world.services.groups.delete("acme", "g1")
    assert only(world) == {"AVAILABLE"}
    world.services.backups.update("acme", "g1-data", {"protected": False})
    assert world.services.groups.delete("acme", "g1")["status"] == "DELETING"
    assert world.services.groups.delete("acme", "g1")["status"] == "DELETING"
    members = [world.claim(), world.claim()]
    assert {job["payload"]["backup_id"] for job in members} == {"g1-root", "g1-data"}
    assert world.claim() is None
    for job in members:
        world.done(job)
    assert world.services.groups.get("acme", "g1")["status"] == "DELETING"
    assert world.claim()["payload"]["backup_id"] == "g1", "the group itself, last"
    world.services.leases.expire(times.now() + timedelta(minutes=2))
    assert world.work() == ["backup.delete"]
    assert only(world) == {"DELETED"}
    with pytest.raises(errors.NotFound):
        world.services.groups.delete("acme", "g1")
    with pytest.raises(errors.WrongState):
        put(world, status="AVAILABLE")


def test_a_backup_whose_group_is_gone_can_be_deleted(world: World) -> None:
    put(world, status="AVAILABLE")
    world.services.groups.delete("acme", "g1")
    while (job := world.claim()) is not None:
        if job["payload"]["backup_id"] == "g1-root":
            world.fail(job)
        else:
            world.done(job)
    assert world.services.groups.get("acme", "g1")["status"] == "DELETED"
    world.services.backups.delete("acme", "g1-root")
    world.work()
    assert only(world) == {"DELETED"}


def test_a_client_that_gives_no_sign_of_life(world: World) -> None:
    begun = put(world)
    now = times.now()
    assert world.services.leases.expire(now + timedelta(minutes=59)) == 0
    assert world.services.leases.expire(now + timedelta(minutes=61)) == 1
    assert only(world) == {"ERROR"}
    group = world.services.groups.get("acme", "g1")
    assert "3600 seconds" in group["reason"]
    assert world.services.jobs.get("acme", begun["job_id"])["status"] == "FAILED"
    assert world.claim() is None, "nobody tries it again"
    assert put(world)["status"] == "ERROR", "it is not begun anew"
    # It was complete after all.
    assert put(world, status="AVAILABLE")["status"] == "AVAILABLE"
    assert only(world) == {"AVAILABLE"}


def test_a_running_one_is_cancelled_or_deleted(world: World) -> None:
    begun = put(world)
    assert world.services.jobs.cancel("acme", begun["job_id"]) is False
    assert put(world)["cancel"] is True
    world.services.groups.delete("acme", "g1")
    assert only(world) == {"DELETING"}
    assert world.services.jobs.get("acme", begun["job_id"])["status"] == "CANCELLED"
    with pytest.raises(errors.WrongState):
        put(world, status="AVAILABLE")
    assert world.work() == ["backup.delete"] * 3


def test_a_deletion_that_fails_is_done_again(world: World) -> None:
    put(world, status="AVAILABLE")
    world.services.groups.delete("acme", "g1")
    for _ in range(2):
        world.done(world.claim())
    world.fail(world.claim())
    assert states(world) == {"g1": "ERROR", "g1-data": "DELETED", "g1-root": "DELETED"}
    assert world.services.groups.delete("acme", "g1")["status"] == "DELETING"
    assert world.work() == ["backup.delete"]
    assert only(world) == {"DELETED"}


def test_a_deleted_group_is_forgotten_with_its_backups(world: World) -> None:
    put(world, status="AVAILABLE")
    world.services.groups.delete("acme", "g1")
    world.work()
    far = times.now() + timedelta(days=90)
    forget = partial(world.services.maintenance.purge, far, keep_records=0)
    forget()
    assert only(world) == {"DELETED"}, "their objects were not collected"
    world.done(collect(world))
    assert world.services.collect.due(far + timedelta(days=1), 0) == ["acme"]
    forget()
    assert states(world) == {}
    assert world.services.collect.due(far + timedelta(days=1), 0) == []


def test_a_group_that_lost_its_job_is_given_up(world: World) -> None:
    begun = put(world)

    def lose(session: Session) -> None:
        session.execute(delete(Job).where(Job.id == begun["job_id"]))

    world.services.context.db.write(lose)
    assert sorted(world.services.maintenance.repair()) == ["g1", "g1-data", "g1-root"]
    assert only(world) == {"ERROR"}


def test_a_group_whose_root_is_lost_says_so(world: World) -> None:
    put(world, status="AVAILABLE")
    world.services.verification.request("acme", 1)
    job = world.claim(kinds=["repository.verify"])
    assert job["payload"]["backup_ids"] == ["g1", "g1-data", "g1-root"]
    world.done(job, damaged=[{"reason": "It is not there.", "backup_ids": ["g1"]}])
    group = world.services.groups.get("acme", "g1")
    assert (group["status"], group["reason"]) == ("AVAILABLE", "It is not there.")
    assert {one["damaged"] for one in group["backups"]} == {None}


def test_upkeep_leaves_it_alone(world: World) -> None:
    put(world)
    assert world.services.maintenance.repair() == []
    put(world, status="AVAILABLE")
    assert world.services.maintenance.release_unneeded(times.now() + timedelta(days=1)) == []
    assert only(world) == {"AVAILABLE"}


# --- collections -------------------------------------------------------------------------


def collect(world: World) -> Any:
    world.services.collect.request("acme")
    job = world.claim(kinds=["repository.collect"])
    assert job is not None
    return job


def test_what_is_announced_is_kept(world: World) -> None:
    put(world)
    payload = collect(world)["payload"]
    assert payload["keep"] == ["g1", "g1-data", "g1-root"]


def test_a_sweep_waits_for_who_began_before_its_collection(world: World) -> None:
    put(world, "before")
    job = collect(world)
    world.done(job, collection="c1")
    assert put(world, "after")["condemned"] == ["c1"], "who comes later is told"
    assert world.claim(kinds=["repository.sweep"]) is None
    put(world, "before", status="AVAILABLE")
    sweep = world.claim(kinds=["repository.sweep"])
    assert sweep["payload"]["collection"] == "c1"
    assert sweep["payload"]["required"] == ["before", "before-data", "before-root"]
    assert sweep["payload"]["keep"] == ["after", "after-data", "after-root"]


def test_a_sweep_waits_no_longer_for_a_dead_client(world: World) -> None:
    put(world)
    world.done(collect(world), collection="c1")
    assert world.claim(kinds=["repository.sweep"]) is None
    world.services.leases.expire(times.now() + timedelta(minutes=61))
    sweep = world.claim(kinds=["repository.sweep"])
    assert sweep["payload"]["keep"] == ["g1", "g1-data", "g1-root"], "but keeps what it wrote"


# --- accounts ----------------------------------------------------------------------------


def test_others_neither_see_nor_touch_it(world: World) -> None:
    world.services.accounts.create("evil")
    put(world)
    for act in (world.services.groups.get, world.services.groups.delete):
        with pytest.raises(errors.NotFound):
            act("evil", "g1")
    for status in ("SAVING", "AVAILABLE"):
        with pytest.raises(errors.IdInUse, match="choose another id"):
            put(world, account="evil", status=status)
    with pytest.raises(errors.IdInUse, match="backup g1-root"):
        backups = (MemberReport("g1-root", "root", "mine", 1),)
        put(world, "other", account="evil", backups=backups)
    with pytest.raises(errors.IdInUse, match="volume web-root"):
        backups = (MemberReport("mine", "root", "web-root", 1),)
        put(world, "other", account="evil", backups=backups)
    assert world.services.groups.list(Query("evil"))["groups"] == []
    with world.services.context.db.read() as connection:
        assert connection.scalar(select(Backup.id).where(Backup.account_id == "evil")) is None
        assert connection.scalar(select(Volume.id).where(Volume.account_id == "evil")) is None


def test_quotas(world: World) -> None:
    world.services.accounts.update("acme", {"backups": 3, "volumes": 2, "gigabytes": 0})
    put(world, status="AVAILABLE")
    with pytest.raises(errors.QuotaExceeded, match="backups"):
        put(world, "g2")
    assert {id for id in states(world) if id.startswith("g2")} == set()
    world.services.accounts.update("acme", {"backups": None})
    with pytest.raises(errors.QuotaExceeded, match="volumes"):
        put(world, "g2", backups=(MemberReport("x", "x", "new", 1),))


def test_an_ordinary_backup_is_no_group(world: World) -> None:
    world.volume("v1")
    world.backup("b1")
    with pytest.raises(errors.NotFound):
        world.services.groups.get("acme", "b1")
    with pytest.raises(errors.NotFound):
        world.services.groups.delete("acme", "b1")
    with pytest.raises(errors.IdInUse):
        put(world, "b1")
    put(world)
    with pytest.raises(errors.IdInUse):
        world.services.backups.create("acme", "v1", {}, "g1")
    with pytest.raises(errors.IdInUse):
        put(world, "g2", backups=(MemberReport("g1", "root", "v1", GIB),))


def test_records_made_again_from_the_store(world: World) -> None:
    def record(id: str) -> bool:
        volume = "web" if id == "g1" else f"web-{id[3:]}"
        stored = StoredBackup(id, "acme", volume, None, 1, AT, 0, 0, 0, group_id="g1")
        return world.services.records.put(stored)

    assert record("g1-root") and record("g1") and record("g1-data")
    assert not record("g1-root"), "that it is of the group is recorded only now"
    assert not record("g1")
    group = world.services.groups.get("acme", "g1")
    assert (group["status"], group["machine"]) == ("AVAILABLE", "web")
    assert {one["id"] for one in group["backups"]} == {"g1-root", "g1-data"}
    assert put(world, status="AVAILABLE")["status"] == "AVAILABLE"
