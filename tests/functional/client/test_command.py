"""`lunr` as a process, as people and scripts run it."""

from __future__ import annotations

import json
import os
import pty
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lunr.client import Client
from lunr.client.cli.main import cli
from tests.functional.client.conftest import FakeNode
from tests.support.services import need_command
from tests.support.waiting import PATIENCE, wait_until

LUNR = [sys.executable, "-m", "lunr.client.cli.main"]
Env = dict[str, str]


def lunr(env: Mapping[str, str | None], *args: str, code: int = 0) -> Any:
    """Run a command that prints JSON, in this process for speed, and return what it says."""
    done = CliRunner(env=env).invoke(cli, [*args, "--json"], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return json.loads(done.stdout) if done.stdout else done.stderr


def test_the_main_job_in_words(env: Env, node: FakeNode) -> None:
    volume = lunr(env, "volume", "create", "--size", "1G", "--name", "data", "-m", "os=debian")
    assert (volume["status"], volume["metadata"]) == ("ACTIVE", {"os": "debian"})
    id = volume["id"]
    assert lunr(env, "volume", "show", id) == volume
    assert id in [v["id"] for v in lunr(env, "volume", "list", "--name", "data")]
    assert lunr(env, "volume", "extend", id, "2")["size"] == 2
    assert lunr(env, "volume", "update", id, "--clear-metadata")["metadata"] == {}
    export = lunr(env, "export", "create", id, "--ip", "10.0.0.5")
    assert (export["status"], export["ip"]) == ("ATTACHED", "10.0.0.5")
    password = CliRunner(env=env).invoke(cli, ["export", "password", id])
    assert password.stdout == export["auth_password"] + "\n"
    backup = lunr(env, "backup", "create", id, "--full")
    assert (backup["status"], backup["bytes_stored"]) == ("AVAILABLE", 5)
    assert lunr(env, "backup", "verify", backup["id"])["status"] == "DONE"
    again = lunr(env, "backup", "restore", backup["id"], "--size", "3")
    assert (again["usable"], again["size"], again["backup"]) == (True, 3, backup["id"])
    assert lunr(env, "volume", "wait", again["id"])["status"] == "ACTIVE"
    snapshot = lunr(env, "snapshot", "create", id)
    assert [s["id"] for s in lunr(env, "snapshot", "list", "--volume", id)] == [snapshot["id"]]
    of_it = lunr(env, "backup", "create", id, "--snapshot", snapshot["id"])
    assert (of_it["status"], of_it["snapshot"]) == ("AVAILABLE", snapshot["id"])
    lunr(env, "backup", "delete", of_it["id"])
    refused = lunr(env, "volume", "delete", id, code=1)
    assert (refused[0]["status"], refused[0]["code"]) == ("FAILED", "in_use")
    lunr(env, "export", "delete", id)
    lunr(env, "snapshot", "delete", snapshot["id"])
    gone = lunr(env, "volume", "delete", id, again["id"])
    assert [volume["status"] for volume in gone] == ["DELETED", "DELETED"]
    assert lunr(env, "backup", "delete", backup["id"])[0]["status"] == "DELETED"
    assert lunr(env, "account", "collect", "acme")["kind"] == "repository.sweep"


def test_an_operators_commands(env: Env, node: FakeNode) -> None:
    name = f"c{os.urandom(4).hex()}"
    account = lunr(env, "account", "create", name, "--quota", "volumes=3")
    assert account["quotas"]["volumes"] == 3
    token = lunr(env, "account", "token", "create", name)
    assert token["id"] in [t["id"] for t in lunr(env, "account", "token", "list", name)]
    theirs = {**env, "LUNR_ACCOUNT": name, "LUNR_TOKEN": token["token"]}
    assert lunr(theirs, "volume", "list") == []
    assert "(forbidden, request " in lunr(theirs, "node", "list", code=1)
    lunr(env, "account", "token", "delete", name, token["id"])
    assert "(unauthorized, request " in lunr(theirs, "volume", "list", code=1)
    assert lunr(env, "account", "delete", name) == {"id": name, "status": "DELETED"}
    assert lunr(env, "node", "create", name, "--weight", "7")["token"]
    assert lunr(env, "node", "update", name, "--status", "MAINTENANCE")["weight"] == 7
    lunr(env, "node", "delete", name)
    lunr(env, "type", "create", name, "--max-size", "1T")
    assert lunr(env, "type", "update", name, "--read-iops", "5")["max_size"] == 1024
    assert name in [t["name"] for t in lunr(env, "type", "list")]
    lunr(env, "type", "delete", name)
    for things in ("volume", "snapshot", "backup", "job"):
        assert isinstance(lunr(env, things, "list", "--all-accounts", "--limit", "1"), list)
    assert isinstance(lunr(env, "export", "list"), list)


def test_an_openrc_file_is_enough(openrc: Path, node: FakeNode) -> None:
    bare: dict[str, str | None] = dict.fromkeys(("LUNR_URL", "LUNR_ACCOUNT", "LUNR_TOKEN"))
    assert isinstance(lunr(bare, "--openrc", str(openrc), "node", "list"), list)
    other = lunr(bare, "--openrc", str(openrc), "--account", "none", "volume", "list", code=1)
    assert other.startswith("error: ")


def start_on_terminal(env: Env, *args: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start a command that has a terminal for everything; gives the other end of it."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*LUNR, *args],
        env={**env, "TERM": "xterm", "COLUMNS": "100"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    return process, ours


def read_terminal(ours: int, until: str) -> str:
    """What the terminal shows until it shows `until`, or the command ended."""
    shown = b""
    deadline = time.monotonic() + PATIENCE
    while until.encode() not in shown and time.monotonic() < deadline:
        if not select.select([ours], [], [], 0.1)[0]:
            continue
        try:
            shown += os.read(ours, 65536)
        except OSError:  # EIO: nobody has the other end open any more
            break
    return shown.decode(errors="replace")


def test_a_person_sees_a_bar_and_then_a_table(env: Env, node: FakeNode) -> None:
    node.held.add("volume.create")
    process, terminal = start_on_terminal(env, "volume", "create", "--size", "2")
    assert "50 %, 1.0 GiB of 2.0 GiB" in read_terminal(terminal, "of 2.0 GiB")
    node.held.clear()
    shown = read_terminal(terminal, "nothing more")
    assert process.wait(PATIENCE) == 0
    os.close(terminal)
    assert "export_status" in shown
    assert "ACTIVE" in shown


def test_a_person_sees_how_far_a_long_delete_is(env: Env, node: FakeNode, client: Client) -> None:
    id = client.volumes.wait(client.volumes.create(size=2).id, timeout=PATIENCE).id
    node.held.add("volume.delete")
    process, terminal = start_on_terminal(env, "volume", "delete", "--yes", id)
    assert "DELETING" in (shown := read_terminal(terminal, "of 2.0 GiB"))
    assert "50 %, 1.0 GiB of 2.0 GiB" in shown
    node.held.clear()
    assert f"volume {id} is gone" in read_terminal(terminal, "is gone")
    assert process.wait(PATIENCE) == 0
    os.close(terminal)


def test_a_person_is_asked(env: Env, client: Client) -> None:
    id = client.volumes.wait(client.volumes.create(size=1).id, timeout=PATIENCE).id
    process, terminal = start_on_terminal(env, "volume", "delete", id)
    read_terminal(terminal, "[y/N]")
    os.write(terminal, b"n\n")
    assert "nothing was done" in read_terminal(terminal, "nothing was done")
    assert process.wait(PATIENCE) == 1
    os.close(terminal)
    assert client.volumes.get(id).status == "ACTIVE"


def test_ctrl_c_ends_the_wait_and_not_the_work(env: Env, node: FakeNode, client: Client) -> None:
    node.held.add("volume.create")
    process = subprocess.Popen(
        [*LUNR, "volume", "create", "--size", "1", "--name", "interrupted"],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wait_until(lambda: list(client.volumes.list(name="interrupted", status="BUILDING")))
    [volume] = client.volumes.list(name="interrupted")
    process.send_signal(signal.SIGINT)
    out, told = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (130, b"")
    assert f"lunr volume wait {volume.id}" in told.decode()
    assert b"Traceback" not in told
    node.held.clear()
    assert client.volumes.wait(volume.id, timeout=PATIENCE).status == "ACTIVE"


def test_a_reader_that_goes_away_is_no_crash(env: Env, node: FakeNode) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*LUNR, "node", "list"], env=env, stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert b"Traceback" not in done.stderr


def test_the_client_stays_small() -> None:
    code = """if True:
        import sys
        import lunr.client.cli.main
        from click.testing import CliRunner
        CliRunner().invoke(lunr.client.cli.main.cli, ["--help"], catch_exceptions=False)
        print(*sorted({name.partition(".")[0] for name in sys.modules}), sep="\\n")
        print(*sorted(name for name in sys.modules if name.startswith("lunr.")), sep="\\n")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "requests" in loaded
    heavy = {"eventlet", "sqlalchemy", "oslo_config", "swiftclient", "blake3", "zstandard", "rich"}
    assert not loaded & heavy
    assert not {name for name in loaded if name.startswith("lunr.")} & {"lunr.up", "lunr.api"}
    assert {name.split(".")[1] for name in loaded if name.startswith("lunr.")} <= (
        # The packages of listed commands are looked into for their help, and import nothing.
        {"client", "common", "backup", "live"}
    )


def test_help_is_quick() -> None:
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*LUNR, "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    # Processor time, and not the clock's: others may be at work on this machine.
    assert min(seconds) < 0.5


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_scripts(shell: str) -> None:
    done = subprocess.run(
        [*LUNR, "completion", shell], capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    assert "_LUNR_COMPLETE" in done.stdout
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True, timeout=PATIENCE)


def test_bash_completes_words() -> None:
    need_command("bash", "bash")
    lunr_command = Path(sys.executable).parent / "lunr"
    if not lunr_command.exists():
        pytest.skip("needs the installed command `lunr` (pip install -e .)")
    script = """
    PATH=$1:$PATH
    eval "$(lunr completion bash)"
    COMP_WORDS=(lunr volume cr); COMP_CWORD=2
    _lunr_completion lunr
    printf '%s\\n' "${COMPREPLY[@]}"
    COMPREPLY=() COMP_WORDS=(lunr volume create --no); COMP_CWORD=3
    _lunr_completion lunr
    printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "-c", script, "bash", lunr_command.parent],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert done.stdout.split() == ["create", "--no-wait"]
