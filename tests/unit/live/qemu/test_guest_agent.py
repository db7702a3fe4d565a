"""The agent of a guest: late, silent, full of nonsense, or hostile. It is told to thaw always."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lunr.live import errors
from lunr.live.qemu import guest_agent as module
from lunr.live.qemu.guest_agent import Agent
from tests.support.waiting import wait_until
from tests.unit.live.qemu.test_qmp import line, pair

OK = [line(**{"return": 3})]
THAWED = [line(**{"return": "thawed"})]


def guest(
    *, freeze: list[bytes], thaw: list[bytes], status: list[bytes]
) -> Callable[[dict[str, Any]], list[bytes]]:
    def answer(message: dict[str, Any]) -> list[bytes]:
        match message["execute"]:
            case "guest-sync":
                return [line(**{"return": message["arguments"]["id"]})]
            case "guest-fsfreeze-freeze":
                return freeze
            case "guest-fsfreeze-thaw":
                return thaw
            case _:
                return status

    return answer


def test_freeze_and_thaw() -> None:
    lines, _ = pair(guest(freeze=OK, thaw=OK, status=THAWED))
    agent = Agent(lines)
    assert agent.freeze() == 3
    agent.thaw()
    agent.close()


def test_a_guest_that_talks_nonsense() -> None:
    nonsense = [b"\xff\xff\n[1]\n" + line(error="x")]
    refused = [line(error={"desc": "no"})]
    lines, _ = pair(guest(freeze=nonsense, thaw=refused, status=refused))
    agent = Agent(lines)
    with pytest.raises(errors.FreezeFailed, match="freeze"):
        agent.freeze()
    with pytest.raises(errors.FreezeFailed, match="may be frozen still"):
        agent.thaw(0.2)
    agent.close()


def test_a_guest_that_is_hostile() -> None:
    for answer, said in (
        (line(**{"return": ["x"]}), "makes no sense"),
        (line(**{"return": True}), "makes no sense"),
        (line(error={"desc": "\x1b[2Jgone"}), r"\\x1b"),
        (b"x" * (18 << 20), "no end"),
        (b'{"return":' * 100_000 + b"\n" + line(error={"desc": "no"}), "no"),
    ):
        lines, _ = pair(guest(freeze=[answer], thaw=[], status=[]))
        agent = Agent(lines)
        with pytest.raises(errors.FreezeFailed, match=said):
            agent.freeze()
        agent.close()


class Sleeper:
    """An agent that does nothing until it is woken; then it does all that it was told, in turn."""

    def __init__(self) -> None:
        self.awake = threading.Event()
        self.frozen = True
        self.told: list[str] = []

    def __call__(self, message: dict[str, Any]) -> list[bytes]:
        self.awake.wait()
        self.told.append(message["execute"])
        match message["execute"]:
            case "guest-sync":
                return [line(**{"return": message["arguments"]["id"]})]
            case "guest-fsfreeze-thaw":
                self.frozen = False
                return OK
            case "guest-fsfreeze-status":
                return [line(**{"return": "frozen" if self.frozen else "thawed"})]
            case _:
                self.frozen = True
                return OK


def test_an_agent_that_was_not_waited_for_thaws_when_it_wakes() -> None:
    sleeper = Sleeper()
    lines, _ = pair(sleeper)
    agent = Agent(lines)
    with pytest.raises(errors.FreezeFailed, match="may be frozen still"):
        agent.thaw(0.1)
    sleeper.awake.set()
    wait_until(lambda: not sleeper.frozen, what="it thaws")
    agent.close()


def test_an_agent_that_is_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AGAIN", 0.1)
    sleeper = Sleeper()
    lines, _ = pair(sleeper)
    agent = Agent(lines)
    agent._send("freeze", {"execute": "guest-fsfreeze-freeze"})  # its answer comes late, too
    threading.Timer(0.5, sleeper.awake.set).start()
    agent.thaw(30)
    assert not sleeper.frozen
    assert sleeper.told.count("guest-fsfreeze-thaw") > 1
    agent.close()


def test_one_that_thaws_at_the_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AGAIN", 0.2)
    statuses = iter([b"frozen", b"thawed"])

    def answer(message: dict[str, Any]) -> list[bytes]:
        if message["execute"] == "guest-fsfreeze-status":
            return [b'{"return": "' + next(statuses) + b'"}\n']
        return guest(freeze=OK, thaw=OK, status=[])(message)

    lines, _ = pair(answer)
    agent = Agent(lines)
    began = time.monotonic()
    agent.thaw(30)
    assert time.monotonic() - began < 20
    assert list(statuses) == []
    agent.close()


def test_nobody_in_the_guest(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as channel:
        channel.bind(str(tmp_path / "a"))
        channel.listen()
        with pytest.raises(errors.FreezeFailed, match="does qemu-ga run"):
            Agent.open(tmp_path / "a", timeout=0.1)
    with pytest.raises(errors.FreezeFailed):
        Agent.open(tmp_path / "nowhere")
