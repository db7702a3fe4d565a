"""``lunr live``, as a person uses it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from lunr.live.backup import groups
from lunr.live.cli import live
from tests.system.live.conftest import Vault
from tests.system.live.machines import Machine


def run(vault: Vault, *arguments: object, code: int = 0) -> str:
    env = {"LUNR_STORE": vault.url, "LUNR_KEY_FILE": None}
    result = CliRunner().invoke(live, list(map(str, arguments)), env=env)
    assert result.exit_code == code, result.output
    return result.output


def run_json(vault: Vault, *arguments: object) -> dict[str, Any]:
    return dict(json.loads(run(vault, *arguments, "--json")))


def test_the_whole_of_it(machine: Machine, vault: Vault, tmp_path: Path) -> None:
    machine.write_some(random.Random(), 20)
    said = run(vault, "backup", "--qmp", machine.qmp, "--scratch", tmp_path)
    assert "alpha: full (it is the first)" in said
    assert "stood still for" in said
    first = machine.contents()
    machine.write_some(random.Random())
    group = run_json(vault, "backup", "--qmp", machine.qmp, "--scratch", tmp_path)
    assert [member["way"] for member in group["members"]] == ["incremental", "incremental"]
    listed = run_json(vault, "list", "--vm", "vm")
    assert listed["groups"][0] == group
    assert listed["unfinished"] == {}
    oldest = listed["groups"][1]["group_id"]
    run(vault, "restore", oldest, tmp_path / "back")
    for disk, content in first.items():
        assert (tmp_path / "back" / f"{disk}.raw").read_bytes() == content
    said = run(vault, "restore", group["group_id"], tmp_path / "back", code=1)
    assert "is there already" in said
    run(vault, "delete", oldest)
    assert run_json(vault, "list")["groups"] == [group]
    run(vault, "restore", oldest, tmp_path / "other", code=1)
    assert not (tmp_path / "other").exists()


def test_some_disks_and_then_all(machine: Machine, vault: Vault, tmp_path: Path) -> None:
    draw = random.Random()

    def backup(*more: str) -> dict[str, str]:
        machine.write_some(draw, 20)
        group = run_json(vault, "backup", "--qmp", machine.qmp, "--scratch", tmp_path, *more)
        restored = vault.restored(groups.load(vault.repository, group["group_id"]))
        assert restored == {disk: machine.contents()[disk] for disk in restored}
        return {member["disk"]: member["way"] for member in group["members"]}

    assert backup("--disks", "beta,alpha") == {"beta": "full", "alpha": "full"}
    assert backup("--disks", "beta") == {"beta": "incremental"}
    # What was written to alpha meanwhile is not lost.
    assert backup() == {"alpha": "incremental", "beta": "incremental"}
    arguments = ("backup", "--qmp", machine.qmp, "--disks", "alpha,gamma")
    assert "no disk gamma; it has: alpha, beta" in run(vault, *arguments, code=1)


#: Killed as it is about to read its N-th object, or has given the first file its name.
DOOMED = """
import os, signal, sys
from pathlib import Path
from lunr.backup.stores.files import FileStore
from lunr.live.cli import live
left, get, rename = int(sys.argv.pop(1)), FileStore.get, Path.rename

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def doomed_get(*args, **kwargs):
    global left
    left -= 1
    return die() if left == 0 else get(*args, **kwargs)

def doomed_rename(*args):
    rename(*args)
    die()

FileStore.get, Path.rename = doomed_get, doomed_rename
live()
"""


def test_a_restore_that_was_killed(machine: Machine, vault: Vault, tmp_path: Path) -> None:
    machine.write_some(random.Random(), 20)
    group = vault.backup(machine)
    folder = tmp_path / "back"
    words = ["restore", group.group_id, str(folder), "--store", vault.url]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    for step in (1, 4, 8, 12, 0):
        argv = [sys.executable, "-c", DOOMED, str(step), *words]
        done = subprocess.run(argv, env=env, capture_output=True)
        assert done.returncode == -9, done.stderr
        there = [path.name for path in folder.glob("*.raw")]
        assert len(there) == (0 if step else 1), "none has its name before all are whole"
    said = run(vault, *words, code=1)
    assert f"{there[0]} is there already" in said
    assert "name another folder" in said
    (folder / there[0]).unlink()
    run(vault, *words)
    for disk, content in machine.contents().items():
        assert (folder / f"{disk}.raw").read_bytes() == content
    assert len(list(folder.iterdir())) == 2


def test_what_a_killed_backup_left_is_shown_and_can_be_deleted(
    machine: Machine, vault: Vault
) -> None:
    group = vault.backup(machine)
    vault.repository.delete_root(group.group_id)  # as if it had been killed before this was written
    assert vault.ids() == {f"{group.group_id}-alpha", f"{group.group_id}-beta"}
    assert "unfinished" in run(vault, "list")
    assert run_json(vault, "list")["groups"] == []
    run(vault, "delete", group.group_id)
    assert vault.ids() == set()
    assert "no complete group" in run(vault, "delete", group.group_id, code=1)


def test_mistakes_are_told_in_a_sentence(vault: Vault, tmp_path: Path) -> None:
    assert "can't be reached" in run(vault, "backup", "--qmp", tmp_path / "nobody", code=1)
    assert "an id is" in run(vault, "restore", "../x", tmp_path, code=1)
    assert "an id is" in run(vault, "backup", "--qmp", "/x", "--vm", "a/b", code=1)
