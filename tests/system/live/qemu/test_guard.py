"""The guest is never left stopped or frozen, and one that others had stopped stays so."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lunr.live import errors
from lunr.live.qemu import cleanup, exports, guard
from lunr.live.qemu import guest_agent as agents
from lunr.live.qemu.qmp import Monitor
from tests.support.waiting import PATIENCE, wait_until
from tests.system.live.conftest import Vault
from tests.system.live.kills.test_kill import killed
from tests.system.live.machines import Machine
from tests.system.live.test_backup import kept


class Agent:
    """A guest's agent that freezes, and answers nothing more until it is woken."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.awake = threading.Event()
        self.frozen = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:  # as QEMU does, one client after the other
                channel, _ = self._listener.accept()
                with (
                    contextlib.suppress(ConnectionError),
                    channel,
                    channel.makefile("rb") as lines,
                ):
                    for line in lines:
                        self._answer(channel, json.loads(line))

    def _answer(self, channel: socket.socket, message: dict[str, object]) -> None:
        if self.frozen:
            self.awake.wait()
        value: object = 2
        match message:
            case {"execute": "guest-sync", "arguments": {"id": value}}:
                pass
            case {"execute": "guest-fsfreeze-freeze"}:
                self.frozen = True
            case {"execute": "guest-fsfreeze-thaw"}:
                self.frozen = False
            case {"execute": "guest-fsfreeze-status"}:
                value = "frozen" if self.frozen else "thawed"
        with contextlib.suppress(OSError):  # it hung up
            channel.sendall(json.dumps({"return": value}).encode() + b"\n")

    def close(self) -> None:
        self.awake.set()
        self._listener.close()


@pytest.fixture
def agent(machine: Machine) -> Iterator[Agent]:
    found = Agent(machine.qmp.with_name("agent"))
    yield found
    found.close()


def test_an_agent_that_does_not_thaw_ends_the_backup_and_is_told_until_it_does(
    machine: Machine, vault: Vault, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "PATIENCE", 0.5)
    monkeypatch.setattr("lunr.live.qemu.guard._PATIENCE", 2.0)
    machine.write_some(random.Random())
    with pytest.raises(errors.FreezeFailed, match="may be frozen still"):
        vault.backup(machine, agent=agent.path)
    assert agent.frozen
    assert machine.status() == "running"
    assert vault.ids() == set()
    agent.awake.set()
    wait_until(lambda: not agent.frozen, what="the guard has it thawed")
    wait_until(lambda: "lunr-cutting" not in machine.nodes(), what="the guard is done")
    machine.assert_untouched()
    group = vault.backup(machine)
    assert vault.restored(group) == machine.contents()


def test_the_next_backup_thaws_what_a_killed_one_froze(
    machine: Machine, vault: Vault, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "PATIENCE", 0.5)
    assert killed(machine, vault, "guest-fsfreeze-freeze", "alone", str(agent.path))
    wait_until(lambda: agent.frozen, what="it is frozen")
    with (
        monkeypatch.context() as patch,
        pytest.raises(errors.FreezeFailed),
    ):
        patch.setattr(agents.Agent.open.__func__, "__defaults__", (0.5,))  # type: ignore[attr-defined]
        vault.backup(machine, agent=agent.path)
    agent.awake.set()
    vault.backup(machine, agent=agent.path)
    assert not agent.frozen
    machine.assert_untouched()


