"""Jobs: leases, retries, cancels, lanes, and where the records are afterwards."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.jobs.claims import POLL
from lunr.api.jobs.job_type import JobType, Payload
from lunr.api.services import JOB_TYPES
from lunr.api.services.backups.records import StoredBackup
from lunr.common import errors, times
from lunr.db.models import Job
from tests.functional.api.world import ALL, World
from tests.support.waiting import PATIENCE


def _later(seconds: float) -> Any:
    return times.now() + timedelta(seconds=seconds)


def test_a_claim_whose_answer_was_lost_is_given_again(world: World) -> None:
    world.services.volumes.create("acme", {"size": 1}, "v1")
    claim = world.services.claims.claim
    first = claim("n1", ALL, lease="mine")
    assert first is not None
    assert first["lease"] == "mine"
    assert claim("n1", ALL, lease="mine") == first
    assert claim("n1", ALL, lease="another") is None
    world.done(first)
    assert claim("n1", ALL, lease="mine") is None, "it is over"


def test_a_save_whose_claim_is_answered_again_has_the_same_parent(world: World) -> None:
    world.volume()
    world.backup("b1")
    world.services.backups.create("acme", "v1", {}, "b2")
    first = world.services.claims.claim("n1", ALL, lease="mine")
    assert first["payload"]["parent_id"] == "b1"
    world.services.records.put(StoredBackup("b3", "acme", "v1", None, 1, times.now(), 0, 0, 0))
    assert world.services.claims.claim("n1", ALL, lease="mine") == first
    world.fail(first, retry=True)
    assert world.claim()["payload"]["parent_id"] == "b3"


def test_payloads_only_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every type that a node is given."""
    asked: set[str] = set()
    making: list[str] = []
    written: list[str] = []
    engine = world.services.context.db.engine

    @event.listens_for(engine, "before_cursor_execute")
    def look(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if making and not statement.startswith("SELECT"):
            written.append(f"{making}: {statement}")

    def watch(job_type: JobType) -> None:
        make = job_type.payload

        def payload(session: Session, context: Context, job: Job) -> Payload:
            session.flush()
            making.append(job.kind)
            with session.no_autoflush:
                made = make(session, context, job)
            if session.new or session.dirty or session.deleted:
                written.append(job.kind)
            asked.add(making.pop())
            return made

        monkeypatch.setattr(job_type, "payload", payload)

    for job_type in JOB_TYPES:
        watch(job_type)
    services = world.services
    world.volume("v1")
    world.volume("v2", source_volume="v1")
    snapshot = services.snapshots.create("acme", "v1")["id"]
    services.volumes.extend("acme", "v2", 2)
    world.work()
    services.exports.create("acme", "v2", "iqn.2026-11.io.lunr:i", None)
    world.work()
    services.exports.delete("acme", "v2")
    services.snapshots.delete("acme", snapshot)
    world.backup("b1", "v1")
    services.backups.verify("acme", "b1")
    world.restored("r1", "b1")
    services.collect.request("acme")
    world.done(world.claim(kinds=["repository.collect"]), collection="c1")
    services.verification.request("acme", 7)
    world.work()
    services.volumes.delete("acme", "r1")
    services.backups.delete("acme", "b1")
    world.work()
    assert asked == {one.name for one in JOB_TYPES if not one.external_lease_seconds}
    assert written == []


def test_a_lease_that_ran_out_is_void_and_the_job_is_given_out_again(world: World) -> None:
    world.services.volumes.create("acme", {"size": 1}, "v1")
    first = world.claim()
    assert world.services.leases.expire(times.now()) == 0
    assert world.services.leases.expire(_later(61)) == 1
    assert world.services.volumes.get("acme", "v1")["status"] == "BUILDING"
    second = world.claim()
    assert (second["id"], second["attempt"]) == (first["id"], 2)
    for status in ("RUNNING", "DONE", "FAILED", "CANCELLED"):
        with pytest.raises(errors.StaleLease):
            world.services.claims.report("n1", first["id"], first["lease"], status)
    world.done(second)
    assert world.services.volumes.get("acme", "v1")["status"] == "ACTIVE"


def test_a_sign_of_life_renews_the_lease(world: World) -> None:
    world.services.volumes.create("acme", {"size": 1}, "v1")
    job = world.claim()
    time.sleep(0.05)
    claimed = times.now()
    world.services.claims.report("n1", job["id"], job["lease"], "RUNNING", progress=30)
    assert world.services.leases.expire(claimed + timedelta(seconds=60)) == 0
    assert world.services.volumes.get("acme", "v1")["progress"] == 30


def test_a_node_that_dies_over_a_job_again_and_again_fails_it(world: World) -> None:
    world.services.volumes.create("acme", {"size": 1}, "v1")
    for attempt in range(1, 6):
        job = world.claim()
        assert job["attempt"] == attempt
        world.services.leases.expire(_later(61))
    assert world.claim() is None
    volume = world.services.volumes.get("acme", "v1")
    assert volume["status"] == "ERROR" and "no sign of work" in volume["reason"]
    assert volume["job_id"] is None


@pytest.mark.parametrize("world_settings", [{"retry_delay": 5}])
def test_retries_wait_twice_as_long_each_time(tmp_path: Any, world_settings: Any) -> None:
    world = World(tmp_path, **world_settings)
    world.services.volumes.create("acme", {"size": 1}, "v1")
    job = world.claim()
    world.fail(job, retry=True, reason="Swift is down.")
    assert world.claim() is None, "it must wait"
    told = world.services.jobs.get("acme", job["id"])
    assert (told["status"], told["reason"]) == ("QUEUED", "Swift is down.")
    with world.services.context.db.read() as connection:
        not_before = connection.exec_driver_sql("SELECT not_before FROM jobs").scalar()
    assert 3 < (times.datetime.fromisoformat(str(not_before)) - times.now()).total_seconds() <= 5
    world.close()


@pytest.mark.parametrize("status", ["FAILED", "CANCELLED", "DONE"])
@pytest.mark.parametrize(
    "error",
    [None, {}, {"code": "x"}, {"reason": "y"}, {"retry": False}, {"code": "x", "retry": True}],
)
def test_a_node_may_say_little_of_an_end(
    world: World, status: str, error: dict[str, Any] | None
) -> None:
    world.services.volumes.create("acme", {"size": 1}, "v1")
    job = world.claim()
    world.services.claims.report("n1", job["id"], job["lease"], status, error=error)
    told = world.services.jobs.get("acme", job["id"])
    again = status == "FAILED" and error is not None and error.get("retry")
    assert told["status"] == ("QUEUED" if again else status)
    assert (told["reason"] is None) == (status == "DONE")


def test_a_failure_that_no_retry_mends_fails_at_once(world: World) -> None:
    world.services.volumes.create("acme", {"size": 1}, "v1")
    world.fail(world.claim(), reason="The pool is broken.")
    volume = world.services.volumes.get("acme", "v1")
    assert (volume["status"], volume["reason"]) == ("ERROR", "The pool is broken.")
    world.services.volumes.delete("acme", "v1")
    assert world.work() == ["volume.delete"]
    assert world.services.nodes.get("n1")["allocated_bytes"] == 0


def test_the_end_may_be_told_twice_but_not_changed(world: World) -> None:
    world.services.volumes.create("acme", {"size": 1}, "v1")
    job = world.claim()
    world.done(job)
    world.done(job)
    with pytest.raises(errors.StaleLease):
        world.fail(job)


def test_another_node_can_not_report(world: World) -> None:
    world.add_node("n2")
    world.services.volumes.create("acme", {"size": 1, "force_node": "n1"}, "v1")
    job = world.claim()
    with pytest.raises(errors.StaleLease):
        world.done(job, node="n2")


def test_a_job_that_has_not_begun_is_cancelled_at_once(world: World) -> None:
    volume, _ = world.services.volumes.create("acme", {"size": 1}, "v1")
    assert world.services.jobs.cancel("acme", volume["job_id"])
    assert world.claim() is None
    told = world.services.volumes.get("acme", "v1")
    assert (told["status"], told["reason"]) == ("ERROR", "Cancelled on request.")
    with pytest.raises(errors.WrongState):
        world.services.jobs.cancel("acme", volume["job_id"])


def test_a_running_job_hears_that_it_is_to_stop(world: World) -> None:
    world.volume()
    backup, _ = world.services.backups.create("acme", "v1", {}, "b1")
    job = world.claim()
    assert not world.services.jobs.cancel("acme", backup["job_id"])
    answer = world.services.claims.report("n1", job["id"], job["lease"], "RUNNING")
    assert answer["cancel"] is True
    world.services.claims.report("n1", job["id"], job["lease"], "CANCELLED")
    assert world.services.backups.get("acme", "b1")["status"] == "ERROR"
    world.services.backups.delete("acme", "b1")
    assert world.work() == ["backup.delete"]


@pytest.mark.parametrize("way", ["retry", "expire", "reconcile"])
def test_a_cancelled_job_is_not_tried_again(world: World, way: str) -> None:
    world.volume()
    backup, _ = world.services.backups.create("acme", "v1", {}, "b1")
    job = world.claim()
    world.services.jobs.cancel("acme", backup["job_id"])
    if way == "retry":
        world.fail(job, retry=True)
    elif way == "expire":
        world.services.leases.expire(_later(61))
    else:
        world.services.nodes.reconcile("n1", ["v1"], [])
    assert world.services.jobs.get("acme", job["id"])["status"] == "CANCELLED"
    assert world.services.backups.get("acme", "b1")["status"] == "ERROR"


def test_a_backup_does_not_keep_from_attaching(world: World) -> None:
    world.volume()
    world.services.backups.create("acme", "v1", {}, "b1")
    world.services.snapshots.create("acme", "v1")
    save = world.claim()
    world.services.exports.create("acme", "v1", "iqn.2026-11.a:b", None)
    export = world.claim()
    assert (save["kind"], export["kind"]) == ("backup.save", "export.create")
    assert world.claim() is None, "the snapshot waits for the backup"
    world.done(save)
    assert world.claim()["kind"] == "snapshot.create"


def test_a_detach_that_was_refused_leaves_the_export_attached(world: World) -> None:
    world.volume()
    world.services.exports.create("acme", "v1", "iqn.2026-11.a:b", None)
    world.work()
    world.services.exports.delete("acme", "v1")
    world.fail(world.claim(), reason="An initiator is logged in.")
    export = world.services.exports.get("acme", "v1")
    assert (export["status"], export["reason"]) == ("ATTACHED", "An initiator is logged in.")
    assert export["auth_password"]
    world.services.exports.delete("acme", "v1", force=True)
    job = world.claim()
    assert job["payload"]["force"] is True
    world.done(job)
    with pytest.raises(errors.NotFound):
        world.services.exports.get("acme", "v1")


def test_an_extend_that_fails_gives_the_room_back(world: World) -> None:
    world.volume()
    world.services.volumes.extend("acme", "v1", 50)
    assert world.services.nodes.get("n1")["allocated_bytes"] == 50 << 30
    assert world.services.volumes.get("acme", "v1")["size"] == 1
    world.fail(world.claim(), reason="No space.")
    volume = world.services.volumes.get("acme", "v1")
    assert (volume["size"], volume["status"], volume["reason"]) == (1, "ACTIVE", "No space.")
    assert world.services.nodes.get("n1")["allocated_bytes"] == 1 << 30


def test_an_exported_volume_is_extended_unless_its_export_changes(world: World) -> None:
    world.volume()
    snapshot = world.services.snapshots.create("acme", "v1")["id"]
    world.services.exports.create("acme", "v1", "iqn.2026-11.a:b", None)
    with pytest.raises(errors.InUse, match="attached or detached"):
        world.services.volumes.extend("acme", "v1", 2)
    world.work()
    world.services.volumes.extend("acme", "v1", 2)
    with pytest.raises(errors.InUse, match="the job"):
        world.services.volumes.extend("acme", "v1", 3)
    extend = world.claim()
    assert (extend["kind"], extend["payload"]) == ("volume.extend", {"size_bytes": 2 << 30})
    world.done(extend)
    volume = world.services.volumes.get("acme", "v1")
    assert (volume["size"], volume["export_status"]) == (2, "ATTACHED")
    assert world.services.snapshots.get("acme", snapshot)["size"] == 1
    world.services.exports.delete("acme", "v1")
    with pytest.raises(errors.InUse, match="attached or detached"):
        world.services.volumes.extend("acme", "v1", 3)


def test_a_long_delete_shows_how_far_it_is_and_can_be_asked_for_again(world: World) -> None:
    world.volume()
    told = world.services.volumes.delete("acme", "v1")
    assert (told["status"], told["progress"]) == ("DELETING", 0)
    for attempt in ("fails", "is cancelled", "succeeds"):
        job = world.claim()
        report = world.services.claims.report
        report("n1", job["id"], job["lease"], "RUNNING", progress=40)
        volume = world.services.volumes.get("acme", "v1")
        assert (volume["status"], volume["progress"]) == ("DELETING", 40), attempt
        if attempt == "succeeds":
            world.done(job)
            break
        if attempt == "fails":
            world.fail(job, reason="The disk could not be overwritten.")
        else:
            world.services.jobs.cancel("acme", job["id"])
            report("n1", job["id"], job["lease"], "CANCELLED")
        assert world.services.volumes.get("acme", "v1")["status"] == "ERROR"
        assert world.services.nodes.get("n1")["allocated_bytes"] == 1 << 30, "it is still there"
        assert world.services.volumes.delete("acme", "v1")["progress"] == 0
    volume = world.services.volumes.get("acme", "v1")
    assert (volume["status"], volume["progress"]) == ("DELETED", 100)
    assert world.services.nodes.get("n1")["allocated_bytes"] == 0


def test_a_snapshot_is_backed_up_and_can_not_be_deleted_meanwhile(world: World) -> None:
    world.volume()
    world.backup("b1")
    snapshot = world.services.snapshots.create("acme", "v1")["id"]
    world.work()
    world.services.volumes.extend("acme", "v1", 3)
    world.work()
    backup, made = world.services.backups.create("acme", "v1", {"snapshot": snapshot}, "b2")
    assert made and (backup["snapshot"], backup["size"]) == (snapshot, 1)
    assert not world.services.backups.create("acme", "v1", {"snapshot": snapshot}, "b2")[1]
    with pytest.raises(errors.IdInUse, match="snapshot"):
        world.services.backups.create("acme", "v1", {}, "b2")
    for step in ("NEW", "SAVING"):
        assert world.services.backups.get("acme", "b2")["status"] == step
        with pytest.raises(errors.InUse, match="a backup of it is running"):
            world.services.snapshots.delete("acme", snapshot)
        if step == "NEW":
            job = world.claim()
            assert job["payload"]["snapshot_id"] == snapshot
            assert job["payload"]["parent_id"] == "b1"
    world.done(job, parent_id="b1")
    assert world.services.backups.get("acme", "b2")["size"] == 1
    world.services.snapshots.delete("acme", snapshot)
    assert world.work() == ["snapshot.delete"]
    assert world.services.backups.get("acme", "b2")["snapshot"] == snapshot


def test_a_snapshot_of_another_volume_is_not_there_to_be_backed_up(world: World) -> None:
    world.volume("v1")
    world.volume("v2")
    snapshot = world.services.snapshots.create("acme", "v1")["id"]
    with pytest.raises(errors.WrongState, match="must be AVAILABLE"):
        world.services.backups.create("acme", "v1", {"snapshot": snapshot})
    world.work()
    with pytest.raises(errors.NotFound, match="snapshot of volume v2"):
        world.services.backups.create("acme", "v2", {"snapshot": snapshot})
    world.services.accounts.create("rival")
    world.services.volumes.create("rival", {"size": 1}, "r1")
    world.work()
    with pytest.raises(errors.NotFound):
        world.services.backups.create("rival", "r1", {"snapshot": snapshot})


def test_a_restarted_agent_gets_its_jobs_again_and_old_claims_get_nothing(world: World) -> None:
    world.volume()
    world.services.backups.create("acme", "v1", {}, "b1")
    lost = world.claim()
    old: list[Any] = []
    waiting = threading.Thread(
        target=lambda: old.append(world.services.claims.claim("n1", ["volume.create"], wait=20))
    )
    waiting.start()
    time.sleep(0.3)
    answer = world.services.nodes.reconcile("n1", ["v1", "stray"], [])
    assert [job["id"] for job in answer["jobs"]] == [lost["id"]]
    assert answer["volumes"] == [{"id": "v1", "size_bytes": 1 << 30}]
    assert answer["unknown"]["volumes"] == ["stray"] and answer["delete"]["volumes"] == []
    world.services.volumes.create("acme", {"size": 1}, "v2")
    waiting.join(PATIENCE)
    assert old == [None]
    with pytest.raises(errors.StaleLease):
        world.done(lost)
    assert world.work() == ["backup.save", "volume.create"]


def test_what_was_deleted_while_the_node_was_away_is_to_be_deleted(world: World) -> None:
    world.volume()
    world.services.volumes.delete("acme", "v1")
    world.work()
    answer = world.services.nodes.reconcile("n1", ["v1"], [])
    assert answer["delete"]["volumes"] == ["v1"] and answer["unknown"]["volumes"] == []


def test_a_waiting_claim_is_woken_by_a_create(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lunr.api.jobs.claims.POLL", 2 * PATIENCE)  # it would find it, too
    got: list[Any] = []
    waiting = threading.Thread(
        target=lambda: got.append(world.services.claims.claim("n1", ALL, wait=2 * PATIENCE))
    )
    waiting.start()
    time.sleep(0.3)
    world.services.volumes.create("acme", {"size": 1})
    waiting.join(PATIENCE)
    assert got and got[0] is not None


def test_a_claim_hears_of_jobs_of_other_processes(world: World) -> None:
    other = world.another()
    threading.Timer(0.2, lambda: other.volumes.create("acme", {"size": 1})).start()
    assert world.services.claims.claim("n1", ALL, wait=10) is not None
    other.close()


def test_claims_that_wait_ask_the_database_together(world: World) -> None:
    """A node waits with several, and there are many nodes."""
    asked: list[str] = []
    waiting = [
        threading.Thread(target=world.services.claims.claim, args=("n1", ALL, 3.0))
        for _ in range(12)
    ]
    for thread in waiting:
        thread.start()
    time.sleep(0.5)

    @event.listens_for(world.services.context.db.engine, "before_cursor_execute")
    def count(_1: Any, _2: Any, statement: str, *_rest: Any) -> None:
        asked.append(statement)

    for thread in waiting:
        thread.join()
    assert len(asked) <= 2.5 / POLL + 1


def test_nobody_is_given_a_job_after_hanging_up(world: World) -> None:
    world.services.volumes.create("acme", {"size": 1}, "v1")
    assert world.services.claims.claim("n1", ALL, 0, gone=lambda: True) is None
    assert world.services.volumes.get("acme", "v1")["status"] == "NEW"


def test_work_that_any_node_can_do_leaves_a_dead_node(world: World) -> None:
    world.volume()
    world.backup()
    world.services.backups.verify("acme", "b1")
    world.add_node("n2")
    assert world.claim("n2") is None, "the volume's node is preferred"
    world.services.context.db.write(_silence, "n1")
    assert world.services.nodes.mark_down(times.now()) == ["n1"]
    assert world.work("n2") == ["backup.verify"]
    assert world.services.backups.get("acme", "b1")["verified_at"] is not None


def _silence(session: Any, node_id: str) -> None:
    from lunr.db.models import Node

    session.get_one(Node, node_id).last_seen = times.now() - timedelta(hours=1)


def test_a_silent_node_gets_no_volumes_and_comes_back(world: World) -> None:
    world.services.context.db.write(_silence, "n1")
    with pytest.raises(errors.NoRoom, match="no sign of life"):
        world.services.volumes.create("acme", {"size": 1})
    world.services.nodes.mark_down(times.now())
    with pytest.raises(errors.NoRoom, match="1 is DOWN"):
        world.services.volumes.create("acme", {"size": 1})
    assert world.beat("n1")["status"] == "ACTIVE"
    world.services.volumes.create("acme", {"size": 1})


def test_a_lost_node_is_removed_with_all_that_was_on_it(world: World) -> None:
    world.volume()
    world.backup()
    world.services.exports.create("acme", "v1", "iqn.2026-11.a:b", None)
    world.services.volumes.create("acme", {"size": 1}, "v2")
    world.claim()
    with pytest.raises(errors.InUse):
        world.services.nodes.delete("n1")
    world.services.nodes.delete("n1", force=True)
    for id in ("v1", "v2"):
        assert world.services.volumes.get("acme", id)["status"] == "DELETED"
    assert world.services.backups.get("acme", "b1")["status"] == "AVAILABLE"
    with pytest.raises(errors.NotFound):
        world.claim()


def test_records_that_lost_their_job_are_repaired(world: World) -> None:
    world.services.volumes.create("acme", {"size": 1}, "v1")
    assert world.services.maintenance.repair() == []
    world.services.context.db.write(
        lambda session: session.connection().exec_driver_sql("DELETE FROM jobs")
    )
    assert world.services.maintenance.repair() == ["v1"]
    assert world.services.volumes.get("acme", "v1")["status"] == "ERROR"


def test_old_records_go_but_a_deleted_backup_stays_until_its_garbage_is_collected(
    world: World,
) -> None:
    world.volume()
    world.backup()
    world.services.backups.delete("acme", "b1")
    world.services.volumes.delete("acme", "v1")
    world.work()
    world.services.maintenance.purge(_later(10), keep_records=0)
    with pytest.raises(errors.NotFound):
        world.services.volumes.get("acme", "v1")
    assert world.services.backups.get("acme", "b1")["status"] == "DELETED"
    assert world.services.collect.due(times.now(), 60) == ["acme"]
    world.services.collect.request("acme")
    job = world.claim()
    assert (job["kind"], job["payload"]["keep"]) == ("repository.collect", [])
    world.done(job, collection="c1", condemned=3)
    sweep = world.claim()
    assert sweep["payload"] == {
        "repository": "acme",
        "keep": [],
        "required": [],
        "collection": "c1",
    }
    world.fail(sweep)
    world.services.maintenance.purge(_later(10), keep_records=0)
    with pytest.raises(errors.NotFound):
        world.services.backups.get("acme", "b1")
    # The sweep that failed is tried again with the next collection.
    assert world.services.collect.due(_later(100), 60) == ["acme"]
    world.services.collect.request("acme")
    assert world.work() == ["repository.sweep", "repository.collect"]
    assert world.services.collect.due(_later(100), 60) == []


def test_a_save_that_failed_once_is_waited_for_by_a_sweep(world: World) -> None:
    world.volume()
    world.services.collect.request("acme")
    world.services.backups.create("acme", "v1", {})
    save = world.claim(kinds=["backup.save"])
    world.services.leases.expire(_later(61))
    collect = world.claim(kinds=["repository.collect"])
    world.done(collect, collection="c1")
    assert world.claim(kinds=["repository.sweep"]) is None
    again = world.claim(kinds=["backup.save"])
    assert again["id"] == save["id"] and again["payload"]["condemned"] == ["c1"]
    world.done(again)
    assert world.work() == ["repository.sweep"]
