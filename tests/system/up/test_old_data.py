"""What the code of an earlier commit left: today's opens it, goes on with it, and loses nothing.

The data (tests/data) holds records in every state, jobs of every type, half-filled restores,
baselines, and a store with what killed writers left. All was left by a kill.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import pytest

from lunr.client import Client, errors
from lunr.common import files
from tests.data.old_content import digest_of
from tests.support.old_data import COMMITS, OldData
from tests.support.services import CHECKOUT, Tgtd
from tests.support.waiting import PATIENCE, wait_until
from tests.system.up.conftest import need_lunr
from tests.system.up.volumes import INITIATOR, export
from tools.demos.stage import Disk, Lunr


class Opened:
    """A service on old data.

    Attributes:
        old: the data, as it was before.
        lunr: the service.
        clients: by the accounts, each with the token that it had then; of "default" an admin's.
    """

    def __init__(self, old: OldData) -> None:
        self.old = old
        self.lunr = Lunr(old.root)
        self.lunr.wait_until_up()
        admin = self.lunr.client()
        accounts = ("second", "third", "fourth")
        self.clients = {a: Client(admin.url, a, old.tokens[a], PATIENCE) for a in accounts}
        self.clients["default"] = admin
        # It gets no new volumes, as nobody is there to make them.
        admin.admin.nodes.update("node2", status="MAINTENANCE")
        self._overcommit()

    @property
    def admin(self) -> Client:
        return self.clients["default"]

    def _overcommit(self) -> None:
        """Start the node again with room for all volumes, whatever room this machine has."""
        conf = self.old.root / "lunr.conf"
        conf.write_text(conf.read_text().replace("[node]\n", "[node]\novercommit = 100\n"))
        os.kill(self.lunr.parts()["storage"], signal.SIGKILL)
        before = self.admin.admin.nodes.get("node1").capacity_bytes
        wait_until(lambda: self.admin.admin.nodes.get("node1").capacity_bytes > 10 * before)

    def close(self) -> None:
        for client in self.clients.values():
            client.close()
        self.lunr.stop()

    @property
    def pool(self) -> Path:
        """Where the node's pool is mounted."""
        return self.old.root / "pool" / "mnt"

    def file(self, volume_id: str) -> Path:
        """Where the pool has a volume."""
        return self.pool / "volumes" / volume_id

    def jobs(self) -> list[dict[str, Any]]:
        """The jobs that were left, but those of the other node and of clients that are gone."""
        return [
            job
            for job in self.old.listed("jobs")
            if job["status"] in ("QUEUED", "RUNNING")
            and job["node_id"] != "node2"
            and job["kind"] != "group.save"
        ]

    def give_up_saves(self) -> None:
        """Delete the groups whose clients are gone; until then what is condemned is not swept."""
        saving = {"default": self.old.groups["saving"]}
        saving |= {account: f"{account}-group" for account in ("second", "third")}
        for account, id in saving.items():
            groups = self.clients[account].groups
            if groups.get(id).status != "DELETED":
                assert groups.get(id).status == "SAVING"
                groups.delete(id)
                groups.wait_deleted(id, timeout=PATIENCE)

    def wait_for_jobs(self) -> None:
        """Return when each of these is over."""
        self.give_up_saves()
        for job in self.jobs():
            self.clients[job["account_id"]].jobs.wait(job["id"], timeout=PATIENCE)


@pytest.fixture(scope="module", params=COMMITS)
def opened(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Opened]:
    need_lunr()
    old = OldData(tmp_path_factory.mktemp("old"), request.param)
    old.make_recent()
    found = Opened(old)
    try:
        yield found
    finally:
        found.close()


def test_every_job_is_done(opened: Opened) -> None:
    done = set()
    opened.give_up_saves()
    for job in opened.jobs():
        client = opened.clients[job["account_id"]]
        ended = client.jobs.wait(job["id"], timeout=PATIENCE)
        assert ended.status == "DONE", (job["kind"], ended.reason)
        done.add((job["kind"], job["status"]))
    assert len(done) == 2 * 16, done


