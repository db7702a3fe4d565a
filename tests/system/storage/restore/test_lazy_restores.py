"""How many volumes a node fills at once, and what it tells of them."""

from __future__ import annotations

import mmap
import os
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lunr.backup.lazy_image.presence import UNIT
from lunr.storage.agent.agent import Agent
from lunr.storage.jobs import volumes
from lunr.storage.restore import supervisor
from lunr.storage.restore.handover import Handover
from tests.support.services import Tgtd, need_fuse
from tests.support.waiting import wait_until
from tests.system.backup.lazy_image.mounted import MIB
from tests.system.storage.contract_api import ContractApi
from tests.system.storage.nodes import Place
from tests.system.storage.test_crashes import SAVE, STORED

SIZE = 32 * MIB


@pytest.fixture
def place(xfs_mount: Path, tgtd: Tgtd, run_folder: Path) -> Place:
    store = Path(tempfile.mkdtemp(prefix="store-", dir=run_folder))
    return Place(xfs_mount, store, tgtd.socket, tgtd.portal)


@pytest.fixture
def api() -> Iterator[ContractApi]:
    api = ContractApi()
    yield api
    api.stop()


@pytest.fixture
def agent(place: Place, api: ContractApi) -> Iterator[Agent]:
    """A node that fills one volume at once, with `v1` and `v2`, which can be used."""
    need_fuse()
    agent = place.agent(api.url)
    agent.start()
    api.do("volume.create", "v0", "v0", size_bytes=SIZE)
    agent.node.pool.path("v0").write_bytes(random.Random(1).randbytes(SIZE))
    api.do("backup.save", "v0", "b1", **SAVE)
    for volume_id in ("v1", "v2"):
        api.do("volume.restore", volume_id, volume_id, size_bytes=SIZE, **STORED)
    yield agent
    agent.stop(detach=True)


def there(agent: Agent, volume_id: str) -> int:
    """The bytes of a volume that are there."""
    return agent.node.restores.need(volume_id).status.done


def fill(api: ContractApi, volume_id: str, mode: str, limit: int = 0, others: bool = False) -> str:
    orders = {"fill": mode, "fill_limit_bytes": limit, "others_wait": others}
    return api.add("volume.fill", volume_id, volume_id, **orders)


def test_as_many_are_filled_at_once_as_may_be(agent: Agent, api: ContractApi) -> None:
    first = fill(api, "v1", "eager", 4 * MIB)
    second = fill(api, "v2", "eager")
    wait_until(lambda: there(agent, "v1") > 8 * MIB, what="the first one is filled")
    assert api.jobs[second]["status"] == "QUEUED" and there(agent, "v2") < MIB
    assert "lunr_node_filling 2.0" in metrics(agent)
    api.jobs[first]["payload"]["fill_limit_bytes"] = 0
    for job in (first, second):
        assert api.wait(job)["status"] == "DONE"
    assert metrics(agent).count("lunr_node_filling 0.0") == 1


def test_an_agent_that_starts_again_lets_a_fill_go_on(
    agent: Agent, api: ContractApi, place: Place
) -> None:
    job = fill(api, "v1", "eager", 2 * MIB)
    wait_until(lambda: there(agent, "v1") > 4 * MIB, what="it is filled")
    agent.stop()
    api.jobs[job]["status"] = "HELD"  # nobody gives it to the next one
    second = place.agent(api.url)
    second.start()
    try:
        begun = there(second, "v1")
        wait_until(lambda: there(second, "v1") > begun + 4 * MIB, what="it goes on")
        api.jobs[job]["status"] = "QUEUED"
        api.jobs[job]["payload"]["fill_limit_bytes"] = 0
        assert api.wait(job)["status"] == "DONE"
    finally:
        second.stop(detach=True)


def metrics(agent: Agent) -> str:
    return agent.supervisor._metrics.text().decode()


def figure(agent: Agent, name: str) -> float:
    (line,) = [line for line in metrics(agent).splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])


