"""Live backups and a whole service: they are its backups like any others."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lunr.backup.keys import master_keys
from lunr.backup.read.restore import restore
from lunr.backup.repository.repository import Repository
from lunr.backup.stores import open_store
from lunr.client import Client
from lunr.client.cli.context import read_openrc
from lunr.client.errors import Unreachable
from lunr.common import files, times
from lunr.common.errors import Cancelled, LunrError
from lunr.common.units import GIB
from lunr.live import errors
from lunr.live.backup import announcements, groups
from lunr.live.backup.announcements import Service, external_volume_id
from lunr.live.backup.backup import Options, backup
from lunr.live.backup.groups import Group
from lunr.live.cli import live
from lunr.live.qemu import machine as machines
from lunr.live.qemu.qmp import Monitor
from lunr.live.start import instant_start
from lunr.manage.context import Context
from tests.support.waiting import PATIENCE, wait_until
from tests.system.live.machines import Disk, Machine
from tests.system.up.conftest import need_lunr
from tests.unit.backup.support import Faulty
from tools.demos.stage import Lunr


@pytest.fixture(scope="module")
def lunr(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lunr]:
    need_lunr()
    found = Lunr(tmp_path_factory.mktemp("service") / "lunr")
    try:
        found.wait_until_up()
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="module")
def client(lunr: Lunr) -> Iterator[Client]:
    with lunr.client() as found:
        yield found


class Hypervisor:
    """What a hypervisor has of the service: its store, its key, a token."""

    def __init__(self, lunr: Lunr, client: Client, scratch: Path) -> None:
        self.url = f"files:{lunr.root}/store"
        self.key_file = lunr.root / "keys" / "master.key"
        self.client, self.service, self.scratch = client, Service(client), scratch
        own, *_ = master_keys.keyring(master_keys.load(self.key_file), client.account)
        self.store = open_store(self.url, client.account)
        self.repository = Repository(self.store, own)

    def backup(
        self,
        machine: Machine,
        before: Callable[[str, str], None] = lambda _call, _name: None,
        **options: Any,
    ) -> Group:
        repository = Repository(Faulty(self.store, before), self.repository.keys)
        given = {"scratch": self.scratch, "service": self.service, **options}
        with Monitor.open(machine.qmp) as monitor:
            return backup(repository, monitor, Options(**given))


@pytest.fixture
def hypervisor(lunr: Lunr, client: Client, tmp_path: Path) -> Iterator[Hypervisor]:
    found = Hypervisor(lunr, client, tmp_path)
    yield found
    found.store.close()


def collect(client: Client) -> None:
    """Have the service collect its garbage, and sweep."""
    job = client.admin.collect(client.account)
    client.jobs.wait(job.id, timeout=PATIENCE)


def during(act: Callable[[], object]) -> Callable[[str, str], None]:
    """Does `act` once, when the first object of a save is put."""
    done = threading.Event()

    def before(call: str, name: str) -> None:
        if call == "put" and name.startswith(("chunks/", "patches/")) and not done.is_set():
            done.set()
            act()

    return before


def test_backups_like_any_others(
    machine: Machine, hypervisor: Hypervisor, client: Client, tmp_path: Path
) -> None:
    draw = random.Random()
    machine.write_some(draw, 20)
    seen = []
    group = hypervisor.backup(
        machine, during(lambda: seen.extend(client.groups.list(status="SAVING"))), concurrency=1
    )
    assert [one.id for one in seen] == [group.group_id]
    record = client.groups.get(group.group_id)
    assert (record.status, record.machine, record.job_id) == ("AVAILABLE", "vm", None)
    members = {member.name: member for member in record.members}
    assert members.keys() == {"alpha", "beta"}
    alpha = members["alpha"]
    assert alpha.volume_id == external_volume_id(client.account, "vm-alpha")
    assert client.volumes.get(alpha.volume_id).status == "EXTERNAL"
    assert alpha.bytes_stored == group.members[0].bytes_stored

    machine.write_some(draw)
    content = machine.contents()
    later = hypervisor.backup(machine)
    assert [member.way for member in later.members] == ["incremental", "incremental"]
    beta = next(one for one in client.groups.get(later.group_id).members if one.name == "beta")
    assert beta.parent_id == members["beta"].id
    client.jobs.wait(client.backups.verify(beta.id).id, timeout=PATIENCE)

    # Restored to a node, and deleted, as any.
    volume = client.volumes.create(backup=beta.id)
    client.volumes.wait(volume.id, timeout=PATIENCE)
    again = client.backups.create(volume.id)
    client.backups.wait(again.id, timeout=PATIENCE)
    path = tmp_path / "again"
    restore(hypervisor.repository, again.id, path, create=True)
    with path.open("rb") as file:
        assert file.read(len(content["beta"])) == content["beta"]
        assert path.stat().st_size == GIB
        assert not any(file.read())
    client.groups.delete(group.group_id)
    client.groups.wait_deleted(group.group_id, timeout=PATIENCE)
    collect(client)
    listed = groups.listed(hypervisor.repository)
    assert later in listed
    assert group.group_id not in {one.group_id for one in listed}
    assert client.groups.get(later.group_id).status == "AVAILABLE"
    client.jobs.wait(client.backups.verify(beta.id).id, timeout=PATIENCE)


def test_a_collection_amid_a_backup_takes_nothing(
    machine: Machine, hypervisor: Hypervisor, client: Client
) -> None:
    draw = random.Random()
    machine.write_some(draw, 20)
    first = hypervisor.backup(machine)
    machine.write_some(draw, 20)
    group = hypervisor.backup(machine, during(lambda: collect(client)), concurrency=1)

    def delete_and_collect() -> None:
        # The parent of the one that is being saved is in use; the older one goes.
        client.groups.delete(first.group_id)
        client.groups.wait_deleted(first.group_id, timeout=PATIENCE)
        collect(client)

    machine.write_some(draw, 20)
    last = hypervisor.backup(machine, during(delete_and_collect), concurrency=1)
    collect(client)
    for one in (group, last):
        for backup_ in client.groups.get(one.group_id).members:
            client.jobs.wait(client.backups.verify(backup_.id).id, timeout=PATIENCE)


def test_a_disk_that_is_a_volume(machine: Machine, hypervisor: Hypervisor, client: Client) -> None:
    volume = client.volumes.create(size=1)
    client.volumes.wait(volume.id, timeout=PATIENCE)
    group = hypervisor.backup(machine, volumes={"alpha": volume.id})
    alpha, beta = client.groups.get(group.group_id).members
    assert (alpha.volume_id, beta.volume_id) == (
        volume.id,
        external_volume_id(client.account, "vm-beta"),
    )
    assert [one.id for one in client.backups.list(volume_id=volume.id)] == [alpha.id]
    with pytest.raises(errors.CannotBackUp, match="no disk gamma"):
        hypervisor.backup(machine, volumes={"gamma": volume.id})
    for source in (
        f"json:{{'target': \"iqn.2026-11.io.lunr:{volume.id}\", 'lun': 1}}",
        f"iscsi://10.0.0.2:3260/iqn.2026-11.io.lunr:{volume.id}/1",
        f"/dev/disk/by-path/ip-10.0.0.2:3260-iscsi-iqn.2026-11.io.lunr:{volume.id}-lun-1",
    ):
        disk = machine_disk("alpha", source)
        assert hypervisor.service.volume_id("vm", disk) == volume.id
    stranger = machine_disk("alpha", "iscsi://10.0.0.2/iqn.2026-11.io.lunr:nobodys/1")
    assert hypervisor.service.volume_id("vm", stranger) == external_volume_id(
        client.account, "vm-alpha"
    )


def machine_disk(name: str, source: str) -> Any:
    return machines.Disk(name, "", "", 1, {}, source)


def test_what_could_not_be_told_is_made_up_for(
    machine: Machine, hypervisor: Hypervisor, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = client.groups.put

    def lost(id: str, **told: Any) -> Any:
        if told["status"] == "AVAILABLE":
            raise Unreachable(url="here", cause="away")
        return put(id, **told)

    monkeypatch.setattr(client.groups, "put", lost)
    group = hypervisor.backup(machine)
    assert client.groups.get(group.group_id).status == "SAVING"
    monkeypatch.undo()
    # And one of which the service never heard.
    alone = hypervisor.backup(machine, service=None)
    hypervisor.service.create_missing(hypervisor.repository, "vm")
    for one in (group, alone):
        assert client.groups.get(one.group_id).status == "AVAILABLE"
    later = hypervisor.backup(machine)
    assert [member.way for member in later.members] == ["incremental", "incremental"]


def test_what_a_killed_one_left_is_forgotten(
    machine: Machine, hypervisor: Hypervisor, client: Client, lunr: Lunr
) -> None:
    now = datetime.now(UTC)
    left, running = (groups.new_id("vm", now - timedelta(minutes=n)) for n in (90, 1))
    manage = Context((str(lunr.root / "lunr.conf"),)).services
    for group_id in (left, running):
        backups = [{"id": f"{group_id}-a", "disk": "a", "volume_id": "va", "size_bytes": 1}]
        hypervisor.service.announce(group_id, "vm", now.isoformat(), backups)
        if group_id == left:
            manage.leases.expire(times.now() + timedelta(minutes=61))
    manage.close()
    assert client.groups.get(left).status == "ERROR"
    hypervisor.backup(machine)
    client.groups.wait_deleted(left, timeout=PATIENCE)
    assert client.groups.get(running).status == "SAVING", "another one may be at work"
    client.groups.delete(running)


def test_without_an_announcement_there_is_no_backup(
    machine: Machine, hypervisor: Hypervisor
) -> None:
    before = set(hypervisor.repository.backup_ids())
    away = Client("http://127.0.0.1:9", hypervisor.client.account, "nothing", retries=0)
    with pytest.raises(Unreachable):
        hypervisor.backup(machine, service=Service(away))
    assert set(hypervisor.repository.backup_ids()) == before
    machine.assert_untouched()


def test_one_that_is_deleted_or_cancelled_meanwhile(
    machine: Machine, hypervisor: Hypervisor, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.write_some(random.Random(), 20)

    def running() -> Any:
        (found,) = client.groups.list(status="SAVING", machine="vm")
        return found

    def delete() -> None:
        client.groups.delete(running().id)

    with pytest.raises(errors.GroupDeleted):
        hypervisor.backup(machine, during(delete), concurrency=1)
    machine.assert_untouched()

    complete = Service.complete

    def too_late(*args: Any) -> None:
        group_id = running().id
        client.groups.delete(group_id)
        client.groups.wait_deleted(group_id, timeout=PATIENCE)
        complete(*args)

    with monkeypatch.context() as patch, pytest.raises(errors.GroupDeleted):
        patch.setattr(Service, "complete", too_late)
        hypervisor.backup(machine)
    machine.assert_untouched()

    monkeypatch.setattr(announcements, "RENEW", 0.1)

    announced: list[announcements.GroupRegistration] = []
    announce = Service.announce

    def noted(*args: Any) -> announcements.GroupRegistration:
        announced.append(announce(*args))
        return announced[-1]

    monkeypatch.setattr(Service, "announce", noted)

    def cancel() -> None:
        client.jobs.cancel(running().job_id)
        wait_until(announced[-1].cancel.is_set, what="it is told")
        threading.Event().wait(1)  # for some looks of lunr.live.backup.abort_checks

    with pytest.raises(Cancelled):
        hypervisor.backup(machine, during(cancel), concurrency=1)
    machine.assert_untouched()
    wait_until(lambda: not list(client.groups.list(status="SAVING")), what="given up")
    group = hypervisor.backup(machine)
    assert client.groups.get(group.group_id).status == "AVAILABLE"


def test_what_a_machine_is_started_from_is_kept(
    machine: Machine, hypervisor: Hypervisor, client: Client, tmp_path: Path
) -> None:
    group = hypervisor.backup(machine)
    ids = [member.backup_id for member in group.members]

    def are_protected() -> list[bool]:
        return [client.backups.get(id).protected for id in ids]

    client.backups.update(ids[0], protected=True)  # somebody's own wish
    killed = instant_start.protected_backups(hypervisor.service, group, tmp_path)
    killed.__enter__()
    assert are_protected() == [True, True]
    with pytest.raises(LunrError, match="protected"):
        client.groups.delete(group.group_id)
    with instant_start.protected_backups(hypervisor.service, group, tmp_path):
        assert are_protected() == [True, True]
    assert are_protected() == [True, False]
    assert not list(tmp_path.glob("*.protected"))


def test_the_command(
    machine: Machine, hypervisor: Hypervisor, client: Client, lunr: Lunr, tmp_path: Path
) -> None:
    env = {
        "LUNR_STORE": hypervisor.url,
        "LUNR_KEY_FILE": str(hypervisor.key_file),
        "LUNR_URL": client.url,
        "LUNR_ACCOUNT": client.account,
        "LUNR_TOKEN": read_openrc(lunr.root / "openrc")["LUNR_TOKEN"],
    }

    def run(*words: object) -> str:
        result = CliRunner().invoke(live, list(map(str, words)), env=env)
        assert result.exit_code == 0, result.output
        return result.output

    told = run("backup", "--qmp", machine.qmp, "--scratch", tmp_path, "--json")
    group_id = json.loads(told)["group_id"]
    assert client.groups.get(group_id).status == "AVAILABLE"
    assert group_id in run("list")
    assert "being deleted" in run("delete", group_id)
    client.groups.wait_deleted(group_id, timeout=PATIENCE)
    assert group_id not in run("list")


def test_a_machine_of_more_disks(tmp_path: Path, hypervisor: Hypervisor, client: Client) -> None:
    disks = [Disk(f"d{n}", tmp_path / f"d{n}", 1 << 20, "raw", "virtio") for n in range(3)]
    machine = Machine(tmp_path, disks, name="more")
    try:
        group = hypervisor.backup(machine)
        assert len(client.groups.get(group.group_id).members) == 3
    finally:
        machine.end()


def test_the_daemon(
    machine: Machine, hypervisor: Hypervisor, client: Client, lunr: Lunr, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    files.write(token, read_openrc(lunr.root / "openrc")["LUNR_TOKEN"])
    config = tmp_path / "live.toml"
    config.write_text(f"""
[store]
url = "{hypervisor.url}"
key_file = "{hypervisor.key_file}"
[service]
url = "{client.url}"
account = "{client.account}"
token_file = "{token}"
[[machine]]
name = "kept"
qmp = "{machine.qmp}"
scratch = "{tmp_path}"
every = 1
keep = 1
""")
    argv = [sys.executable, "-m", "lunr.live.daemon.main", "--config", str(config)]
    top = str(Path(__file__).parents[3])
    with (tmp_path / "log").open("w") as log:
        daemon = subprocess.Popen(argv, stderr=log, env={**os.environ, "PYTHONPATH": top})
    try:
        wait_until(lambda: "Deleted kept-" in (tmp_path / "log").read_text(), what="retention")
    finally:
        daemon.terminate()
        daemon.wait(PATIENCE)
    found = list(client.groups.list(machine="kept", status="AVAILABLE"))
    assert 1 <= len(found) <= 2  # it may have been stopped between the two
    for group in client.groups.list(machine="kept"):
        if group.status != "AVAILABLE":
            client.groups.wait_deleted(group.id, timeout=PATIENCE)
    there = {group.group_id for group in groups.listed(hypervisor.repository, "kept")}
    assert there == {group.id for group in found}
