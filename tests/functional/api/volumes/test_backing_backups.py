"""Snapshots of volumes that are still being filled, and what is made from them."""

from __future__ import annotations

from typing import Any

import pytest

from lunr.common import errors
from lunr.common.units import GIB
from tests.functional.api.world import World


@pytest.fixture
def filling(world: World) -> World:
    """The volume `r1` is being restored from the backup `b1`."""
    world.volume()
    world.backup()
    world.restored(fill="never")
    return world


def snapshot(world: World, volume: str = "r1", **result: Any) -> str:
    """A snapshot that its node took, and told this of."""
    id: str = world.services.snapshots.create("acme", volume)["id"]
    job = world.claim(kinds=["snapshot.create"])
    world.done(job, **result)
    assert world.services.snapshots.get("acme", id)["status"] == "AVAILABLE"
    return id


def fill(world: World, *volumes: str) -> None:
    for id in volumes:
        world.services.volumes.update("acme", id, {"fill": "eager"})
    world.work(kinds=["volume.fill"])


def refused(world: World, reason: str) -> None:
    with pytest.raises(errors.InUse, match=reason):
        world.services.backups.delete("acme", "b1")


def delete(world: World, id: str) -> None:
    world.services.snapshots.delete("acme", id)
    world.work(kinds=["snapshot.delete"])


def test_a_snapshot_needs_the_backup_as_long_as_it_is_there(filling: World) -> None:
    id = snapshot(filling, base_id="b1")
    assert filling.services.snapshots.get("acme", id)["backup"] == "b1"
    refused(filling, "the volume r1 is being restored")
    fill(filling, "r1")
    assert filling.services.volumes.get("acme", "r1")["status"] == "ACTIVE"
    refused(filling, f"the snapshot {id} lacks what it has")
    answer = filling.call("DELETE", "/v1.0/acme/backups/b1")
    assert (answer.status_int, answer.json["code"]) == (409, "in_use")
    delete(filling, id)
    assert filling.services.backups.delete("acme", "b1")["status"] == "DELETING"


def test_one_that_lacks_nothing_needs_nothing(filling: World) -> None:
    id = filling.services.snapshots.create("acme", "r1")["id"]
    fill(filling, "r1")
    refused(filling, f"the snapshot {id}")  # nobody knows yet
    filling.done(filling.claim(), base_id=None)
    assert filling.services.snapshots.get("acme", id)["backup"] is None
    filling.services.backups.delete("acme", "b1")


def test_one_that_failed_needs_nothing(filling: World) -> None:
    filling.services.snapshots.create("acme", "r1")
    filling.fail(filling.claim())
    fill(filling, "r1")
    filling.services.backups.delete("acme", "b1")


def test_a_volume_from_one_is_filled_too(filling: World) -> None:
    id = snapshot(filling, base_id="b1")
    fill(filling, "r1")
    filling.services.volumes.create("acme", {"snapshot": id, "size": 3}, "c1")
    job = filling.claim()
    assert (job["kind"], job["payload"]) == (
        "volume.clone",
        {
            "size_bytes": 3 * GIB,
            "source": {"kind": "snapshot", "id": id, "volume_id": "r1"},
            "base_id": "b1",
            "repository": "acme",
        },
    )
    assert filling.services.nodes.reconcile("n1", [], [])["filling"] == ["c1"]
    with pytest.raises(errors.InUse, match="a volume is being made from it"):
        filling.services.snapshots.delete("acme", id)
    filling.done(filling.claim())
    made = filling.services.volumes.get("acme", "c1")
    assert (made["status"], made["usable"], made["progress"]) == ("RESTORING", True, 0)
    assert (made["fill"], made["backup"], made["snapshot"]) == ("eager", None, id)
    delete(filling, id)
    refused(filling, "the volume c1 is being restored from it")
    restores = filling.services.backups.restores("acme", "b1")["restores"]
    assert [volume["id"] for volume in restores] == ["c1"]
    assert filling.work() == ["volume.fill"]
    assert filling.services.volumes.get("acme", "c1")["status"] == "ACTIVE"
    filling.services.backups.delete("acme", "b1")


