"""Every method of the client against the real API; only the storage node pretends."""

from __future__ import annotations

import pytest

from lunr.client import Client, errors
from lunr.common import ids
from lunr.common.units import GIB
from tests.functional.client.conftest import NODE, FakeNode
from tests.support.waiting import PATIENCE, wait_until

INITIATOR = "iqn.1993-08.org.debian:01:abc"


def volume(client: Client, **fields: object) -> str:
    """A new volume that can be used."""
    made = client.volumes.create(**{"size": 1, **fields})  # type: ignore[arg-type]
    return client.volumes.wait(made.id, timeout=PATIENCE).id


def backup(client: Client, volume_id: str) -> str:
    """A new backup that can be used."""
    return client.backups.wait(client.backups.create(volume_id).id, timeout=PATIENCE).id


def test_a_volumes_life(member: Client, account: str) -> None:
    id = ids.new()
    made = member.volumes.create(
        id=id, size=2, name="data", metadata={"os": "debian"}, volume_type_name="default"
    )
    assert (made.id, made.account_id, made.size, made.name) == (id, account, 2, "data")
    ready = member.volumes.wait(id, timeout=PATIENCE)
    assert (ready.status, ready.progress, ready.node_id, ready.job_id) == (
        "ACTIVE",
        100,
        NODE,
        None,
    )
    assert member.volumes.get(id) == ready
    assert ready.extra == {}

    member.volumes.update(id, name="other", metadata={"a": "b=ü"})
    changed = member.volumes.get(id)
    assert (changed.name, changed.metadata) == ("other", {"a": "b=ü"})
    assert member.volumes.update(id, metadata={}).metadata == {}

    member.volumes.extend(id, 3)
    assert member.volumes.wait(id, timeout=PATIENCE).size == 3

    member.volumes.delete(id)
    member.volumes.wait_deleted(id, timeout=PATIENCE)
    assert member.volumes.get(id).status == "DELETED"
    assert [v.id for v in member.volumes.list()] == []
    assert [v.id for v in member.volumes.list(status="DELETED")] == [id]
    with pytest.raises(errors.NotFound):
        member.volumes.delete(id)


def test_the_same_create_is_the_same_volume(member: Client) -> None:
    id = ids.new()
    first = member.volumes.create(id=id, size=1)
    assert member.volumes.create(id=id, size=1).created_at == first.created_at
    with pytest.raises(errors.IdInUse):
        member.volumes.create(id=id, size=2)
    assert len(list(member.volumes.list())) == 1


def test_lists_have_filters_and_pages(member: Client) -> None:
    wanted = [volume(member, name=f"v{n}", metadata={"n": str(n)}) for n in range(5)]
    assert [v.id for v in member.volumes.list()] == wanted[::-1]
    assert [v.id for v in member.volumes.list(limit=3)] == wanted[:1:-1]
    assert [v.id for v in member.volumes.list(name="v3")] == [wanted[3]]
    assert [v.id for v in member.volumes.list(metadata={"n": "1"})] == [wanted[1]]
    assert list(member.volumes.list(node_id="elsewhere")) == []
    assert list(member.volumes.list(volume_type_name="elsewhere")) == []
    assert len(list(member.volumes.list(status="ACTIVE", volume_type_name="default"))) == 5


def test_snapshots(member: Client) -> None:
    source = volume(member, size=2)
    made = member.snapshots.create(source, name="before", metadata={"a": "b"})
    ready = member.snapshots.wait(made.id, timeout=PATIENCE)
    assert (ready.volume_id, ready.size, ready.name, ready.extra) == (source, 2, "before", {})
    assert ready.metadata == {"a": "b"}
    assert member.snapshots.get(made.id) == ready
    assert [s.id for s in member.snapshots.list(volume_id=source, name="before")] == [made.id]
    assert list(member.snapshots.list(volume_id="none")) == []
    with pytest.raises(errors.InUse):
        member.volumes.delete(source)
    copy = volume(member, size=None, snapshot=made.id)
    assert (member.volumes.get(copy).snapshot, member.volumes.get(copy).size) == (made.id, 2)
    member.snapshots.delete(made.id)
    member.snapshots.wait_deleted(made.id, timeout=PATIENCE)