def test_what_jobs_were_about_is_as_they_say(opened: Opened) -> None:
    opened.wait_for_jobs()
    client = opened.admin
    for fate in ("q", "r"):  # it was queued, it was running
        assert client.volumes.get(f"volume-create-{fate}").status == "ACTIVE"
        assert client.volumes.get(f"volume-delete-{fate}").status == "DELETED"
        assert not opened.file(f"volume-delete-{fate}").exists()
        assert client.volumes.get(f"volume-extend-{fate}").size == 2
        assert opened.file(f"volume-extend-{fate}").stat().st_size == 2 << 30
        (made,) = client.snapshots.list(volume_id=f"snapshot-create-{fate}")
        assert made.status == "AVAILABLE"
        assert not list(client.snapshots.list(volume_id=f"snapshot-delete-{fate}"))
        assert client.exports.get(f"export-create-{fate}").status == "ATTACHED"
        assert client.volumes.get(f"export-delete-{fate}").export_status is None
        (saved,) = client.backups.list(volume_id=f"backup-save-{fate}")
        assert saved.status == "AVAILABLE"
        assert client.backups.get(f"backup-delete-{fate}").status == "DELETED"
        assert client.backups.get(f"backup-verify-{fate}").verified_at is not None
        for kind in ("clone", "restore"):
            id = f"volume-{kind}-{fate}"
            client.volumes.wait(id, timeout=PATIENCE)
            assert digest_of(opened.file(id)) == opened.old.digests[id]
    # A failed one is shown as it was, and can be got rid of.
    for id in ("volume-create-f", "volume-clone-f", "volume-restore-f", "cancelled"):
        assert client.volumes.get(id).status == "ERROR"
        client.volumes.delete(id)
        client.volumes.wait_deleted(id, timeout=PATIENCE)
    # What a killed save had read from is gone, or has become the baseline.
    assert list((opened.pool / "backups").iterdir()) == []


def test_half_filled_restores_become_whole(opened: Opened, tmp_path: Path) -> None:
    client = opened.admin
    # Nobody fills the one, and the fill of the other had failed.
    for id in ("half", "stuck"):
        assert client.volumes.get(id).status == "RESTORING"
        client.volumes.update(id, fill="eager")
    for id in ("half", "stuck", "lazy", "clone-of-half"):
        assert client.volumes.wait(id, timeout=PATIENCE).status == "ACTIVE"
        copy = tmp_path / id
        Disk(export(client, id), tmp_path).read_image(copy, lambda _: None)
        assert digest_of(copy) == opened.old.digests[id], id
        assert digest_of(opened.file(id)) == opened.old.digests[id], id
    # Its snapshot lacked what it lacked then, and still does.
    (snapshot,) = client.snapshots.list(volume_id="half")
    made = client.volumes.create(snapshot=snapshot.id).id
    client.volumes.wait(made, timeout=PATIENCE)
    assert digest_of(opened.file(made)) == opened.old.digests[snapshot.id]


def test_no_byte_on_the_node_is_lost(opened: Opened) -> None:
    checked = 0
    for volume in opened.old.listed("volumes"):
        id = volume["id"]
        if volume["node_id"] == "node1" and volume["status"] == "ACTIVE":
            assert digest_of(opened.file(id)) == opened.old.digests[id], id
            assert opened.file(id).stat().st_size >= volume["size"] << 30
            checked += 1
    for snapshot in opened.old.listed("snapshots"):
        if snapshot["status"] == "AVAILABLE" and snapshot["volume_id"] != "half":
            file = opened.pool / "snapshots" / f"{snapshot['volume_id']}.{snapshot['id']}"
            assert digest_of(file) == opened.old.digests[snapshot["id"]], snapshot
            checked += 1
    assert checked > 20


def test_a_backup_goes_on_from_the_baseline(opened: Opened) -> None:
    client = opened.admin
    taken = client.backups.wait(client.backups.create("main").id, timeout=PATIENCE)
    assert taken.parent_id == "main-next"
    # Without it a chunk of 4 MiB would be read at each of three places.
    assert 0 < taken.bytes_read < 1 << 20
    restored = client.volumes.create(backup=taken.id).id
    client.volumes.wait(restored, timeout=PATIENCE)
    assert digest_of(opened.file(restored)) == opened.old.digests["main"]


def test_groups_of_live_backups(opened: Opened) -> None:
    client, groups = opened.admin, opened.old.groups
    assert {groups["full"], groups["next"]} <= {
        group.id for group in client.groups.list() if group.status == "AVAILABLE"
    }
    assert opened.clients["fourth"].groups.get("fourth-group").status == "ERROR"
    opened.give_up_saves()
    # What garbage collection leaves is restored below.
    for account in ("default", "second", "third", "fourth"):
        client.admin.collect(account, wait=True, timeout=PATIENCE)


