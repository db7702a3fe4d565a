"""What is kept of a backup so that the next one reads little, and that nobody has to mind it."""

from __future__ import annotations

import dataclasses
import logging
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lunr.common.extents import Extent
from lunr.storage import baselines
from lunr.storage.agent.agent import Agent
from lunr.storage.pools.base import Capacity, PoolUnusable, Purpose, Snapshot, SnapshotLost
from lunr.storage.pools.files.pool import FilesPool
from lunr.storage.targets.tgt.target import TgtTarget
from tests.support.services import Tgtd
from tests.support.waiting import wait_until
from tests.system.storage.contract_api import ContractApi
from tests.system.storage.nodes import ODD_WORKER, Place, make_agent
from tests.system.storage.test_agent import REPOSITORY

KIB, MIB = 1 << 10, 1 << 20
BLOCK = 32 * KIB
SIZE = 16 * MIB


class OddPool(FilesPool):
    """A pool of files that does to baselines what LVM's may do."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, image_gib=1)
        self.lost: set[Snapshot] = set()
        self.tell: Callable[[], Iterator[Extent] | None] | None = None
        self.is_tight = False
        self.keeps = True

    def check_snapshot(self, snapshot: Snapshot) -> None:
        if snapshot in self.lost:
            raise SnapshotLost(id=snapshot.id, volume_id=snapshot.volume_id, reason="it overflowed")

    def lost_snapshots(self) -> frozenset[Snapshot]:
        return frozenset(self.lost)

    def changed(self, old: Snapshot, new: str | Snapshot) -> Iterator[Extent] | None:
        return super().changed(old, new) if self.tell is None else self.tell()

    def capacity(self) -> Capacity:
        return dataclasses.replace(super().capacity(), tight=self.is_tight)

    def repurpose(self, snapshot: Snapshot, purpose: Purpose) -> None:
        if not self.keeps:
            raise PoolUnusable(place=self.folder, reason="it burns")
        super().repurpose(snapshot, purpose)


class Ground:
    """A node with a volume v1 of random bytes, and a copy of it to compare with."""

    def __init__(self, place: Place, api: ContractApi) -> None:
        self.api = api
        self.place = place
        self.pool = OddPool(place.pool)
        self.agent = self.start()
        self.data = bytearray(random.Random(1).randbytes(SIZE))
        api.do("volume.create", "v1", "v1", size_bytes=SIZE)
        self.pool.path("v1").write_bytes(self.data)

    def start(self, keep: bool = True, worker: Any = None) -> Agent:
        engine = self.place.engine() if worker is None else self.place.engine(worker)
        target = TgtTarget(self.place.socket, self.place.pool)
        url, portal = self.api.url, self.place.portal
        self.agent = make_agent(self.pool, target, engine, url, portal, keep=keep)
        self.agent.start()
        return self.agent

    def write(self, offset: int, data: bytes) -> None:
        with self.pool.path("v1").open("r+b") as file:
            file.seek(offset)
            file.write(data)
        self.data[offset : offset + len(data)] = data

    def save(self, backup_id: str, parent_id: str | None = None, **others: Any) -> Any:
        payload = {
            "backup_id": backup_id,
            "repository": REPOSITORY,
            "parent_id": parent_id,
            "condemned": [],
            "created_at": "2026-11-23T12:00:00Z",
            **others,
        }
        return self.api.do("backup.save", "v1", backup_id, **payload)

    def restored(self, backup_id: str, size: int = SIZE) -> bytes:
        volume_id = f"restored-{backup_id}"
        fields = {"repository": REPOSITORY, "backup_id": backup_id, "size_bytes": size}
        self.api.restore(volume_id, **fields)
        content = self.pool.path(volume_id).read_bytes()
        self.api.do("volume.delete", volume_id, volume_id)
        return content

    def snapshots(self) -> set[Snapshot]:
        return set(self.pool.snapshots())


@pytest.fixture
def ground(xfs_mount: Path, tgtd: Tgtd, run_folder: Path) -> Iterator[Ground]:
    api = ContractApi()
    store = Path(tempfile.mkdtemp(prefix="store-", dir=run_folder))
    ground = Ground(Place(xfs_mount, store, tgtd.socket, tgtd.portal), api)
    yield ground
    ground.agent.stop()
    ground.agent.node.restores.close()
    api.stop()


def baseline(backup_id: str) -> Snapshot:
    return Snapshot("v1", backup_id, Purpose.BASELINE)


def test_only_what_has_changed_is_read(ground: Ground) -> None:
    assert ground.save("b1")["bytes_read"] == SIZE
    assert ground.snapshots() == {baseline("b1")}
    for number in (3, 4, 200, 511):
        ground.write(number * BLOCK + 5, b"changed")
    result = ground.save("b2", "b1")
    assert result["bytes_read"] == 4 * BLOCK
    assert "written" not in result
    assert ground.snapshots() == {baseline("b2")}
    assert ground.save("b3", "b2")["bytes_read"] == 0
    assert ground.save("b4", None)["bytes_read"] == SIZE  # as if it were the first
    assert ground.snapshots() == {baseline("b4")}
    for backup_id in ("b2", "b3", "b4"):
        assert ground.restored(backup_id) == ground.data


def test_random_work_and_every_backup_is_as_the_volume_was(ground: Ground) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    expected: dict[str, bytes] = {}
    last = None
    for number in range(8):
        for _ in range(chance.randrange(5)):
            length = chance.choice([1, 4096, BLOCK, chance.randrange(1, 300 * KIB)])
            data = chance.choice([bytes(length), chance.randbytes(length)])
            ground.write(chance.randrange(len(ground.data) - length), data)
        if chance.random() < 0.3:
            ground.data += bytes(4 * MIB)
            ground.api.do("volume.extend", "v1", "v1", size_bytes=len(ground.data))
        # The parent is the last, or one before it, which nothing is kept of.
        parent = chance.choice([last, last, last, *expected]) if expected else None
        last = f"b{number}"
        ground.save(last, parent)
        expected[last] = bytes(ground.data)
    for backup_id, content in expected.items():
        assert ground.restored(backup_id, len(content)) == content


def _tells_nothing() -> None:
    return None


def _fails() -> Iterator[Extent]:
    yield Extent(0, 1)
    raise PoolUnusable(place="somewhere", reason="bad checksum")


@pytest.mark.parametrize("how", ["gone", "lost", "unknown", "fails", "another"])
def test_without_it_all_is_read_and_the_log_says_why(
    ground: Ground, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    ground.save("b1")
    parent, why = "b1", ""
    match how:
        case "gone":
            ground.pool.delete_snapshot(baseline("b1"))
            why = "no snapshot of it is kept"
        case "lost":
            ground.pool.lost.add(baseline("b1"))
            why = "it overflowed"
        case "unknown":
            ground.pool.tell = _tells_nothing
            why = "the pool does not know"
        case "fails":
            ground.pool.tell = _fails
            why = "bad checksum"
        case "another":  # b2 was deleted meanwhile, of which the baseline is
            ground.save("b2", "b1")
            why = "no snapshot of it is kept"
    ground.write(7 * BLOCK, b"changed")
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert ground.save("b3", parent)["bytes_read"] == SIZE
    assert why in caplog.text
    assert ground.snapshots() == {baseline("b3")}
    assert ground.restored("b3") == ground.data


def test_a_parent_that_the_store_has_not_is_not_built_upon(ground: Ground) -> None:
    ground.save("b1")
    stored = {"repository": REPOSITORY, "backup_id": "b1"}
    ground.api.do("backup.delete", "v1", "b1", **stored)
    result = ground.save("b2", "b1")
    assert (result["bytes_read"], result["parent_id"]) == (SIZE, None)
    assert ground.restored("b2") == ground.data


def test_a_backup_that_was_there_already_is_no_reference(ground: Ground) -> None:
    ground.save("b1")
    old = bytes(ground.data)
    ground.pool.delete_snapshot(baseline("b1"))  # as when the worker died at its very end
    ground.write(9 * BLOCK, b"after its moment")
    ground.save("b1")
    assert ground.restored("b1") == old
    assert ground.snapshots() == set()
    ground.save("b2", "b1")
    assert ground.restored("b2") == ground.data


def test_what_is_saved_for_a_copy_or_by_a_user_leaves_it_alone(ground: Ground) -> None:
    ground.save("b1")
    ground.write(2 * BLOCK, b"changed")
    assert ground.save("copy", "b1", internal=True)["bytes_read"] == BLOCK
    assert ground.snapshots() == {baseline("b1")}
    ground.api.do("snapshot.create", "v1", "s1", snapshot_id="s1")
    old = bytes(ground.data)
    ground.write(4 * BLOCK, b"later")
    assert ground.save("b2", "b1", snapshot_id="s1")["bytes_read"] == SIZE
    assert ground.snapshots() == {baseline("b1"), Snapshot("v1", "s1")}
    assert ground.restored("b2") == old
    ground.save("b3", "b2")
    assert ground.snapshots() == {baseline("b3"), Snapshot("v1", "s1")}
    assert ground.restored("b3") == ground.data


def test_it_goes_with_its_volume(ground: Ground) -> None:
    ground.save("b1")
    assert ground.snapshots() == {baseline("b1")}
    ground.api.do("volume.delete", "v1", "v1")
    assert ground.snapshots() == set()


def test_a_start_leaves_it_but_of_what_is_gone(ground: Ground) -> None:
    ground.save("b1")
    ground.agent.stop()
    (ground.place.pool / "references" / "lost-volume.b7").write_bytes(b"")
    ground.start()
    assert ground.snapshots() == {baseline("b1")}
    ground.agent.stop()
    ground.start(keep=False)
    assert ground.snapshots() == set()
    ground.write(0, b"changed")
    assert ground.save("b2", "b1")["bytes_read"] == SIZE
    assert ground.snapshots() == set()


def test_a_failed_backup_leaves_the_last_ones(ground: Ground) -> None:
    ground.save("b1")
    ground.agent.stop()
    ground.start(worker=ODD_WORKER)
    job = ground.api.add(
        "backup.save", "v1", "full", backup_id="full", repository=REPOSITORY, parent_id="b1"
    )
    assert ground.api.wait(job)["status"] == "FAILED"
    assert ground.snapshots() == {baseline("b1")}


def test_a_backup_whose_snapshot_can_not_be_kept_is_done_all_the_same(ground: Ground) -> None:
    ground.save("b1")
    ground.pool.keeps = False
    ground.write(0, b"changed")
    assert ground.save("b2", "b1")["bytes_read"] == BLOCK
    assert ground.snapshots() == set()


def test_it_is_given_up_when_the_pool_gets_full(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "_LOOK_EVERY_TIGHT", 0.0)
    ground.save("b1")
    ground.api.do("snapshot.create", "v1", "s1", snapshot_id="s1")
    ground.pool.is_tight = True
    wait_until(lambda: ground.snapshots() == {Snapshot("v1", "s1")}, what="it is given up")
    ground.save("b2", "b1")
    assert ground.snapshots() == {Snapshot("v1", "s1")}  # nor is another kept


def test_old_and_lost_ones_are_given_up(ground: Ground) -> None:
    ground.save("b1")
    kept = baselines.Baselines(ground.pool, keep=True, days=1)
    assert not kept.look(tight=False)
    assert ground.snapshots() == {baseline("b1")}
    ages = {"v2": 2, "v3": 0.5, "v4": 0}
    for volume_id, days in ages.items():
        ground.pool.create(volume_id, BLOCK)
        ground.pool.snapshot(made := Snapshot(volume_id, "b", Purpose.BASELINE))
        then = time.time() - days * 86400
        os.utime(ground.pool.path(made), (then, then))
    ground.pool.lost.add(Snapshot("v4", "b", Purpose.BASELINE))
    assert not kept.look(tight=False)  # it was looked just now
    kept = baselines.Baselines(ground.pool, keep=True, days=1)
    with kept.using("v2", "b") as used:
        assert used is not None
        assert kept.look(tight=False)
        assert used in ground.snapshots()
    assert {one.volume_id for one in ground.snapshots()} == {"v1", "v2", "v3"}
    assert baselines.Baselines(ground.pool, keep=True, days=1).look(tight=False)
    assert {one.volume_id for one in ground.snapshots()} == {"v1", "v3"}
