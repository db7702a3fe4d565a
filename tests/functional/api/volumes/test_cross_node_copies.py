"""Clones that go to another node by way of the store: nothing is left, however it ends."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from lunr.common import errors, times
from lunr.db.models import Backup, Job, Volume
from tests.functional.api.test_machine import STABLE
from tests.functional.api.world import World, outcome
from tests.support.thorough import examples


def _rows(world: World, model: Any, *where: Any) -> list[Any]:
    with world.services.context.db.read() as connection:
        return list(connection.execute(select(model.__table__).where(*where)))


def _copy(world: World, id: str = "copy", **request: Any) -> Any:
    """A copy of `v1`, or of what `request` names, to the node n2."""
    source = {} if "snapshot" in request else {"source_volume": "v1"}
    request = {**source, "force_node": "n2", **request}
    return world.services.volumes.create("acme", request, id)[0]


@pytest.fixture
def two(world: World) -> World:
    """The volume v1 is on n1, and there is n2."""
    world.volume("v1")
    world.add_node("n2")
    return world


def test_a_copy_is_saved_here_restored_there_and_the_backup_is_deleted(two: World) -> None:
    two.backup("b1")
    copy = _copy(two, size=2)
    assert (copy["node_id"], copy["status"], copy["source_volume"]) == ("n2", "NEW", "v1")
    assert copy["backup"] is None
    assert two.claim("n2") is None, "the restore waits for the save"
    save = two.claim("n1")
    assert (save["kind"], save["volume_id"]) == ("backup.save", "v1")
    assert save["payload"]["parent_id"] == "b1" and save["payload"]["snapshot_id"] is None
    two.done(save, parent_id="b1")
    assert two.claim("n1") is None
    restore = two.claim("n2")
    assert (restore["kind"], restore["volume_id"]) == ("volume.restore", "copy")
    assert restore["payload"] == {
        "size_bytes": 2 << 30,
        "backup_id": save["payload"]["backup_id"],
        "repository": "acme",
    }
    assert two.services.volumes.get("acme", "copy")["status"] == "RESTORING"
    two.done(restore, "n2")
    assert two.claim("n1") is None, "it is needed until the volume is full"
    assert two.work("n2") == ["volume.fill"]
    assert two.services.volumes.get("acme", "copy")["status"] == "ACTIVE"
    assert two.work("n1") == ["backup.delete"]
    [internal] = _rows(two, Backup, Backup.internal)
    assert internal.status == "DELETED"
    # A volume on its source's node is cloned there, as ever.
    two.services.volumes.create("acme", {"source_volume": "copy"})
    assert two.work("n2") == ["volume.clone"]


def test_a_snapshot_is_copied_with_its_own_size(two: World) -> None:
    snapshot = two.services.snapshots.create("acme", "v1")["id"]
    two.work()
    two.services.volumes.extend("acme", "v1", 5)
    two.work()
    assert _copy(two, snapshot=snapshot)["size"] == 1
    with pytest.raises(errors.InUse, match="a backup of it is running"):
        two.services.snapshots.delete("acme", snapshot)
    save = two.claim("n1")
    assert save["payload"]["snapshot_id"] == snapshot
    two.done(save)
    two.services.snapshots.delete("acme", snapshot)  # what was saved is enough from here on
    assert two.work("n1") == ["snapshot.delete"]
    assert two.work("n2") == ["volume.restore", "volume.fill"]
    assert two.work("n1") == ["backup.delete"]


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        (lambda world: world.beat("n1", gib=1), "room"),
        (lambda world: world.beat("n1", full="The pool is 90 % full."), "full"),
        (lambda world: world.services.nodes.update("n1", weight=0), "weight"),
        (lambda world: world.services.nodes.update("n1", status="MAINTENANCE"), "maintenance"),
        (lambda world: world.services.nodes.update("n1", volume_types=["gold"]), "type"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_node_of_the_source_is_left_only_for_a_reason(
    two: World, why: Callable[[World], Any], reason: str
) -> None:
    request = {"source_volume": "v1"}
    assert two.services.volumes.create("acme", request)[0]["node_id"] == "n1"
    assert two.work("n1") == ["volume.clone"]
    why(two)
    assert two.services.volumes.create("acme", request, "copy")[0]["node_id"] == "n2"
    assert two.work("n1") == ["backup.save"]
    assert two.work("n2")[0] == "volume.restore"


def test_affinity_leads_to_another_node(two: World) -> None:
    request = {"source_volume": "v1", "affinity": "different_node:v1"}
    assert two.services.volumes.create("acme", request)[0]["node_id"] == "n2"


def test_nothing_is_copied_from_a_node_that_is_silent(two: World) -> None:
    two.services.context.db.write(_silence)
    with pytest.raises(errors.NoRoom, match=r"1 can't be copied to: .* no sign of life"):
        _copy(two, force_node=None)
    two.services.nodes.mark_down(times.now())
    with pytest.raises(errors.NoRoom, match=r"the node can't be copied to"):
        _copy(two)
    assert _rows(two, Backup) == []


def _silence(session: Any) -> None:
    from lunr.db.models import Node

    session.get_one(Node, "n1").last_seen = times.now() - timedelta(hours=1)


def test_the_source_is_not_deleted_while_it_is_saved(two: World) -> None:
    _copy(two)
    with pytest.raises(errors.InUse, match="a backup of it is running"):
        two.services.volumes.delete("acme", "v1")
    two.work("n1")
    two.services.volumes.delete("acme", "v1")
    assert two.work("n1") == ["volume.delete"]
    assert two.work("n2") == ["volume.restore", "volume.fill"]
    assert two.services.volumes.get("acme", "copy")["status"] == "ACTIVE"


def test_a_save_that_fails_fails_the_volume_with_its_reason(two: World) -> None:
    _copy(two)
    two.fail(two.claim("n1"), reason="Swift is gone.")
    volume = two.services.volumes.get("acme", "copy")
    assert volume["status"] == "ERROR" and volume["job_id"] is None
    assert volume["reason"].endswith(
        "could not be saved, to be copied to another node: Swift is gone."
    )
    [restore] = _rows(two, Job, Job.kind == "volume.restore")
    assert (restore.status, restore.code) == ("FAILED", "source_not_saved")
    assert two.work("n2") == []
    assert two.work("n1") == ["backup.delete"]


@pytest.mark.parametrize("how", ["cancelled", "deleted"])
def test_a_save_for_nobody_is_not_begun_or_is_stopped(two: World, how: str) -> None:
    def give_up(copy: Any) -> None:
        if how == "cancelled":
            assert two.services.jobs.cancel("acme", copy["job_id"])
        else:
            two.services.volumes.delete("acme", copy["id"])

    give_up(_copy(two, "first"))
    assert two.work("n1") == ["backup.delete"]
    second = _copy(two, "second")
    save = two.claim("n1")
    give_up(second)
    told = two.services.claims.report("n1", save["id"], save["lease"], "RUNNING", progress=5)
    assert told["cancel"] is True
    two.services.claims.report("n1", save["id"], save["lease"], "CANCELLED")
    assert two.work("n1") == ["backup.delete"]


def test_the_node_of_the_source_is_lost(two: World) -> None:
    _copy(two)
    two.claim("n1")
    two.services.nodes.delete("n1", force=True)
    volume = two.services.volumes.get("acme", "copy")
    assert volume["status"] == "ERROR" and "n1 was removed" in volume["reason"]
    assert two.work("n2") == ["backup.delete"], "any node can do it"


def test_tenants_do_not_see_internal_backups_and_do_not_pay_for_them(two: World) -> None:
    two.services.accounts.update("acme", {"backups": 1})
    _copy(two)
    [internal] = [row.id for row in _rows(two, Backup, Backup.internal)]
    two.backup("b1")
    for path in ("backups", "volumes/v1/backups"):
        listed = two.call("GET", f"/v1.0/acme/{path}").json["backups"]
        assert [backup["id"] for backup in listed] == ["b1"]
    admin = two.services.tokens.create("acme", "admin")["token"]
    for token in (two.token, admin):
        for method, path in (
            ("GET", f"backups/{internal}"),
            ("DELETE", f"backups/{internal}"),
            ("GET", f"backups/{internal}/restores"),
            ("POST", f"backups/{internal}/verify"),
            ("GET", f"volumes/v1/backups/{internal}"),
            ("DELETE", f"volumes/v1/backups/{internal}"),
        ):
            assert two.call(method, f"/v1.0/acme/{path}", token=token).status_int == 404, path
        body = {"backup": internal}
        assert two.call("POST", "/v1.0/acme/volumes", body, token=token).status_int == 404
        taken = two.call("PUT", f"/v1.0/acme/volumes/v1/backups/{internal}", {}, token=token)
        assert taken.json["code"] == "id_in_use"
    everyones = two.call("GET", "/v1.0/admin/backups", token=admin).json["backups"]
    assert {b["id"]: b["internal"] for b in everyones} == {"b1": False, internal: True}
    jobs = two.call("GET", "/v1.0/acme/jobs?kind=backup.save").json["jobs"]
    assert internal in [job["subject_id"] for job in jobs]


def test_an_internal_backup_is_nobodys_parent(two: World) -> None:
    _copy(two)
    two.work("n1")  # AVAILABLE, and the newest of v1
    two.services.backups.create("acme", "v1", {}, "b1")
    assert two.claim("n1")["payload"]["parent_id"] is None


def test_a_collection_keeps_what_is_under_way(two: World) -> None:
    two.services.collect.request("acme")
    _copy(two)
    [internal] = [row.id for row in _rows(two, Backup, Backup.internal)]
    kinds = ["repository.collect"]
    seen = []
    for step in ("NEW", "SAVING", "AVAILABLE", "DELETING", "DELETED"):
        if step == "SAVING":
            save = two.claim("n1", ["backup.save"])
        elif step == "AVAILABLE":
            two.done(save)
        elif step == "DELETING":
            two.work("n2", ["volume.restore", "volume.fill"])
        elif step == "DELETED":
            two.work("n1", ["backup.delete"])
        two.services.collect.request("acme")
        collect = two.claim("n2", kinds)
        payload = collect["payload"]
        seen.append((step, internal in payload["keep"], internal in payload["required"]))
        two.done(collect, "n2", collection=None)
    assert seen == [
        ("NEW", True, False),
        ("SAVING", True, False),
        ("AVAILABLE", False, True),
        ("DELETING", True, False),
        ("DELETED", False, False),
    ]


def test_a_sweep_does_not_wait_for_the_restore(two: World) -> None:
    _copy(two)
    save = two.claim("n1")
    two.services.collect.request("acme")
    two.done(two.claim("n2", ["repository.collect"]), "n2", collection="c1")
    assert two.claim("n2", ["repository.sweep"]) is None, "the save does not know what is condemned"
    two.done(save)
    assert two.claim("n2", ["volume.restore"]) is not None
    assert two.claim("n1", ["repository.sweep"]) is not None


def test_a_delete_that_fails_is_done_again_by_the_housekeeper(two: World) -> None:
    _copy(two)
    two.work("n1")
    two.work("n2")
    two.fail(two.claim("n1"), reason="Swift says no.")
    assert two.services.maintenance.release_unneeded(times.now()) == [], "not at once"
    [internal] = [row.id for row in _rows(two, Backup, Backup.internal)]
    assert two.services.maintenance.release_unneeded(times.now() + timedelta(hours=1)) == [internal]
    assert two.services.maintenance.release_unneeded(times.now() + timedelta(hours=1)) == []
    assert two.work("n1") == ["backup.delete"]
    assert two.services.maintenance.release_unneeded(times.now() + timedelta(hours=1)) == []


# --- every mishap at every step ----------------------------------------------------------------


def _cancel(kind: str) -> Callable[[World], None]:
    def cancel(world: World) -> None:
        for job in _rows(world, Job, Job.kind == kind, Job.status.in_(("QUEUED", "RUNNING"))):
            outcome(world.services.jobs.cancel, "acme", job.id)

    return cancel


def _end(node: str, status: str, retry: bool) -> Callable[[World], None]:
    """The node's running jobs end so."""

    def fail(world: World) -> None:
        for job in _rows(world, Job, Job.status == "RUNNING", Job.node_id == node):
            error = {"code": "test", "reason": "No.", "retry": retry}
            world.services.claims.report(node, job.id, job.lease, status, error=error)

    return fail


