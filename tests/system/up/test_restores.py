"""Restored volumes, written to while they are filled, when something of lunr is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from lunr.client import Client
from tests.support.waiting import wait_until
from tests.system.up.restores import Written, fill, reboot
from tests.system.up.volumes import can_be_read, holds
from tools.demos.stage import Lunr


def kill_worker(lunr: Lunr, id: str) -> None:
    pid = lunr.fillers()[id]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: lunr.fillers().get(id, pid) != pid, what="another one serves")


def kill_part(name: str) -> Callable[[Lunr, str], None]:
    def kill(lunr: Lunr, _id: str) -> None:
        pid = lunr.parts()[name]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: lunr.parts().get(name, pid) != pid, what=f"{name} is back")

    return kill


def kill_all(lunr: Lunr, id: str) -> None:
    pid = lunr.fillers()[id]
    lunr.kill()
    lunr.start()
    lunr.wait_until_up()
    assert lunr.fillers()[id] == pid, "it went on meanwhile"


def kill_agent_and_worker(lunr: Lunr, id: str) -> None:
    os.kill(lunr.fillers()[id], signal.SIGKILL)
    kill_part("storage")(lunr, id)


def reset(lunr: Lunr, _id: str) -> None:
    reboot(lunr)


@pytest.mark.parametrize(
    "mishap",
    [kill_worker, kill_part("storage"), kill_part("tgtd"), kill_agent_and_worker, kill_all, reset],
    ids=["worker", "agent", "tgtd", "agent and worker", "all but the worker", "reboot"],
)
def test_what_was_written_survives(
    lunr: Lunr,
    client: Client,
    written: tuple[str, Written],
    mishap: Callable[[Lunr, str], None],
    tmp_path: Path,
) -> None:
    id, one = written
    mishap(lunr, id)
    what = "it can be read again"
    wait_until(lambda: can_be_read(one.disk, one.copy, tmp_path), what=what)
    one.write()
    fill(client, id)
    assert holds(client, id, one.copy, tmp_path)