def test_a_lazy_fill_of_a_volume_that_is_used_lets_others_fill(
    agent: Agent, api: ContractApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volumes, "_TURN", 2.0)
    over = threading.Event()

    def use() -> None:
        with agent.node.restores.need("v1").path.open("rb", buffering=0) as file:
            while not over.wait(0.02):
                os.pread(file.fileno(), UNIT, 0)

    user = threading.Thread(target=use)
    user.start()
    try:
        lazy = fill(api, "v1", "lazy", others=True)
        wait_until(lambda: api.jobs[lazy]["status"] == "RUNNING", what="it has the only place")
        eager = fill(api, "v2", "eager")
        assert api.wait(eager)["status"] == "DONE"
        assert api.jobs[lazy]["attempt"] > 1 or api.jobs[lazy]["status"] == "QUEUED"
        assert api.jobs[lazy]["error"]["code"] == "fill_yields"
    finally:
        over.set()
        user.join()
    api.jobs[lazy]["payload"]["others_wait"] = False
    assert api.wait(lazy)["status"] == "DONE"


def test_the_metrics_are_those_of_the_fills(agent: Agent, api: ContractApi) -> None:
    fill(api, "v1", "eager", 2 * MIB)
    wait_until(lambda: figure(agent, "lunr_node_fill_bytes_per_second") > 0, what="its rate")
    assert figure(agent, "lunr_node_fill_bytes_per_second") < 32 * MIB
    assert figure(agent, "lunr_node_filling") == 2
    left = figure(agent, "lunr_node_fill_remaining_bytes")
    assert SIZE <= left < 2 * SIZE
    wait_until(lambda: figure(agent, "lunr_node_fill_remaining_bytes") < left, what="it goes on")
    assert figure(agent, "lunr_node_fill_damaged") == 0
    for volume_id in ("v1", "v2"):
        fill(api, volume_id, "eager")


def test_damage_is_told_though_nobody_fills_until_it_is_mended(
    agent: Agent, api: ContractApi, place: Place
) -> None:
    def told() -> str:
        return str(api.heartbeats[-1]["troubles"].get("v1", ""))

    def read(offset: int) -> None:
        with agent.node.restores.need("v1").path.open("rb", buffering=0) as file:
            os.pread(file.fileno(), UNIT, offset)

    chunks = sorted(path for path in place.store.rglob("chunks/*/*") if path.is_file())
    chunks[0].rename(Path(f"{chunks[0]}.hidden"))
    bad = -1
    for offset in range(0, SIZE, 4 * MIB):
        try:
            read(offset)
        except OSError:
            bad = offset
    assert bad >= 0
    wait_until(lambda: chunks[0].name in told(), what="the damage is told")
    assert f"Bytes {bad} to" in told()
    # Of a buffer that begins in the middle of a page, the kernel makes requests that do so.
    with (
        mmap.mmap(-1, 4 * MIB) as aligned,
        agent.node.restores.need("v1").path.open("r+b", buffering=0) as file,
    ):
        os.pwrite(file.fileno(), aligned, bad)
    begun = time.monotonic()
    wait_until(lambda: not told(), what="what was written over is whole")
    assert time.monotonic() - begun < 10


def test_an_agent_that_ends_while_a_full_volume_becomes_plain(
    agent: Agent, api: ContractApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The volume's folder goes while it is looked for in there whether the process lives."""
    one = agent.node.restores.need("v1")
    # Nothing but this test makes it plain.
    monkeypatch.setattr(Handover, "end_process", lambda _self: None)
    make_plain = threading.Thread(target=one.make_plain)
    take_lock = supervisor.take_lock

    def take(folder: Path) -> int | None:
        if threading.current_thread() is not make_plain and make_plain.ident is None:
            make_plain.start()
            make_plain.join(2)
        return take_lock(folder)

    fill(api, "v1", "eager")
    wait_until(lambda: one.is_filled, what="it is full")
    monkeypatch.setattr(supervisor, "take_lock", take)
    one.close()
    make_plain.join()
    assert not one._record.run.exists()
