"""`lunr up` as a person runs it: the main job in small, deaths, and what it says when it can't."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from lunr.backup import stores
from lunr.client import Client
from lunr.common import units
from tests.support.faults.relay import MortalSwift
from tests.support.waiting import PATIENCE, free_port, wait_until
from tests.system.up.volumes import (
    answers,
    backup,
    can_be_read,
    clear,
    delete_export,
    export,
    holds,
    verify,
    volume,
)
from tools.demos.stage import Disk, Lunr, Session, run


def test_the_main_job(lunr: Lunr, client: Client, image: Path, tmp_path: Path) -> None:
    id = volume(client)
    disk = Disk(export(client, id), tmp_path)
    disk.write_image(image, lambda _: None)
    first = backup(client, id)
    changed = tmp_path / "changed"
    run(["cp", "--sparse=always", image, changed])
    patch = tmp_path / "patch"
    patch.write_bytes(os.urandom(64 * units.KIB))
    with changed.open("r+b") as file:
        file.seek(500 * units.MIB)
        file.write(patch.read_bytes())
    session = Session(disk, tmp_path)
    try:
        session.write(patch, 500 * units.MIB, 64 * units.KIB)
        session.flush()
        wait_until(lambda: client.exports.get(id).sessions, what="the session is listed")
        second = backup(client, id)
    finally:
        session.close()
    stored = client.backups.get(second).bytes_stored
    assert 0 < stored < 5 * units.MIB
    for taken, content in ((first, image), (second, changed)):
        restored = volume(client, backup=taken)
        assert holds(client, restored, content, tmp_path, every_byte=True)
        delete_export(client, restored)
    assert verify(client, second) == "DONE"
    clear(client)
    client.admin.collect(client.account, wait=True, timeout=PATIENCE)
    store = stores.open_store(f"files:{lunr.root}/store", client.account)
    assert [name for name, _ in store.list("")] == []


def test_killed_and_started_again_everything_is_as_it_was(
    lunr: Lunr, client: Client, image: Path, tmp_path: Path
) -> None:
    id = volume(client)
    before = export(client, id)
    Disk(before, tmp_path).write_image(image, lambda _: None)
    kept = backup(client, id)
    lunr.kill()
    assert lunr.parts() == {}
    lunr.start()
    lunr.wait_until_up()
    after = client.exports.get(id)
    assert after.status == "ATTACHED"
    for name in ("target_iqn", "target_portal", "auth_username", "auth_password"):
        assert getattr(after, name) == getattr(before, name)
    # The same initiator, with what it was told before, finds its data.
    disk = Disk(before, tmp_path)
    wait_until(lambda: can_be_read(disk, image, tmp_path), what="the target is back")
    assert client.backups.get(kept).status == "AVAILABLE"
    assert holds(client, volume(client, backup=kept), image, tmp_path)


@pytest.mark.parametrize("part", ["api", "storage", "orbit", "tgtd"])
def test_a_part_that_dies_is_started_again(lunr: Lunr, client: Client, part: str) -> None:
    id = volume(client)
    export(client, id)
    pid = lunr.parts()[part]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: lunr.parts().get(part, pid) != pid, what=f"{part} is back")
    wait_until(lambda: answers(client), what="the API answers")
    another = volume(client)
    export(client, another)
    assert client.exports.get(id).status == "ATTACHED"


def test_stopped_it_leaves_nothing(root: Path) -> None:
    service = Lunr(root)
    try:
        service.wait_until_up()
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        assert any(f" {root}/" in line for line in mounts)
    finally:
        service.stop()
    assert service.process.returncode == 0
    assert service.parts() == {}
    assert str(root) not in Path("/proc/self/mountinfo").read_text()


def test_on_postgresql_and_swift_a_backup_outlives_swifts_absence(
    root: Path, postgresql: str, mortal_swift: MortalSwift, image: Path, tmp_path: Path
) -> None:
    access = mortal_swift.access
    env = {"ST_AUTH": access["auth_url"], "ST_USER": access["user"], "ST_KEY": access["key"]}
    service = Lunr(root, "--db", postgresql, "--store", f"swift:{uuid.uuid4().hex[:12]}", env=env)
    try:
        service.wait_until_up()
        client = service.client()
        id = volume(client)
        Disk(export(client, id), tmp_path).write_image(image, lambda _: None)
        taken = client.backups.create(id)
        wait_until(lambda: client.backups.get(taken.id).status == "SAVING", what="it began")
        mortal_swift.kill()
        wait_until(lambda: client.jobs.get(taken.job_id or "").status != "RUNNING")
        assert client.backups.get(taken.id).status != "AVAILABLE", "it has a hole"
        mortal_swift.start()
        client.backups.wait(taken.id, timeout=2 * PATIENCE)
        assert holds(client, volume(client, backup=taken.id), image, tmp_path)
    finally:
        service.stop()


def up(root: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """`lunr up` that is expected to end at once."""
    argv = [sys.executable, "-m", "lunr.client.cli.main", "up", "--root", str(root), *args]
    return subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE)


def test_a_second_one_on_the_same_folder_is_refused(lunr: Lunr) -> None:
    result = up(lunr.root, "--api-port", str(free_port()))
    assert result.returncode == 1
    assert "another `lunr up` runs" in result.stderr


@pytest.mark.parametrize("option", ["--api-port", "--portal"])
def test_a_port_that_is_taken_is_named(root: Path, option: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ports = {"--api-port": str(free_port()), "--portal": f"127.0.0.1:{free_port()}"}
        ports[option] = port if option == "--api-port" else f"127.0.0.1:{port}"
        result = up(root, *(word for pair in ports.items() for word in pair))
    assert result.returncode == 1
    assert option in result.stderr
    assert port in result.stderr


def test_a_swift_store_without_credentials_says_what_to_set(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.startswith(("ST_", "OS_")):
            monkeypatch.delenv(name)
    ports = ("--api-port", str(free_port()), "--portal", f"127.0.0.1:{free_port()}")
    result = up(root, *ports, "--store", "swift:lunr")
    assert result.returncode == 1
    assert "ST_AUTH" in result.stderr


def test_what_holds_secrets_is_readable_by_its_owner_only(lunr: Lunr) -> None:
    for path in [lunr.root, *(lunr.root / n for n in ("openrc", "lunr.conf", "up.json", "keys"))]:
        assert path.stat().st_mode & 0o077 == 0, path
    for path in (lunr.root / "keys").iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