def test_a_clone_of_a_filling_volume_is_filled_too(filling: World) -> None:
    filling.services.volumes.create("acme", {"source_volume": "r1"}, "c1")
    job = filling.claim()
    assert (job["kind"], job["payload"]["base_id"]) == ("volume.clone", "b1")
    with pytest.raises(errors.InUse, match="it is being cloned"):
        filling.services.volumes.delete("acme", "r1")
    fill(filling, "r1")
    refused(filling, "the volume c1")
    filling.done(job)
    assert filling.services.volumes.get("acme", "c1")["usable"]
    filling.services.volumes.delete("acme", "r1")
    assert filling.work() == ["volume.fill", "volume.delete"]
    filling.services.backups.delete("acme", "b1")
    # And what is whole is cloned as ever.
    filling.services.volumes.create("acme", {"source_volume": "c1"}, "c2")
    job = filling.claim(kinds=["volume.clone"])
    assert job["payload"]["base_id"] is None
    filling.done(job)
    assert filling.services.volumes.get("acme", "c2")["status"] == "ACTIVE"


def test_a_clone_that_fails_needs_nothing(filling: World) -> None:
    filling.services.volumes.create("acme", {"source_volume": "r1"}, "c1")
    filling.fail(filling.claim())
    assert filling.services.volumes.get("acme", "c1")["status"] == "ERROR"
    fill(filling, "r1")
    filling.services.backups.delete("acme", "b1")


@pytest.mark.parametrize("full", [False, True])
def test_a_backup_of_a_snapshot_has_its_backup(filling: World, full: bool) -> None:
    id = snapshot(filling, base_id="b1")
    fill(filling, "r1")
    filling.backup("newer", "r1")
    filling.services.backups.create("acme", "r1", {"snapshot": id, "full": full}, "b2")
    payload = filling.claim()["payload"]
    assert (payload["snapshot_id"], payload["base_id"]) == (id, "b1")
    assert payload["parent_id"] == (None if full else "b1")


def test_a_full_backup_of_a_filling_volume_needs_its_backup(filling: World) -> None:
    filling.services.backups.create("acme", "r1", {"full": True}, "b2")
    save = filling.claim()
    assert (save["payload"]["base_id"], save["payload"]["parent_id"]) == ("b1", None)
    fill(filling, "r1")
    refused(filling, "the running backup b2 needs it")
    filling.done(save, parent_id=None)
    filling.services.backups.delete("acme", "b1")


def test_a_snapshot_keeps_the_internal_backup_of_a_copy(world: World) -> None:
    world.volume()
    world.add_node("n2")
    world.services.volumes.create("acme", {"source_volume": "v1", "force_node": "n2"}, "copy")
    assert world.work() == ["backup.save"]
    assert world.work("n2", kinds=["volume.restore"]) == ["volume.restore"]
    id = world.services.snapshots.create("acme", "copy")["id"]
    job = world.claim("n2", kinds=["snapshot.create"])
    base = world.services.snapshots.get("acme", id)["backup"]
    world.done(job, "n2", base_id=base)
    assert world.work("n2") == ["volume.fill"]
    assert world.work() == [], "the snapshot still needs it"
    world.services.snapshots.delete("acme", id)
    assert sorted(world.work() + world.work("n2")) == ["backup.delete", "snapshot.delete"]


@pytest.mark.parametrize("how", ["lost", "node"])
def test_a_snapshot_that_is_lost_lets_it_go(world: World, how: str) -> None:
    world.volume()
    world.add_node("n2")
    world.services.volumes.create("acme", {"source_volume": "v1", "force_node": "n2"}, "copy")
    world.work()
    world.work("n2", kinds=["volume.restore"])
    id = world.services.snapshots.create("acme", "copy")["id"]
    world.work("n2")
    assert world.work() == []
    if how == "lost":
        world.beat("n2", lost_snapshots=[id])
    else:
        world.services.nodes.delete("n2", force=True)
    assert world.work() == ["backup.delete"]


def test_a_copy_of_a_snapshot_to_another_node_goes_through_the_store(filling: World) -> None:
    id = snapshot(filling, base_id="b1")
    filling.add_node("n2")
    filling.services.volumes.create("acme", {"snapshot": id, "force_node": "n2"}, "copy")
    save = filling.claim()
    assert (save["kind"], save["payload"]["base_id"]) == ("backup.save", "b1")
    assert save["payload"]["parent_id"] == "b1"
    filling.done(save, parent_id="b1")
    restore = filling.claim("n2")
    assert restore["payload"]["backup_id"] == save["payload"]["backup_id"]
