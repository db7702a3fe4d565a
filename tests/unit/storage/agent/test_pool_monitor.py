"""What is known of a pool without waiting for it."""

from __future__ import annotations

import pytest

from lunr.common import errors
from lunr.storage.agent import pool_monitor
from lunr.storage.agent.pool_monitor import PoolMonitor
from lunr.storage.baselines import Baselines
from lunr.storage.jobs import HANDLERS, worker_slots
from lunr.storage.metrics import Metrics
from lunr.storage.pools.base import Capacity, Pool, Purpose, Snapshot


class Told(Pool):
    """A pool that says what it is told to; it holds nothing."""

    name = "told"

    def __init__(self) -> None:
        self.said: Capacity | errors.LunrError = Capacity(100, 50, used={"data": 0.5})
        self.lost: frozenset[Snapshot] = frozenset()
        self.during = lambda: None

    def watch(self) -> None:
        self.during()

    def capacity(self) -> Capacity:
        if isinstance(self.said, errors.LunrError):
            raise self.said
        return self.said

    def baselines(self) -> dict[Snapshot, float]:
        return {}

    def lost_snapshots(self) -> frozenset[Snapshot]:
        return self.lost


Told.__abstractmethods__ = frozenset()


@pytest.fixture
def pool() -> Told:
    return Told()  # type: ignore[abstract]


def watched(pool: Pool) -> PoolMonitor:
    return PoolMonitor(pool, Baselines(pool, keep=True, days=1))


def test_what_was_seen_last_is_remembered(pool: Told) -> None:
    watch = watched(pool)
    assert watch.capacity().full
    assert watch.look()  # it is not full any more
    assert watch.capacity() == pool.said
    assert not watch.look()
    pool.said = Capacity(100, 1, full="data is full")
    pool.lost = frozenset({Snapshot("v1", "s1"), Snapshot("v1", "b1", Purpose.BACKUP)})
    assert watch.capacity().free_bytes == 50
    assert watch.look()
    assert watch.capacity() == pool.said
    assert watch.lost_snapshots() == {"s1"}  # of a backup's nobody knows but its job


def test_a_pool_in_trouble_takes_no_new_volumes(pool: Told) -> None:
    watch = watched(pool)
    watch.look()
    pool.said = errors.Unavailable(what="the disk", reason="it burns")
    with pytest.raises(errors.Unavailable):
        watch.look()
    assert watch.capacity() == Capacity(
        100, 50, "the disk can't be reached: it burns", {"data": 0.5}
    )
    pool.said = Capacity(100, 50)
    assert watch.look()
    assert watch.capacity().full == ""


def test_a_pool_that_does_not_answer_takes_no_new_volumes(
    pool: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = watched(pool)
    watch.look()
    seen = []
    pool.during = lambda: seen.append(watch.capacity().full)
    watch.look()
    monkeypatch.setattr(pool_monitor, "_OVERDUE", -1)
    watch.look()
    assert seen == ["", "the pool has not answered for 0 seconds"]
    assert watch.capacity().full == ""


def test_metrics_tell_of_a_pool_that_fills_up(pool: Told) -> None:
    watch, metrics = watched(pool), Metrics()
    metrics.watch(watch, _NoExports(), _NoFillings())  # type: ignore[arg-type]
    pool.said = Capacity(100, 7, "metadata is full", {"data": 0.25, "metadata": 0.97})
    pool.lost = frozenset({Snapshot("v1", "s1")})
    watch.look()
    text = metrics.text().decode()
    for line in (
        'lunr_node_pool_used_ratio{resource="data"} 0.25',
        'lunr_node_pool_used_ratio{resource="metadata"} 0.97',
        "lunr_node_pool_full 1.0",
        "lunr_node_snapshots_lost 1.0",
        "lunr_node_pool_free_bytes 7.0",
    ):
        assert line in text.splitlines()
    pool.said, pool.lost = Capacity(100, 7), frozenset()
    watch.look()
    assert "lunr_node_pool_full 0.0" in metrics.text().decode().splitlines()


class _NoExports:
    def sessions(self) -> dict[str, list[object]]:
        return {}


class _NoFillings:
    def all(self) -> list[object]:
        return []


def test_where_the_pool_is_slow_its_jobs_keep_nobody_waiting(pool: Told) -> None:
    fast = worker_slots(pool)
    assert {"volume.clone", "volume.delete", "export.create"} <= fast.quick
    assert {"backup.save", "repository.sweep"} <= fast.data
    Told.slow = True
    try:
        slow = worker_slots(pool)
    finally:
        Told.slow = False
    assert slow.data - fast.data == {"volume.clone", "volume.delete"}
    for some in (fast, slow):
        assert some.quick | some.data | some.fill == HANDLERS.keys()
        assert not some.quick & some.data and not some.fill & (some.quick | some.data)