def test_backups(member: Client, node: FakeNode) -> None:
    source = volume(member)
    id = ids.new()
    made = member.backups.create(source, id=id, name="monday", metadata={"a": "b"}, full=True)
    assert member.backups.create(
        source, id=id, name="monday", metadata={"a": "b"}, full=True
    ).created_at == (made.created_at)
    ready = member.backups.wait(id, timeout=PATIENCE)
    assert (ready.bytes_read, ready.bytes_stored, ready.objects_stored) == (10, 5, 2)
    assert (ready.name, ready.metadata, ready.extra) == ("monday", {"a": "b"}, {})
    assert [b.id for b in member.backups.list(volume_id=source, status="AVAILABLE")] == [id]
    assert list(member.backups.list(name="tuesday")) == []

    job = member.backups.verify(id)
    assert member.jobs.wait(job.id, timeout=PATIENCE).result == {"bytes_read": 10, "seconds": 0.1}
    assert member.backups.get(id).verified_at is not None

    node.held.add("volume.restore")
    restored = member.volumes.create(backup=id)
    assert [v.id for v in member.backups.restores(id)] == [restored.id]
    with pytest.raises(errors.InUse):
        member.backups.delete(id)
    node.held.clear()
    with pytest.raises((errors.JobFailed, errors.WaitTimeout)):
        node.refuse["volume.restore"] = "The store is away."
        member.volumes.wait(restored.id, timeout=2)
    assert list(member.backups.restores(id)) in ([], [member.volumes.get(restored.id)])


def test_a_restore_and_a_copy(member: Client) -> None:
    source = volume(member, size=2)
    saved = backup(member, source)
    assert member.volumes.get(volume(member, size=None, backup=saved)).backup == saved
    assert member.volumes.get(volume(member, size=3, source_volume=source)).source_volume == source
    with pytest.raises(errors.BadRequest):
        member.volumes.create(size=1, backup=saved)
    member.backups.delete(saved)
    member.backups.wait_deleted(saved, timeout=PATIENCE)
    assert [b.id for b in member.backups.list(status="DELETED")] == [saved]


def test_a_snapshot_is_backed_up(member: Client, node: FakeNode) -> None:
    source = volume(member)
    snapshot = member.snapshots.wait(member.snapshots.create(source).id, timeout=PATIENCE)
    node.held.add("backup.save")
    made = member.backups.create(source, snapshot=snapshot.id)
    assert (made.snapshot, made.internal, made.extra) == (snapshot.id, False, {})
    with pytest.raises(errors.InUse, match="a backup of it is running"):
        member.snapshots.delete(snapshot.id)
    node.held.clear()
    assert member.backups.wait(made.id, timeout=PATIENCE).snapshot == snapshot.id
    [saved] = [job for job in node.claimed if job["payload"].get("backup_id") == made.id]
    assert saved["payload"]["snapshot_id"] == snapshot.id
    with pytest.raises(errors.NotFound):
        member.backups.create(source, snapshot="none")


def test_a_copy_to_another_node(client: Client, node: FakeNode) -> None:
    made = client.admin.nodes.create(f"n{ids.new()}")
    assert made.token is not None
    other = FakeNode(client.url, made.token, made.id)
    other.start()
    try:
        source = volume(client, force_node=NODE)
        node.held.add("backup.save")
        copy = client.volumes.create(source_volume=source, affinity=f"different_node:{source}")
        assert (copy.node_id, copy.status, copy.source_volume) == (made.id, "NEW", source)
        [internal] = client.admin.backups(volume_id=source)
        assert internal.internal
        assert list(client.backups.list(volume_id=source)) == []
        with pytest.raises(errors.NotFound):
            client.backups.get(internal.id)
        node.held.clear()
        assert client.volumes.wait(copy.id, timeout=PATIENCE).node_id == made.id
        done = [job["kind"] for job in other.claimed if job["volume_id"] == copy.id]
        assert done == ["volume.restore", "volume.fill"]
        wait_until(lambda: not list(client.admin.backups(volume_id=source)))
    finally:
        other.stop()
        client.admin.nodes.delete(made.id, force=True)