def _fill(mode: str) -> Callable[[World], None]:
    def fill(world: World) -> None:
        outcome(world.services.volumes.update, "acme", "copy", {"fill": mode})

    return fill


def _lose(node: str) -> Callable[[World], None]:
    def lose(world: World) -> None:
        world.services.nodes.delete(node, force=True)
        world.add_node(node)

    return lose


def _later() -> Any:
    return times.now() + timedelta(hours=1)


MISHAPS: dict[str, Callable[[World], Any]] = {
    "the volume is deleted": lambda world: outcome(world.services.volumes.delete, "acme", "copy"),
    "the source is deleted": lambda world: outcome(world.services.volumes.delete, "acme", "v1"),
    "the save is cancelled": _cancel("backup.save"),
    "the restore is cancelled": _cancel("volume.restore"),
    "the fill is cancelled": _cancel("volume.fill"),
    "it is not to be filled": _fill("never"),
    "it is to be filled": _fill("eager"),
    "a backup of it is asked for": lambda world: outcome(
        world.services.backups.create, "acme", "copy", {}
    ),
    "the delete is cancelled": _cancel("backup.delete"),
    "n1 fails": _end("n1", "FAILED", False),
    "n1 fails for now": _end("n1", "FAILED", True),
    "n1 stops": _end("n1", "CANCELLED", False),
    "n2 fails": _end("n2", "FAILED", False),
    "n2 fails for now": _end("n2", "FAILED", True),
    "n1 starts anew": lambda world: world.services.nodes.reconcile("n1", [], []),
    "n2 starts anew": lambda world: world.services.nodes.reconcile("n2", [], []),
    "leases run out": lambda world: world.services.leases.expire(_later()),
    "n1 is lost": _lose("n1"),
    "n2 is lost": _lose("n2"),
    "nodes are silent": lambda world: world.services.nodes.mark_down(_later()),
    "garbage is collected": lambda world: outcome(world.services.collect.request, "acme"),
    "records are purged": lambda world: world.services.maintenance.purge(_later(), 0),
    "the housekeeper comes": lambda world: world.services.maintenance.release_unneeded(_later()),
}
#: What happens where nothing goes wrong.
STEPS = 8


