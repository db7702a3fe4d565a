"""Damage that verifies find, and the shares that the housekeeper has read."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from lunr.api.orbit import Housekeeper
from lunr.api.services.backups.damage import BackupDamaged
from lunr.common import config, errors, times
from tests.functional.api.world import World

LOST = "The store has no object chunks/ab/abcd."


@pytest.fixture
def stored(world: World) -> World:
    """With the backups b1 and b2 of a volume."""
    world.volume()
    for id in ("b1", "b2"):
        world.backup(id)
    return world


def damage(*backup_ids: str) -> Any:
    return [{"reason": LOST, "backup_ids": list(backup_ids)}]


def backup(world: World, id: str) -> Any:
    return world.services.backups.get("acme", id)


def verify(world: World, id: str, *lost: str) -> Any:
    """Have a node verify the backup and find that of `lost`; the job, as it ended."""
    job = world.services.backups.verify("acme", id)
    claimed = world.claim(kinds=["backup.verify"])
    world.done(claimed, damaged=damage(*lost) if lost else [])
    return world.services.jobs.get("acme", job["id"])


def test_a_damaged_backup_fails_its_verify_and_is_marked(stored: World) -> None:
    job = verify(stored, "b1", "b1")
    assert (job["status"], job["code"]) == ("FAILED", "backup_damaged")
    assert LOST in job["reason"]
    b1 = backup(stored, "b1")
    assert (b1["status"], b1["damaged"], b1["verified_at"]) == ("AVAILABLE", LOST, None)
    assert b1["job_id"] is None
    assert backup(stored, "b2")["damaged"] is None


def test_no_volume_is_made_from_a_damaged_backup(stored: World) -> None:
    verify(stored, "b1", "b1")
    with pytest.raises(BackupDamaged, match="no object chunks/ab/abcd"):
        stored.services.volumes.create("acme", {"backup": "b1"})
    answer = stored.call("POST", "/v1.0/acme/volumes", {"backup": "b1"})
    assert (answer.status_code, answer.json["code"]) == (409, "backup_damaged")
    stored.services.volumes.create("acme", {"backup": "b2"})


def test_backups_that_share_what_is_lost_are_marked_too(stored: World) -> None:
    job = verify(stored, "b1", "b2")  # all that b1 needs is there
    assert job["status"] == "DONE"
    assert backup(stored, "b1")["damaged"] is None
    assert backup(stored, "b1")["verified_at"] is not None
    assert backup(stored, "b2")["damaged"] == LOST


def test_only_a_verify_of_all_of_it_makes_a_backup_good_again(stored: World) -> None:
    verify(stored, "b1", "b1", "b2")
    stored.services.verification.request("acme", 30)
    assert stored.work() == ["repository.verify"]
    assert backup(stored, "b1")["damaged"] == LOST
    assert verify(stored, "b1")["status"] == "DONE"
    assert backup(stored, "b1")["damaged"] is None
    assert backup(stored, "b2")["damaged"] == LOST
    stored.services.volumes.create("acme", {"backup": "b1"})


def test_nothing_is_said_of_what_is_deleted_or_anothers(stored: World) -> None:
    stored.services.accounts.create("other")
    stored.services.backups.delete("acme", "b2")
    stored.services.verification.request("other", 30)
    stored.services.verification.request("acme", 30)
    for _ in range(2):
        job = stored.claim(kinds=["repository.verify"])
        lost = ["b1", "b2"] if job["account_id"] == "other" else ["b2", "unknown"]
        stored.done(job, damaged=damage(*lost))
    assert backup(stored, "b1")["damaged"] is None
    assert backup(stored, "b2")["damaged"] is None


@pytest.mark.parametrize(
    "bad", [3, [3], [{"reason": LOST}], [{"reason": "x", "backup_ids": ["/"]}]]
)
def test_a_result_that_makes_no_sense_changes_nothing(stored: World, bad: Any) -> None:
    stored.services.backups.verify("acme", "b1")
    job = stored.claim()
    with pytest.raises(errors.InvalidField, match=r"result\.damaged"):
        stored.done(job, damaged=bad)
    stored.done(job)
    assert backup(stored, "b1")["damaged"] is None


def test_a_long_chain_is_marked(stored: World) -> None:
    many = [f"x{number}" for number in range(3000)]
    verify(stored, "b1", *many, "b1")
    assert backup(stored, "b1")["damaged"] == LOST


# --- the daily share -----------------------------------------------------------------


def test_each_day_another_share_is_read(stored: World) -> None:
    verification = stored.services.verification
    assert verification.due(times.now(), 86400) == ["acme"]
    seen = []
    for _ in range(3):
        verification.request("acme", 30)
        job = stored.claim(kinds=["repository.verify"])
        assert job["payload"]["backup_ids"] == ["b1", "b2"]
        seen.append(job["payload"]["share"])
        assert verification.request("acme", 30)["id"] == job["id"]  # one at a time
        stored.done(job)
    assert seen == [[0, 30], [1, 30], [2, 30]]
    assert verification.due(times.now(), 86400) == []
    assert verification.due(times.now() + timedelta(days=1), 86400) == ["acme"]


def test_a_share_that_was_not_read_is_read_next_time(stored: World) -> None:
    stored.services.verification.request("acme", 30)
    stored.fail(stored.claim(kinds=["repository.verify"]))
    stored.services.verification.request("acme", 30)
    assert stored.claim(kinds=["repository.verify"])["payload"]["share"] == [0, 30]


def test_it_keeps_no_collection_waiting(stored: World) -> None:
    stored.services.verification.request("acme", 30)
    stored.claim(kinds=["repository.verify"])
    stored.services.collect.request("acme")
    assert stored.claim()["kind"] == "repository.collect"


@pytest.mark.parametrize(("days", "kinds"), [(30, ["repository.verify"]), (0, [])])
def test_the_housekeeper_asks_for_it(stored: World, days: int, kinds: list[str]) -> None:
    conf = config.new()
    conf([])
    conf.set_override("verify_days", days, "orbit")
    housekeeper = Housekeeper(stored.services, conf)
    for _ in range(2):
        housekeeper.round()
    assert stored.work(kinds=["repository.verify"]) == kinds