def test_exports(member: Client, client: Client, account: str, node: FakeNode) -> None:
    id = volume(member)
    first = member.exports.create(id, initiator=INITIATOR, ip="10.0.0.5")
    assert member.exports.create(id, initiator=INITIATOR, ip="10.0.0.5").id == first.id
    export = member.exports.wait(id, timeout=PATIENCE)
    assert (export.initiator, export.ip, export.target_lun) == (INITIATOR, "10.0.0.5", 1)
    assert (export.target_portal, export.auth_method) == ("127.0.0.1:3260", "CHAP")
    assert export.target_iqn.endswith(f":{id}")
    assert export.auth_username
    assert export.auth_password
    assert export.extra == {}
    assert member.volumes.get(id).export_status == "ATTACHED"
    [listed] = client.admin.exports(account_id=account, status="ATTACHED")
    assert (listed.volume_id, listed.auth_password) == (id, None)
    for act in (lambda: member.volumes.delete(id), lambda: member.exports.create(id, ip="::1")):
        with pytest.raises(errors.Conflict):
            act()

    node.refuse["export.delete"] = "iqn.x is logged in."
    member.exports.delete(id)
    with pytest.raises(errors.JobFailed, match="logged in"):
        member.exports.wait_deleted(id, timeout=PATIENCE)
    assert member.exports.get(id).status == "ATTACHED"

    node.refuse.clear()
    member.exports.delete(id, force=True)
    member.exports.wait_deleted(id, timeout=PATIENCE)
    claimed = [job for job in node.claimed if job["volume_id"] == id]
    assert [job["payload"]["force"] for job in claimed if job["kind"] == "export.delete"] == [
        False,
        True,
    ]
    with pytest.raises(errors.NotFound):
        member.exports.get(id)


def test_jobs(member: Client, node: FakeNode) -> None:
    id = volume(member)
    [made] = member.jobs.list(volume_id=id, kind="volume.create", status="DONE")
    assert member.jobs.get(made.id) == made
    assert made.extra == {}
    with pytest.raises(errors.Conflict):
        member.jobs.cancel(made.id)

    node.held.add("backup.save")
    saved = member.backups.create(id)
    job_id = member.backups.get(saved.id).job_id
    assert job_id is not None
    member.jobs.cancel(job_id)
    with pytest.raises(errors.JobFailed, match="was cancelled"):
        member.jobs.wait(job_id, timeout=PATIENCE)
    with pytest.raises(errors.JobFailed, match=f"backup {saved.id} is ERROR"):
        member.backups.wait(saved.id, timeout=PATIENCE)


def test_what_the_node_refuses_is_told(member: Client, node: FakeNode) -> None:
    node.refuse["volume.create"] = "The pool is full."
    made = member.volumes.create(size=1)
    with pytest.raises(errors.JobFailed, match="The pool is full"):
        member.volumes.wait(made.id, timeout=PATIENCE)
    node.refuse.clear()
    id = volume(member)
    node.refuse["volume.extend"] = "The disk is gone."
    member.volumes.extend(id, 2)
    with pytest.raises(errors.JobFailed, match="The disk is gone"):
        member.volumes.wait(id, timeout=PATIENCE)
    node.refuse.clear()
    member.volumes.extend(id, 2)
    assert member.volumes.wait(id, timeout=PATIENCE).size == 2


def test_accounts_and_tokens(client: Client) -> None:
    accounts, tokens = client.admin.accounts, client.admin.tokens
    made = accounts.create(f"shop-{ids.new()}"[:40], quotas={"volumes": 1})
    assert made.extra == {}
    assert made.quotas["volumes"] == 1
    assert made.quotas["gigabytes"] is None
    assert accounts.update(made.id, quotas={"gigabytes": 5}).quotas["volumes"] == 1
    assert accounts.update(made.id, quotas={"volumes": None}).quotas["volumes"] is None
    assert accounts.get(made.id) in list(accounts.list())
    with pytest.raises(errors.IdInUse):
        accounts.create(made.id)

    token = tokens.create(made.id, role="member")
    assert token.token
    assert [(t.id, t.role, t.token) for t in tokens.list(made.id)] == [(token.id, "member", None)]
    with Client(client.url, made.id, token.token) as member:
        with pytest.raises(errors.QuotaExceeded):
            member.volumes.create(size=6)
        with pytest.raises(errors.Forbidden):
            list(member.admin.accounts.list())
        tokens.delete(made.id, token.id)
        with pytest.raises(errors.Unauthorized):
            list(member.volumes.list())
    accounts.delete(made.id)
    with pytest.raises(errors.NotFound):
        accounts.update(made.id, quotas={})


def test_another_accounts_things_are_not_there(client: Client, member: Client) -> None:
    foreign = volume(client)
    for act in (
        lambda: member.volumes.get(foreign),
        lambda: member.volumes.delete(foreign),
        lambda: member.backups.create(foreign),
        lambda: member.exports.create(foreign, ip="10.0.0.5"),
        lambda: member.exports.get(foreign),
    ):
        with pytest.raises(errors.NotFound):
            act()
    assert client.volumes.get(foreign).status == "ACTIVE"


