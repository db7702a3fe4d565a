"""Pools that take their time, whose snapshots get lost, or that know what is allocated.

They are a pool of files with one more property each, so that the agent's part
can be tested where there is no LVM; tests/vm does the same with LVM's.
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lunr.common.extents import Extent
from lunr.storage.agent.agent import Agent
from lunr.storage.pools.base import Purpose, Snapshot, SnapshotLost, Tick, no_tick
from lunr.storage.pools.files.pool import FilesPool
from lunr.storage.system import CommandFailed
from lunr.storage.targets.tgt.target import TgtTarget
from tests.support.services import Tgtd
from tests.support.waiting import SOON, wait_until
from tests.system.storage.contract_api import ContractApi
from tests.system.storage.nodes import Place, make_agent
from tests.system.storage.test_agent import REPOSITORY, SIZE, export_payload

MIB = 1 << 20


class SlowPool(FilesPool):
    """Deletes and clones as long as its `gate` is shut."""

    slow = True

    def __init__(self, path: Path) -> None:
        super().__init__(path, image_gib=1)
        self.gate = threading.Event()
        self.begun: list[str] = []
        self.ended: list[str] = []

    def clone(self, volume_id: str, source: Any, size: int, tick: Tick = no_tick) -> None:
        self._work(f"clone {volume_id}", tick)
        super().clone(volume_id, source, size)

    def delete(self, volume_id: str, tick: Tick = no_tick) -> None:
        self._work(f"delete {volume_id}", tick)
        super().delete(volume_id)

    def _work(self, what: str, tick: Tick) -> None:
        done = 0
        self.begun.append(what)
        try:
            while not self.gate.wait(0.02):
                done = min(done + 1, 90)
                tick(done, 100)
        finally:
            self.ended.append(what)


class OddPool(FilesPool):
    """Knows what is allocated, and may lose snapshots."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, image_gib=1)
        self.is_lost = lambda snapshot: False
        self.known: Callable[[], Iterator[Extent]] | None = None
        self.taken: list[Snapshot] = []

    def snapshot(self, snapshot: Snapshot) -> None:
        super().snapshot(snapshot)
        self.taken.append(snapshot)

    def check_snapshot(self, snapshot: Snapshot) -> None:
        if self.is_lost(snapshot):
            raise SnapshotLost(id=snapshot.id, volume_id=snapshot.volume_id, reason="it overflowed")

    def lost_snapshots(self) -> frozenset[Snapshot]:
        return frozenset(snapshot for snapshot in self.snapshots() if self.is_lost(snapshot))

    def allocated(self, subject: str | Snapshot) -> Iterator[Extent] | None:
        return None if self.known is None else self.known()


@pytest.fixture
def api() -> Iterator[ContractApi]:
    api = ContractApi()
    yield api
    api.stop()


@pytest.fixture
def place(xfs_mount: Path, tgtd: Tgtd, run_folder: Path) -> Place:
    store = Path(tempfile.mkdtemp(prefix="store-", dir=run_folder))
    return Place(xfs_mount, store, tgtd.socket, tgtd.portal)


@pytest.fixture
def start(place: Place, api: ContractApi) -> Iterator[Callable[[FilesPool], Agent]]:
    agents: list[Agent] = []

    def start(pool: FilesPool) -> Agent:
        target = TgtTarget(place.socket, place.pool)
        agent = make_agent(pool, target, place.engine(), api.url, place.portal)
        agents.append(agent)
        agent.start()
        return agent

    yield start
    for agent in agents:
        agent.stop()
        agent.node.restores.close()


def save(api: ContractApi, backup_id: str, snapshot_id: str | None = None) -> dict[str, Any]:
    return api.wait(
        api.add(
            "backup.save",
            "v1",
            backup_id,
            backup_id=backup_id,
            snapshot_id=snapshot_id,
            repository=REPOSITORY,
            parent_id=None,
            condemned=[],
            created_at="2026-11-23T12:00:00Z",
        )
    )


def restore(api: ContractApi, pool: FilesPool, backup_id: str) -> bytes:
    volume_id = f"restored-{backup_id}"
    fields = {"repository": REPOSITORY, "backup_id": backup_id, "size_bytes": SIZE}
    api.restore(volume_id, **fields)
    return pool.path(volume_id).read_bytes()


def fill(pool: FilesPool, volume_id: str, seed: int) -> bytes:
    data = random.Random(seed).randbytes(SIZE)
    pool.path(volume_id).write_bytes(data)
    return data


def test_slow_deletes_keep_no_export_waiting_and_end_when_told(
    start: Callable[..., Agent], api: ContractApi, place: Place
) -> None:
    pool = SlowPool(place.pool)
    start(pool)
    for volume_id in ("v1", "v2", "v3", "v4", "v5"):
        api.do("volume.create", volume_id, volume_id, size_bytes=SIZE)
    # As many as there are data workers, and more.
    deletes = [api.add("volume.delete", id, id) for id in ("v1", "v2", "v3")]
    wait_until(lambda: [job for job in deletes if api.jobs[job]["progress"] > 0])
    api.do("export.create", "v4", "v4", **export_payload("v4"))
    cancelled = next(job for job in deletes if api.jobs[job]["status"] == "RUNNING")
    api.cancel(cancelled)
    assert api.wait(cancelled)["status"] == "CANCELLED"
    assert api.jobs[cancelled]["volume_id"] in pool.volumes()
    clone = api.add(
        "volume.clone",
        "v6",
        "v6",
        size_bytes=SIZE,
        source={"kind": "volume", "id": "v5", "volume_id": "v5"},
    )
    pool.gate.set()
    for job in (*deletes, clone):
        api.wait(job)
    assert api.jobs[clone]["status"] == "DONE"
    assert pool.volumes() == {"v4", "v5", "v6", api.jobs[cancelled]["volume_id"]}


