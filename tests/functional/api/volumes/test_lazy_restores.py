"""Volumes that are used while they are filled from a backup."""

from __future__ import annotations

from typing import Any

import pytest

from lunr.common import errors, times
from lunr.common.units import MIB
from tests.functional.api.world import World

INITIATOR = "iqn.2026-11.io.lunr.test:i"


@pytest.fixture
def stored(world: World) -> World:
    """A backup `b1` of the volume `v1`."""
    world.volume()
    world.backup()
    return world


def shown(world: World, id: str = "r1") -> Any:
    return world.services.volumes.get("acme", id)


def tell(world: World, job: Any, **told: Any) -> Any:
    return world.services.claims.report("n1", job["id"], job["lease"], "RUNNING", **told)


def test_it_can_be_used_before_it_is_full(stored: World) -> None:
    volume = stored.restored(fill="lazy", fill_limit=3)
    assert (volume["fill"], volume["fill_limit"], volume["job_id"]) == ("lazy", 3, None)
    stored.services.exports.create("acme", "r1", INITIATOR, None)
    assert stored.work(kinds=["export.create"]) == ["export.create"]
    assert shown(stored)["export_status"] == "ATTACHED"
    job = stored.claim(kinds=["volume.fill"])
    assert job["payload"] == {
        "fill": "lazy",
        "fill_limit_bytes": 3 * MIB,
        "others_wait": False,
    }
    assert job["id"] == shown(stored)["fill_job_id"]
    told = {"rate": 5 * MIB, "remaining": 77, "trouble": "The store is slow."}
    tell(stored, job, progress=40, fill=told)
    now = shown(stored)
    assert (now["progress"], now["fill_rate"], now["fill_remaining"]) == (40, 5 * MIB, 77)
    assert now["reason"] == "The store is slow."
    tell(stored, job, progress=41, fill={"rate": 0})
    assert shown(stored)["reason"] is None
    stored.done(job)
    now = shown(stored)
    assert (now["status"], now["usable"], now["progress"]) == ("ACTIVE", True, 100)
    assert {now[name] for name in ("fill", "fill_job_id", "fill_remaining", "reason")} == {None}
    assert now["export_status"] == "ATTACHED"


def test_how_it_is_filled_can_be_changed(stored: World) -> None:
    stored.restored(fill="never")
    assert stored.claim() is None, "nobody fills it"
    change = stored.services.volumes.update
    change("acme", "r1", {"fill_limit": 7})
    assert stored.claim() is None
    change("acme", "r1", {"fill": "lazy"})
    job = stored.claim()
    assert (job["kind"], job["payload"]["fill"]) == ("volume.fill", "lazy")
    change("acme", "r1", {"fill": "eager", "fill_limit": 0})
    answer = tell(stored, job, progress=1)
    assert answer == {
        "cancel": False,
        "lease_seconds": 60,
        "fill": "eager",
        "fill_limit_bytes": 0,
        "others_wait": False,
    }
    change("acme", "r1", {"fill": "never"})
    assert tell(stored, job, progress=2)["cancel"]
    change("acme", "r1", {"fill": "eager"})
    assert stored.claim() is None, "the first is just ending"
    stored.services.claims.report("n1", job["id"], job["lease"], "CANCELLED")
    again = stored.claim()
    assert again["kind"] == "volume.fill" and again["payload"]["fill"] == "eager"
    stored.done(again)
    assert shown(stored)["status"] == "ACTIVE"
    with pytest.raises(errors.WrongState, match="is ACTIVE; to fill it otherwise"):
        change("acme", "r1", {"fill": "lazy"})


def test_a_fill_is_told_whether_others_wait_and_may_yield(stored: World) -> None:
    stored.restored(fill="lazy")
    first = stored.claim(kinds=["volume.fill"])
    stored.restored("r2")
    assert tell(stored, first, progress=1)["others_wait"]
    stored.fail(first, reason="Others wait.", retry=True)
    assert shown(stored)["reason"] is None
    again = stored.claim(kinds=["volume.fill"])
    other = stored.claim(kinds=["volume.fill"])
    assert {again["volume_id"], other["volume_id"]} == {"r1", "r2"}
    assert not tell(stored, again, progress=1)["others_wait"]