def test_nodes(client: Client) -> None:
    nodes = client.admin.nodes
    id = f"n{ids.new()}"
    made = nodes.create(id, weight=50, group="rack-b", volume_types=["default", "fast"])
    assert made.token
    assert (made.status, made.weight, made.group) == ("PENDING", 50, "rack-b")
    assert made.extra == {}
    shown = nodes.get(id)
    assert (shown.token, shown.volume_types) == (None, ["default", "fast"])
    assert shown in list(nodes.list())
    updated = nodes.update(id, weight=1, group="rack-c", volume_types=["fast"])
    assert (updated.weight, updated.group, updated.volume_types) == (1, "rack-c", ["fast"])
    assert (updated.full, updated.limits_io) == ("", False)
    assert nodes.update(id, status="MAINTENANCE").status == "MAINTENANCE"
    with pytest.raises(errors.InUse):
        nodes.delete(NODE)
    nodes.delete(id, force=True)
    with pytest.raises(errors.NotFound):
        nodes.delete(id)


def test_volume_types(client: Client, member: Client) -> None:
    types = client.admin.volume_types
    name = f"t{ids.new()}"
    made = types.create(name, min_size=2, max_size=10, read_iops=100, write_iops=50)
    assert (made.min_size, made.max_size, made.extra) == (2, 10, {})
    assert types.update(name, read_iops=0).read_iops == 0
    assert types.get(name) in list(types.list())
    assert types.get(name) in list(member.volume_types())
    with pytest.raises(errors.BadRequest):
        member.volumes.create(size=1, volume_type_name=name)
    with pytest.raises(errors.NoRoom):
        member.volumes.create(size=2, volume_type_name=name)  # no node takes it
    assert types.update(name, retention={"keep_daily": 7}).retention == {"keep_daily": 7}
    assert types.update(name, min_size=1).retention == {"keep_daily": 7}
    assert types.update(name, retention={}).retention == {}

    schedules = client.admin.schedules
    of_type = schedules.create(name, "1w", at="sun 03:30", name="weekly")
    assert (of_type.volume_type_name, of_type.account_id, of_type.extra) == (name, None, {})
    assert [s.id for s in schedules.list(volume_type_name=name)] == [of_type.id]
    assert schedules.update(of_type.id, every="none").every == "none"
    assert schedules.get(of_type.id).spread == 0
    with pytest.raises(errors.NotFound):
        member.schedules.get(of_type.id)
    with pytest.raises(errors.Conflict):
        schedules.create(name, "1d")
    schedules.delete(of_type.id)
    types.delete(name)
    with pytest.raises(errors.NotFound):
        types.get(name)


def test_schedules(client: Client, member: Client, account: str) -> None:
    source = volume(member)
    made = member.schedules.create(source, "1d", at="03:30", spread=10, name="nightly")
    assert (made.volume_id, made.every, made.at, made.spread) == (source, "1d", "03:30", 10)
    assert (made.account_id, made.volumes, made.last_run, made.extra) == (account, 1, None, {})
    assert (made.next_run or "") > (made.created_at or "")
    assert member.schedules.get(made.id) == made == member.schedules.of_volume(source)
    assert list(member.schedules.list(volume_id=source, name="nightly")) == [made]
    assert list(client.admin.schedules.list(account_id=account)) == [made]
    with pytest.raises(errors.Conflict):
        member.schedules.create(source, "1h")
    changed = member.schedules.update(made.id, every="6h", name="often")
    assert (changed.every, changed.at, changed.spread, changed.name) == ("6h", "00:00", 60, "often")
    with pytest.raises(errors.BadRequest):
        member.schedules.update(made.id, at="sun 03:30")
    member.schedules.delete(made.id)
    with pytest.raises(errors.NotFound):
        member.schedules.of_volume(source)