def test_a_slow_job_that_was_lost_stops_at_once(
    start: Callable[..., Agent], api: ContractApi, place: Place
) -> None:
    pool = SlowPool(place.pool)
    agent = start(pool)
    api.do("volume.create", "v1", "v1", size_bytes=SIZE)
    job = api.add("volume.delete", "v1", "v1")
    wait_until(lambda: api.jobs[job]["progress"] > 0)
    (running,) = agent.supervisor.running()
    api.take_away(job)
    wait_until(lambda: pool.ended, what="the first attempt ended")
    wait_until(lambda: len(pool.begun) == 2, what="the second attempt is under way")
    assert running.stop_reason is not None
    started = time.monotonic()
    agent.stop()
    assert time.monotonic() - started < SOON
    assert pool.ended == ["delete v1", "delete v1"]


def test_deleted_volumes_are_removed_one_at_a_time_while_the_node_works(
    start: Callable[..., Agent], api: ContractApi, place: Place
) -> None:
    pool = SlowPool(place.pool)
    first = start(pool)
    for volume_id in ("v1", "v2", "v3"):
        api.do("volume.create", volume_id, volume_id, size_bytes=SIZE)
    first.stop()
    api.delete = {"volumes": ["v1", "v2"], "snapshots": []}
    again = SlowPool(place.pool)
    second = start(again)
    api.do("snapshot.create", "v3", "s1", snapshot_id="s1")
    wait_until(lambda: second.pending_deletes.progress().get("v1", 0) > 0, what="it is under way")
    assert second.pending_deletes.progress()["v2"] == 0
    second.stop()  # does not wait for the end
    assert again.ended == ["delete v1"]
    last = SlowPool(place.pool)
    third = start(last)
    last.gate.set()
    wait_until(lambda: not third.pending_deletes.progress(), what="all are removed")
    assert last.volumes() == {"v3"}


def test_a_users_snapshot_is_saved_as_it_is_and_stays(
    start: Callable[..., Agent], api: ContractApi, place: Place
) -> None:
    pool = OddPool(place.pool)
    start(pool)
    api.do("volume.create", "v1", "v1", size_bytes=SIZE)
    data = fill(pool, "v1", 1)
    api.do("snapshot.create", "v1", "s1", snapshot_id="s1")
    fill(pool, "v1", 2)
    assert save(api, "b1", "s1")["status"] == "DONE"
    assert pool.taken == [Snapshot("v1", "s1")]
    assert pool.snapshots() == {Snapshot("v1", "s1")}
    assert restore(api, pool, "b1") == data
    missing = save(api, "b2", "s2")
    assert missing["error"]["code"] == "not_found"
    assert save(api, "b3", "../s1")["error"]["code"] == "invalid_field"


def test_what_is_not_allocated_is_not_read(
    start: Callable[..., Agent], api: ContractApi, place: Place
) -> None:
    pool = OddPool(place.pool)
    start(pool)
    api.do("volume.create", "v1", "v1", size_bytes=SIZE)
    data = fill(pool, "v1", 1)
    pool.known = lambda: iter([Extent(5 * MIB, 5 * MIB + 1), Extent(6 * MIB, 6 * MIB + 1)])
    assert save(api, "b1")["result"]["bytes_read"] == 4 * MIB
    expected = bytes(4 * MIB) + data[4 * MIB : 8 * MIB] + bytes(SIZE - 8 * MIB)
    assert restore(api, pool, "b1") == expected


def test_when_the_pool_can_not_tell_all_is_read(
    start: Callable[..., Agent], api: ContractApi, place: Place
) -> None:
    def failing() -> Iterator[Extent]:
        yield Extent(0, 1)
        raise CommandFailed(command="thin_dump", code=1, stderr="bad checksum")

    pool = OddPool(place.pool)
    start(pool)
    api.do("volume.create", "v1", "v1", size_bytes=SIZE)
    data = fill(pool, "v1", 1)
    pool.known = failing
    assert save(api, "b1")["status"] == "DONE"
    assert restore(api, pool, "b1") == data


def test_a_lost_snapshot_fails_its_backup_and_is_the_reason(
    start: Callable[..., Agent], api: ContractApi, place: Place
) -> None:
    pool = OddPool(place.pool)
    start(pool)
    api.do("volume.create", "v1", "v1", size_bytes=SIZE)
    fill(pool, "v1", 1)
    pool.is_lost = lambda snapshot: snapshot.purpose is Purpose.BACKUP
    job = save(api, "b1")
    assert (job["status"], job["attempt"]) == ("FAILED", 1)
    assert job["error"]["code"] == "snapshot_lost"
    assert not pool.snapshots()

    def cut_short() -> Iterator[Extent]:  # the engine's read fails then
        (snapshot,) = pool.snapshots()
        pool.path(snapshot).write_bytes(b"short")
        return iter([])

    pool.known = cut_short
    assert save(api, "b2")["error"]["code"] == "snapshot_lost"
    pool.is_lost = lambda snapshot: False
    assert save(api, "b3")["error"]["code"] == "source_error"
    assert not pool.snapshots()


def test_lost_snapshots_of_users_are_told_at_once(
    start: Callable[..., Agent], api: ContractApi, place: Place
) -> None:
    pool = OddPool(place.pool)
    start(pool)
    api.do("volume.create", "v1", "v1", size_bytes=SIZE)
    api.do("snapshot.create", "v1", "s1", snapshot_id="s1")
    assert api.heartbeats[-1]["lost_snapshots"] == []
    pool.is_lost = lambda snapshot: True
    wait_until(lambda: api.heartbeats[-1]["lost_snapshots"] == ["s1"], what="it is told")