def test_what_is_wrong_is_told_also_where_nobody_fills(stored: World) -> None:
    stored.restored(fill="never")
    stored.restored("r2")
    stored.restored("r3")
    failed = stored.claim()
    assert failed["volume_id"] == "r2"
    stored.fail(failed, reason="A defect.")
    lost = {"r1": "Bytes 0 to 5 are lost.", "r2": "The store is away.", "v1": "?", "r9": "?"}
    stored.beat("n1", troubles={**lost, "r3": "The store is away."})
    assert shown(stored)["reason"] == "Bytes 0 to 5 are lost."
    assert shown(stored, "r2")["reason"] == "A defect."
    assert shown(stored, "r3")["reason"] == "The store is away.", "it waits for its turn"
    assert shown(stored, "v1")["reason"] is None
    stored.beat("n1")  # of a node that tells nothing of it
    assert shown(stored)["reason"] == "Bytes 0 to 5 are lost."
    stored.beat("n1", troubles={})
    assert shown(stored)["reason"] is None and shown(stored, "r3")["reason"] is None
    assert shown(stored, "r2")["reason"] == "A defect."


def test_one_that_waits_for_its_turn_can_be_told_to_stay(stored: World) -> None:
    stored.restored()
    stored.services.volumes.update("acme", "r1", {"fill": "never"})
    assert stored.claim() is None
    assert shown(stored)["fill_job_id"] is None


def test_cancelled_it_stays_usable(stored: World) -> None:
    job = stored.restored()["fill_job_id"]
    assert stored.services.jobs.cancel("acme", job)
    now = shown(stored)
    assert (now["status"], now["usable"], now["fill"]) == ("RESTORING", True, "never")


def test_what_is_lost_is_told_and_it_stays_usable(stored: World) -> None:
    stored.restored()
    job = stored.claim()
    error = {"code": "restore_damaged", "reason": "bytes 0 to 5 are lost.", "retry": False}
    report = stored.services.claims.report
    report("n1", job["id"], job["lease"], "FAILED", progress=98, error=error)
    now = shown(stored)
    assert (now["status"], now["usable"], now["progress"]) == ("RESTORING", True, 98)
    assert now["reason"] == "bytes 0 to 5 are lost."
    assert stored.services.maintenance.repair() == []
    stored.services.volumes.update("acme", "r1", {"fill": "eager"})  # tried again
    assert shown(stored)["reason"] is None
    assert stored.work() == ["volume.fill"]
    assert shown(stored)["status"] == "ACTIVE"


def test_a_node_that_starts_again_and_again_does_not_fail_it(stored: World) -> None:
    stored.restored()
    for _ in range(20):
        assert stored.claim()["kind"] == "volume.fill"
        answer = stored.services.nodes.reconcile("n1", ["v1", "r1"], [])
        assert answer["filling"] == ["r1"]
        assert {volume["id"] for volume in answer["volumes"]} == {"v1", "r1"}
    assert stored.work() == ["volume.fill"]
    assert stored.services.nodes.reconcile("n1", ["v1", "r1"], [])["filling"] == []


def test_one_that_was_filled_by_being_read_is_active(stored: World) -> None:
    stored.restored(fill="never")
    stored.add_node("n2")
    stored.beat("n2", filled=["r1", "v1"])
    assert stored.claim() is None, "it is not on that node"
    stored.beat("n1", filled=["r1", "v1", "unknown"])
    stored.beat("n1", filled=["r1"])
    assert stored.work() == ["volume.fill"]
    assert shown(stored)["status"] == "ACTIVE"


def test_a_backup_takes_what_is_absent_from_the_volumes_own(stored: World) -> None:
    stored.restored()
    stored.services.backups.create("acme", "r1", {}, "b2")
    save = stored.claim(kinds=["backup.save"])
    assert save["payload"]["parent_id"] == "b1"
    stored.work(kinds=["volume.fill"])
    with pytest.raises(errors.InUse, match="the parent of a running backup"):
        stored.services.backups.delete("acme", "b1")
    stored.done(save, parent_id="b1")
    stored.services.backups.delete("acme", "b1")
    stored.services.backups.create("acme", "r1", {}, "b3")
    assert stored.claim(kinds=["backup.save"])["payload"]["parent_id"] == "b2"