def test_a_second_interrupt_leaves_the_machine_to_the_guard(
    machine: Machine, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.write_some(random.Random())

    def interrupt(*_: object) -> bool:
        raise KeyboardInterrupt

    def first(call: str, name: str) -> None:
        if call == "put" and not name.startswith("sessions/"):
            interrupt()

    real = cleanup.restore_machine
    times = iter([real])  # before the backup; and then amid the clearing
    monkeypatch.setattr(cleanup, "restore_machine", lambda *args: next(times, interrupt)(*args))
    with pytest.raises(KeyboardInterrupt):
        vault.backup(machine, first, concurrency=1)
    machine.assert_untouched()


#: The commands after which the client is killed; whether its guard is, too.
KILLED = [
    ("blockdev-add", True),
    ("transaction", False),
    ("qom-set", True),
    ("block-export-add", False),
]
OTHERS = [pytest.param(one, not alone, marks=pytest.mark.thorough) for one, alone in KILLED]


@pytest.mark.parametrize(("command", "alone"), [*KILLED, *OTHERS])
def test_a_paused_machine_stays_paused_when_the_client_is_killed(
    machine: Machine, vault: Vault, command: str, alone: bool
) -> None:
    machine.write_some(random.Random())
    machine.guest.execute("stop")
    assert killed(machine, vault, command, *(["alone"] if alone else []))
    # QEMU serves the next one when the guard is done.
    Monitor.open(machine.qmp, PATIENCE).close()
    assert machine.status() == "paused"
    group = vault.backup(machine)
    assert machine.status() == "paused"
    assert vault.restored(group) == machine.contents()
    machine.guest.execute("cont")
    vault.backup(machine)  # QEMU closes no file that was given to it while it stands still
    machine.assert_untouched()


def test_a_stopped_machine_goes_on_with_the_next_backup(machine: Machine, vault: Vault) -> None:
    # Between `stop` and `cont`, the client and its guard killed at once.
    machine.guest.execute("blockdev-add", {"driver": "null-co", "node-name": "lunr-cutting"})
    machine.guest.execute("stop")
    vault.backup(machine)
    machine.assert_untouched()


@pytest.fixture
def many_files() -> Iterator[None]:
    """More open files than select() can count."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("needs a hard limit of 4096 open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    yield
    for descriptor in held:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_the_guard_of_a_process_with_many_files(machine: Machine, vault: Vault) -> None:
    vault.backup(machine)
    machine.assert_untouched()


@pytest.mark.parametrize("program", ["exit 0", "exec sleep 60"])
def test_without_a_guard_there_is_no_backup(
    machine: Machine, vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    stub = tmp_path / "python"
    stub.write_text(f"#!/bin/sh\n{program}\n")
    stub.chmod(0o755)
    monkeypatch.setattr("lunr.live.qemu.guard._PATIENCE", 1.0)
    monkeypatch.setattr(sys, "executable", str(stub))
    with pytest.raises(errors.CannotBackUp, match="guards it does not start"):
        vault.backup(machine)
    machine.assert_untouched()
    assert machine.bitmaps() == {"alpha": set(), "beta": set()}


@pytest.fixture
def guards(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes of the guards that were started."""
    found: list[subprocess.Popen[bytes]] = []
    enter = guard.Guard.__enter__

    def noted(self: guard.Guard) -> guard.Guard:
        enter(self)
        assert self._process is not None
        found.append(self._process)
        return self

    monkeypatch.setattr(guard.Guard, "__enter__", noted)
    return found


def test_a_guard_that_is_killed_before_the_cut_ends_the_backup(
    machine: Machine,
    vault: Vault,
    guards: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    survey = exports.survey

    def killing(*args: Any) -> Any:
        guards[0].kill()
        guards[0].wait()
        return survey(*args)

    monkeypatch.setattr(exports, "survey", killing)
    with pytest.raises(errors.CannotBackUp, match="guards it is gone"):
        vault.backup(machine)
    machine.assert_untouched()
    assert machine.bitmaps() == {"alpha": set(), "beta": set()}
    assert vault.ids() == set()


def test_a_guard_that_is_killed_after_the_cut_is_not_missed(
    machine: Machine, vault: Vault, guards: list[subprocess.Popen[bytes]]
) -> None:
    machine.write_some(random.Random(), 20)

    def kill(_call: str, name: str) -> None:
        if name.startswith("sessions/"):
            guards[0].kill()
            guards[0].wait()

    group = vault.backup(machine, kill)
    machine.assert_untouched()
    assert vault.restored(group) == machine.contents()
    assert machine.bitmaps() == dict.fromkeys(("alpha", "beta"), kept(group))


def test_the_guard_takes_no_code_from_the_folder_it_is_in(tmp_path: Path) -> None:
    (tmp_path / "lunr").mkdir()
    (tmp_path / "lunr" / "__init__.py").write_text("print('hostile', flush=True)")
    (tmp_path / "logging.py").write_text("print('hostile', flush=True)")
    code = (
        "import socket; from lunr.live.qemu.guard import Guard\n"
        "class Here:\n  def fileno(self): return here.fileno()\n"
        "here, there = socket.socketpair()\n"
        "with Guard(Here()) as guard: guard.release()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}
    argv = [sys.executable, "-P", "-c", code]
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