def _step(world: World, number: int) -> None:
    """The next of: the save, the restore, the fill, the delete begins, and ends."""
    node = ("n1", "n2", "n2", "n1")[number // 2]
    if number % 2 == 0:
        world.claim(node)
        return
    for job in _rows(world, Job, Job.status == "RUNNING", Job.node_id == node):
        world.services.claims.report(node, job.id, job.lease, "DONE", result={})


def _play(world: World, mishaps: dict[int, list[str]]) -> None:
    """A copy with mishaps before its steps; then all goes well, and nothing may be left."""
    world.services.volumes.create("acme", {"size": 1, "force_node": "n1"}, "v1")
    world.work("n1")
    _copy(world)
    for number in range(STEPS + 1):
        for name in mishaps.get(number, ()):
            MISHAPS[name](world)
        if number < STEPS:
            _step(world, number)
    for node in ("n1", "n2"):
        world.beat(node)
    world.services.leases.expire(_later())
    while any(world.work(node) for node in ("n1", "n2")):
        pass
    world.fill_up()
    # Only a delete that failed, or was cancelled, is left to the housekeeper.
    failed = {
        row.subject_id
        for row in _rows(world, Job, Job.kind == "backup.delete", Job.status != "DONE")
    }
    left = _rows(world, Backup, Backup.internal, Backup.status != "DELETED")
    assert {row.status for row in left} <= {"ERROR"}
    if "records are purged" not in itertools.chain(*mishaps.values()):
        assert {row.id for row in left} <= failed
    world.services.maintenance.release_unneeded(_later())
    while any(world.work(node) for node in ("n1", "n2")):
        pass
    assert {row.status for row in _rows(world, Backup, Backup.internal)} <= {"DELETED"}
    assert {row.status for row in _rows(world, Volume)} <= STABLE[Volume]
    assert {row.job_id for row in _rows(world, Volume)} <= {None}
    assert {row.status for row in _rows(world, Job)} <= STABLE[Job]
    assert world.services.maintenance.repair() == []
    for id in ("copy", "v1"):  # an ERROR has a way out
        outcome(world.services.volumes.delete, "acme", id)
    for row in _rows(world, Backup, Backup.internal.is_(False)):
        outcome(world.services.backups.delete, "acme", row.id)
    while any(world.work(node) for node in ("n1", "n2")):
        pass
    world.services.maintenance.purge(_later(), 0)
    assert {row.status for row in _rows(world, Volume)} == set()


def _forget(world: World) -> None:
    """Let the next play begin with nothing."""
    world.services.collect.request("acme")
    world.work("n1")
    world.services.maintenance.purge(_later(), 0)
    assert _rows(world, Backup) == _rows(world, Job) == []


@pytest.mark.parametrize("step", range(STEPS + 1))
def test_every_mishap_at_every_step_leaves_nothing(world: World, step: int) -> None:
    """By default each of them at a third of the steps, and a third of them at each step."""
    world.add_node("n2")
    seed = random.randrange(3)
    thirds = examples(1, 3)
    for number, name in enumerate(MISHAPS):
        if (number + step + seed) % 3 >= thirds:
            continue
        try:
            _play(world, {step: [name]})
        except AssertionError as error:
            raise AssertionError(f"{name} before step {step}") from error
        _forget(world)


def test_two_mishaps_leave_nothing_either(world: World) -> None:
    world.add_node("n2")
    places = list(itertools.product(range(STEPS + 1), MISHAPS))
    seed = random.randrange(1 << 32)
    pairs = random.Random(seed).sample(list(itertools.combinations(places, 2)), examples(10, 1000))
    for first, second in pairs:
        plan: dict[int, list[str]] = {}
        for step, name in (first, second):
            plan.setdefault(step, []).append(name)
        try:
            _play(world, plan)
        except AssertionError as error:
            raise AssertionError(f"{plan}") from error
        _forget(world)
