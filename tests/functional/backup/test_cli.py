from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lunr.backup.cli import engine


class Cli:
    def __init__(self, folder: Path) -> None:
        self.store = f"files:{folder}/store"

    def run(self, *arguments: object) -> Result:
        env = {"LUNR_STORE": self.store, "LUNR_KEY_FILE": None}
        return CliRunner().invoke(engine, list(map(str, arguments)), env=env)

    def ok(self, *arguments: object) -> str:
        result = self.run(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    def json(self, *arguments: object) -> dict[str, Any]:
        return dict(json.loads(self.ok(*arguments, "--json")))


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def test_the_whole_of_it(cli: Cli, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    first = os.urandom(5 << 20) + bytes(7 << 20)
    disk.write_bytes(first)
    did = cli.json("save", disk, "--id", "monday")
    assert did["volume_id"] == "disk-img"
    assert did["bytes_read"] == len(first)
    assert did["objects_stored"] == 3
    disk.write_bytes(first[:-1] + b"!")
    did = cli.json("save", disk, "--id", "tuesday", "--parent", "latest")
    assert did["parent_id"] == "monday"
    assert did["objects_stored"] == 2
    assert "Saved wednesday: read" in cli.ok(
        "save", disk, "--id", "wednesday", "--parent", "monday"
    )
    listed = cli.json("list")["backups"]
    assert [one["backup_id"] for one in listed] == ["wednesday", "tuesday", "monday"]
    assert "tuesday    disk-img  monday" in cli.ok("list")
    cli.ok("restore", "monday", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == first
    assert cli.json("verify")["backups"] == 3
    assert cli.json("verify", "monday")["backups"] == 1
    for backup_id in ("monday", "tuesday", "wednesday"):
        cli.ok("delete", backup_id)
    swept = cli.json("collect")
    assert swept["pending"] == []
    assert swept["deleted"] == 3 + 2 + 2
    assert not list(tmp_path.rglob("store/default/*"))
    assert cli.ok("collect") == "Deleted 0 objects, 0 B.\n"


def test_an_id_is_saved_once(cli: Cli, tmp_path: Path) -> None:
    disk, other = tmp_path / "disk.img", tmp_path / "other.img"
    disk.write_bytes(b"last week")
    other.write_bytes(b"another disk")
    cli.ok("save", disk, "--id", "monday")
    disk.write_bytes(b"this week")
    for source in (disk, other):
        refused = cli.run("save", source, "--id", "monday")
        assert refused.exit_code == 1
        assert "There is a backup monday already, of disk-img, made at" in refused.stderr
    cli.ok("restore", "monday", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"last week"


def test_a_target_in_use_is_refused(cli: Cli, tmp_path: Path) -> None:
    disk, target = tmp_path / "disk.img", tmp_path / "target.img"
    disk.write_bytes(b"saved" * 1000)
    target.write_bytes(b"mine!" * 1000)
    cli.ok("save", disk, "--id", "monday")
    writer = subprocess.Popen(["sleep", "600"], stdin=target.open("r+b"))
    try:
        refused = cli.run("restore", "monday", target)
        assert refused.exit_code == 1
        assert f"open in process {writer.pid} (sleep)" in refused.stderr
        assert "--force" in refused.stderr
        assert target.read_bytes() == b"mine!" * 1000
        cli.ok("restore", "monday", target, "--force")
    finally:
        writer.kill()
        writer.wait()
    assert target.read_bytes() == disk.read_bytes()
    cli.ok("restore", "monday", target)  # nobody uses it any more


def test_another_volume_of_the_same_image(cli: Cli, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(b"image" * 2_000_000)
    cli.ok("save", tmp_path / "one", "--id", "first")
    cli.ok("save", tmp_path / "one", "--id", "other")
    did = cli.json("save", tmp_path / "two", "--id", "second", "--like", "other", "--like", "first")
    assert (did["volume_id"], did["parent_id"], did["objects_stored"]) == ("two", None, 1)
    missing = cli.run("save", tmp_path / "two", "--id", "third", "--like", "none")
    assert missing.exit_code == 1
    assert "There is no backup none" in missing.output
    assert cli.run("save", tmp_path / "two", "--id", "x", "--like", "../y").exit_code == 2


def test_grace(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"x" * 1000)
    cli.ok("save", tmp_path / "disk", "--id", "b")
    cli.ok("delete", "b")
    swept = cli.json("collect", "--grace", 100)
    assert swept["deleted"] == 0
    assert "100 s are needed" in swept["pending"][0]
    assert cli.json("collect", "--grace", 0)["deleted"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["save", "{disk}", "--id", "a/b"], 2, "letters, digits"),
        (["save", "{disk}", "--id", "x" * 65], 2, "letters, digits"),
        (["save", "{disk}"], 2, "--id"),
        (["save", "/nowhere", "--id", "a"], 2, "does not exist"),
        (["save", "{disk}", "--id", "a", "--parent", "none"], 1, "no backup none"),
        (["save", "{disk}", "--id", "a", "--parent", "../x"], 1, "letters, digits"),
        (["save", "{disk}", "--id", "a", "--store", "http://x"], 1, "files:/PATH or swift:PREFIX"),
        (["save", "{disk}", "--id", "a", "--key-file", "{disk}"], 1, "chmod 600"),
        (["save", "{disk}", "--id", "a", "--concurrency", "0"], 2, "1<=x<=32"),
        (["restore", "none", "/nowhere/x"], 1, "no backup none"),
        (["verify", "none"], 1, "no backup none"),
        (["delete", "none"], 1, "no backup none"),
        (["collect", "--grace", "-1"], 2, "x>=0"),
    ],
)
def test_bad_input(cli: Cli, tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"x")
    disk.chmod(0o644)
    result = cli.run(*(argument.format(disk=disk) for argument in arguments))
    assert result.exit_code == code, result.output
    assert said in result.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path != disk]


def test_another_key_is_told(cli: Cli, tmp_path: Path) -> None:
    disk, key = tmp_path / "disk", tmp_path / "key"
    disk.write_bytes(b"x")
    key.write_text("11" * 32)
    key.chmod(0o600)
    cli.ok("save", disk, "--id", "b", "--key-file", key)
    result = cli.run("restore", "b", tmp_path / "copy")
    assert result.exit_code == 1
    assert "another master key" in result.stderr
    assert "Warning: roots/b" in cli.run("list").stderr
    collected = cli.run("collect")
    assert collected.exit_code == 1
    cli.ok("restore", "b", tmp_path / "copy", "--key-file", key)


def test_two_repositories_share_nothing(cli: Cli, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"x" * 5000)
    for repository in ("one", "two"):
        assert (
            cli.json("save", disk, "--id", "b", "--repository", repository)["objects_stored"] == 2
        )
    names = [
        {path.name for path in (tmp_path / "store" / repository).rglob("chunks/*/*")}
        for repository in ("one", "two")
    ]
    assert not {name.partition(".")[0] for name in names[0]} & {
        name.partition(".")[0] for name in names[1]
    }
    assert cli.run("delete", "b", "--repository", "three").exit_code == 1


def test_verify_names_what_is_damaged_and_the_next_backup_is_whole(
    cli: Cli, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"x" * 5000)
    cli.ok("save", disk, "--id", "monday")
    (chunk,) = (tmp_path / "store").rglob("chunks/*/*")
    chunk.write_bytes(chunk.read_bytes()[:-1])
    for arguments in ([], ["monday"], ["--share", "1000"]):  # it is read again as it was bad
        result = cli.run("verify", *arguments)
        assert result.exit_code == 1
        assert "1 backups are damaged" in result.stderr
        assert f"monday: The object chunks/{chunk.parent.name}/{chunk.name}" in result.stderr
    cli.ok("save", disk, "--id", "tuesday", "--parent", "monday")
    cli.ok("restore", "tuesday", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == disk.read_bytes()
    cli.ok("delete", "monday")
    cli.ok("collect")
    assert cli.json("verify")["damaged"] == {}


def test_a_backup_can_be_left_plain(cli: Cli, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"for all to read")
    plain = ("--encryption", "none", "--compression", "none")

    def shown() -> bool:
        chunks = (tmp_path / "store").rglob("chunks/*/*")
        return any(b"for all to read" in path.read_bytes() for path in chunks)

    cli.ok("save", disk, "--id", "secret")
    cli.ok("save", disk, "--id", "same", "--parent", "secret", *plain)  # it uses what is there
    assert not shown()
    cli.ok("save", disk, "--id", "plain", *plain)
    assert shown()


def test_backups_of_an_older_key_are_read(cli: Cli, tmp_path: Path) -> None:
    disk, key = tmp_path / "disk", tmp_path / "key"
    disk.write_bytes(b"x" * 5000)
    key.write_text("11" * 32)
    key.chmod(0o600)
    keyed = ("--key-file", str(key))
    cli.ok("save", disk, "--id", "old", *keyed)
    key.write_text("22" * 32 + "\n" + "11" * 32)
    cli.ok("save", disk, "--id", "new", "--parent", "latest", *keyed)
    for backup in ("old", "new"):
        cli.ok("restore", backup, tmp_path / backup, *keyed)
        assert (tmp_path / backup).read_bytes() == disk.read_bytes()
    key.write_text("22" * 32)
    assert "another master key" in cli.run("restore", "old", tmp_path / "x", *keyed).stderr
    cli.ok("restore", "new", tmp_path / "y", *keyed)