def test_every_backup_restores(opened: Opened) -> None:
    restored = {}
    for backup in opened.old.listed("backups"):
        id, client = backup["id"], opened.clients[backup["account_id"]]
        if backup["status"] != "AVAILABLE" or backup["internal"]:
            continue
        if id == "damaged-full":
            with pytest.raises(errors.Conflict, match="damaged"):
                client.volumes.create(backup=id)
        else:
            restored[id] = client, client.volumes.create(backup=id).id
    assert {"main-full", "main-again", "plain-next", "second-next"} < restored.keys()
    for id, (client, volume_id) in restored.items():
        client.volumes.wait(volume_id, timeout=PATIENCE)
        assert digest_of(opened.file(volume_id)) == opened.old.digests[id], id


def test_an_export_is_as_its_initiator_knows_it(opened: Opened, tmp_path: Path) -> None:
    before = opened.old.answers["/v1.0/default/volumes/used/export"]
    now = opened.admin.exports.get("used")
    assert now.status == "ATTACHED" and now.initiator == INITIATOR
    for name in ("target_iqn", "auth_username", "auth_password"):
        assert getattr(now, name) == before[name]
    copy = tmp_path / "copy"
    Disk(now, tmp_path).read_image(copy, lambda _: None)
    assert digest_of(copy) == opened.old.digests["used"]


def test_nothing_is_pruned_and_nothing_forgotten(opened: Opened) -> None:
    opened.wait_for_jobs()
    client = opened.admin
    for backup in opened.old.listed("backups"):
        if backup["status"] == "AVAILABLE" and not backup["internal"]:
            seen = opened.clients[backup["account_id"]].backups.get(backup["id"])
            assert (seen.status, seen.damaged) == ("AVAILABLE", backup["damaged"])
    assert client.backups.get("main-patched").protected
    assert client.schedules.list()
    with pytest.raises(errors.Conflict, match="protected"):
        client.backups.delete("main-patched")


def test_copies_reach_their_node(
    opened: Opened, tgtd: Tgtd, xfs_mount: Path, tmp_path: Path
) -> None:
    """Both the one that is in the store already and the one that was only asked for."""
    client = opened.admin
    token = tmp_path / "token"
    files.write(token, opened.old.tokens["node2"] + "\n")
    conf = RawConfigParser()
    conf.read(opened.old.root / "lunr.conf")
    for section, values in (
        ("node", {"id": "node2", "token_file": token, "overcommit": 10}),
        ("node", {"state_dir": tmp_path / "state", "run_dir": tmp_path / "run"}),
        ("files", {"path": xfs_mount}),
        ("tgt", {"socket": tgtd.socket, "portal": tgtd.portal}),
    ):
        for name, value in values.items():
            conf.set(section, name, str(value))
    with (tmp_path / "node2.conf").open("w") as file:
        conf.write(file)
    argv = [sys.executable, "-m", "lunr.storage.main", "--config-file", f"{tmp_path}/node2.conf"]
    with (tmp_path / "node2.log").open("wb") as log:
        agent = subprocess.Popen(
            argv, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        for id in ("copy-made", "copy-asked-for"):
            client.volumes.wait(id, timeout=PATIENCE)
            assert digest_of(xfs_mount / "volumes" / id) == opened.old.digests[id]
        wait_until(
            lambda: (
                not [
                    one
                    for one in client.admin.backups(volume_id="clone-of-main")
                    if one.internal and one.status != "DELETED"
                ]
            ),
            what="what was saved for the copies is gone",
        )
    finally:
        agent.send_signal(signal.SIGTERM)
        agent.wait(PATIENCE)


def _manage(opened: Opened, *args: str) -> str:
    config = ("--config-file", str(opened.old.root / "lunr.conf"))
    argv = [sys.executable, "-m", "lunr.manage.main", *config, *args]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, cwd=CHECKOUT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_operators_commands(opened: Opened) -> None:
    opened.wait_for_jobs()
    assert "ready" in _manage(opened, "database", "check")
    accounts = {account["id"] for account in json.loads(_manage(opened, "account", "list"))}
    assert {"default", "second", "third", "fourth"} <= accounts
    assert "node2" in _manage(opened, "node", "list")
    assert len(json.loads(_manage(opened, "token", "list", "second"))) == 1
    keys = json.loads(_manage(opened, "key", "list"))
    assert keys["unreadable"] == 0
    assert all(key["backups"] > 0 for key in keys["keys"]) and len(keys["keys"]) == 2
    assert json.loads(_manage(opened, "record", "export", "main-full"))
    rebuilt = json.loads(_manage(opened, "rebuild", "--from-store"))
    assert (rebuilt["made"], rebuilt["failed"]) == (0, [])
    assert rebuilt["there"] > 20