def test_groups(member: Client, account: str) -> None:
    name = f"web-{ids.new()[:8]}"
    backups = [
        {"id": f"{name}-{disk}", "disk": disk, "volume_id": f"v-{name}-{disk}", "size_bytes": size}
        for disk, size in (("root", GIB + 1), ("data", 5))
    ]
    told = {"machine": name, "created_at": "2026-11-23T12:00:00.000000Z", "backups": backups}
    begun = member.groups.put(name, status="SAVING", progress=3, **told)
    assert (begun.status, begun.machine, begun.progress, begun.extra) == ("SAVING", name, 3, {})
    assert (begun.cancel, begun.condemned) == (False, [])
    done = member.groups.put(name, status="AVAILABLE", metadata={"frozen": "2"}, **told)
    assert member.groups.wait(name, timeout=PATIENCE).metadata == {"frozen": "2"}
    assert [one.name for one in done.members] == ["data", "root"]
    root = member.backups.get(f"{name}-root")
    assert (root.group, root.size, root.status) == (name, 2, "AVAILABLE")
    assert root == done.members[1]
    assert [one.id for one in member.groups.list(machine=name, status="AVAILABLE")] == [name]
    external = member.volumes.get(root.volume_id)
    assert (external.status, external.node_id, external.extra) == ("EXTERNAL", None, {})
    with pytest.raises(errors.InUse):
        member.backups.delete(root.id)
    restored = member.volumes.create(backup=root.id)
    member.volumes.wait(restored.id, timeout=PATIENCE)
    member.groups.delete(name)
    member.groups.wait_deleted(name, timeout=PATIENCE)
    with pytest.raises(errors.WrongState):
        member.groups.put(name, status="AVAILABLE", **told)
    member.volumes.delete(root.volume_id)
    member.volumes.wait_deleted(root.volume_id, timeout=PATIENCE)


def test_retention_and_protection(member: Client) -> None:
    source = volume(member)
    saved = [backup(member, source) for _ in range(3)]
    told = member.retention.get(source)
    assert (told.rules, told.rules_of, told.extra) == ({}, None, {})
    assert [v.id for v in told.verdicts] == saved[::-1]
    assert {tuple(v.reasons) for v in told.verdicts} == {("made by hand",)}
    assert member.retention.set(source, {"keep_daily": 7}).rules_of == "volume"
    assert member.retention.get(source).rules == {"keep_daily": 7}
    assert member.retention.reset(source).rules_of is None

    assert member.backups.update(saved[0], protected=True, name="first").name == "first"
    with pytest.raises(errors.Conflict):
        member.backups.delete(saved[0])
    rules = {"keep_last": 1}
    told = member.retention.prune(source, rules, all=True, dry_run=True)
    assert [v.keep for v in told.verdicts] == [True, False, True]
    assert told.verdicts[2].reasons == ["protected"]
    assert member.backups.get(saved[1]).status == "AVAILABLE"
    told = member.retention.prune(source, rules, all=True)
    assert [v.status for v in told.verdicts] == ["AVAILABLE", "DELETING", "AVAILABLE"]
    member.backups.wait_deleted(saved[1], timeout=PATIENCE)
    member.backups.update(saved[0], protected=False)
    member.backups.delete(saved[0])
    kept = member.backups.create(source, protected=True)
    assert (kept.protected, kept.schedule) == (True, None)


def test_where_a_volume_goes(client: Client) -> None:
    here = volume(client, force_node=NODE)
    assert client.volumes.get(here).node_id == NODE
    with pytest.raises(errors.NoRoom):
        client.volumes.create(size=1, affinity=f"different_node:{here}")


def test_collecting_ends_when_all_is_swept(
    client: Client, member: Client, account: str, node: FakeNode
) -> None:
    backup(member, volume(member))
    assert client.admin.collect(account).kind == "repository.collect"
    last = client.admin.collect(account, wait=True, timeout=PATIENCE)
    assert (last.kind, last.status) == ("repository.sweep", "DONE")
    assert {job.status for job in client.admin.jobs(account_id=account)} == {"DONE"}


def test_everyones_things(client: Client, member: Client, account: str) -> None:
    source = volume(member)
    snapshot = member.snapshots.wait(member.snapshots.create(source).id, timeout=PATIENCE)
    saved = backup(member, source)
    admin = client.admin
    assert [v.id for v in admin.volumes(account_id=account, status="ACTIVE")] == [source]
    assert [s.id for s in admin.snapshots(account_id=account)] == [snapshot.id]
    assert [b.id for b in admin.backups(account_id=account, volume_id=source)] == [saved]
    assert {j.kind for j in admin.jobs(account_id=account)} == (
        {"volume.create", "snapshot.create", "backup.save"}
    )
    assert {v.account_id for v in admin.volumes()} >= {account}