def test_its_backup_stays_as_long_as_it_is_needed(stored: World) -> None:
    stored.restored(fill="never")
    stored.restored("r2", fill="never")
    with pytest.raises(errors.InUse, match=r"the volume r[12] is being restored from it"):
        stored.services.backups.delete("acme", "b1")
    found = stored.services.backups.restores("acme", "b1")["restores"]
    assert {volume["id"] for volume in found} == {"r1", "r2"}
    stored.services.volumes.delete("acme", "r1")
    stored.services.volumes.update("acme", "r2", {"fill": "eager"})
    stored.work()
    assert stored.services.backups.delete("acme", "b1")["status"] == "DELETING"


def test_deleted_it_is_filled_no_more(stored: World) -> None:
    stored.restored()
    fill = stored.claim()
    stored.services.volumes.delete("acme", "r1")
    assert stored.claim() is None, "the delete waits for the fill to end"
    assert tell(stored, fill, progress=5)["cancel"]
    stored.services.claims.report("n1", fill["id"], fill["lease"], "CANCELLED")
    assert stored.work() == ["volume.delete"]
    assert shown(stored)["status"] == "DELETED"
    # One that waits for its turn is not begun.
    stored.restored("r2")
    stored.services.volumes.delete("acme", "r2")
    assert stored.work() == ["volume.delete"]


def test_a_delete_that_comes_as_the_fill_ends(stored: World) -> None:
    stored.restored()
    fill = stored.claim()
    stored.services.volumes.delete("acme", "r1")
    job_id = shown(stored)["job_id"]
    stored.done(fill)
    assert (shown(stored)["status"], shown(stored)["job_id"]) == ("DELETING", job_id)
    assert stored.work() == ["volume.delete"]


def test_an_extend_is_refused_with_how_far_it_is(stored: World) -> None:
    stored.restored()
    tell(stored, stored.claim(), progress=42)
    with pytest.raises(errors.WrongState, match=r"still being restored \(42 % are there\)"):
        stored.services.volumes.extend("acme", "r1", 5)
    assert shown(stored)["job_id"] is None


def test_one_that_is_not_served_yet_can_not_be_used(stored: World) -> None:
    stored.services.volumes.create("acme", {"backup": "b1"}, "r1")
    job = stored.claim()
    assert shown(stored)["usable"] is False
    with pytest.raises(errors.WrongState, match="RESTORING"):
        stored.services.exports.create("acme", "r1", INITIATOR, None)
    with pytest.raises(errors.InUse, match="fills it"):
        stored.services.volumes.delete("acme", "r1")
    stored.fail(job, reason="The store is away.")
    now = shown(stored)
    assert (now["status"], now["usable"], now["reason"]) == ("ERROR", False, "The store is away.")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"size": 1, "fill": "eager"}, "fill"),
        ({"size": 1, "fill_limit": 1}, "fill_limit"),
        ({"source_volume": "v1", "fill": "lazy"}, "fill"),
        ({"backup": "b1", "fill": "quickly"}, "fill"),
        ({"backup": "b1", "fill": 1}, "fill"),
        ({"backup": "b1", "fill_limit": -1}, "fill_limit"),
        ({"backup": "b1", "fill_limit": "much"}, "fill_limit"),
    ],
)
def test_bad_fills_are_refused(stored: World, body: dict[str, Any], field: str) -> None:
    answer = stored.call("POST", "/v1.0/acme/volumes", body)
    assert answer.status_int == 400
    assert answer.json["code"] == "invalid_field" and answer.json["reason"].startswith(field)


def test_another_account_can_not_change_it(stored: World) -> None:
    stored.restored()
    stored.services.accounts.create("other")
    token = stored.services.tokens.create("other")["token"]
    for path in ("/v1.0/acme/volumes/r1", "/v1.0/other/volumes/r1"):
        answer = stored.call("POST", path, {"fill": "never"}, token=token)
        assert answer.status_int in (403, 404)
    assert shown(stored)["fill"] == "eager"


def test_a_lease_that_runs_out_leaves_it_usable(stored: World) -> None:
    stored.restored()
    stored.claim()
    later = times.now().replace(year=times.now().year + 1)
    assert stored.services.leases.expire(later) == 1
    assert shown(stored)["usable"]
    assert stored.work() == ["volume.fill"]
