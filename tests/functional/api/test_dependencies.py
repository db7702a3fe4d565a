"""Random histories: after each step, a backup is kept or released as all records together say.

The truth is computed from nothing after each step, from every record and without the service.
``LUNR_SEED`` repeats a history.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, delete, select

from lunr.api.services.dependencies import find_dependents
from lunr.common import times
from lunr.db.models import Backup, Job, JobAfter, Snapshot, Volume
from tests.functional.api.world import World, outcome
from tests.support.thorough import examples

SEED = int(os.environ.get("LUNR_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
NODES = ("n1", "n2")
STEPS = 100


def _later() -> Any:
    return times.now() + timedelta(hours=1)


@dataclass
class Records:
    """All records of a moment."""

    volumes: list[Any]
    snapshots: list[Any]
    backups: list[Any]
    jobs: dict[str, Any]
    #: Of each subject.
    deletes: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, connection: Connection) -> Records:
        rows = [
            list(connection.execute(select(model.__table__)))
            for model in (Volume, Snapshot, Backup, Job)
        ]
        deletes = {job.subject_id for job in rows[3] if job.kind == "backup.delete"}
        return cls(rows[0], rows[1], rows[2], {job.id: job for job in rows[3]}, deletes)

    def needed(self) -> set[str]:
        """The ids of the backups that something needs."""
        needed = {
            *(v.base_id for v in self.volumes if v.status in ("NEW", "BUILDING", "RESTORING")),
            *(s.base_id for s in self.snapshots if s.status in ("NEW", "SAVING", "AVAILABLE")),
            *(b.base_id for b in self.backups if b.status == "SAVING"),
            *(b.parent_id for b in self.backups if b.status == "SAVING"),
        }
        return needed - {None}

    def is_released(self, backup: Any) -> bool:
        """Whether a hidden backup was deleted, or its save told to stop so that it can be."""
        if backup.status in ("DELETING", "DELETED") or backup.id in self.deletes:
            return True
        job = self.jobs.get(backup.job_id)
        return job is not None and job.status == "RUNNING" and job.cancel


class History:
    """Callers, two nodes, the housekeeper and bad luck, drawn by `seed`."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.services = world, world.services
        self._chance = random.Random(seed)
        self._held: list[tuple[str, Any]] = []
        #: What was done, and to what.
        self.steps: list[str] = []
        #: Saves that a caller cancelled: they end whether they are needed or not.
        self._cancelled: set[str] = set()
        world.add_node("n2")
        world.volume("v0")
        world.backup("b0", "v0")

    def records(self) -> Records:
        with self.services.context.db.read() as connection:
            return Records.read(connection)

    def step(self) -> None:
        """Do one thing by chance, then compare."""
        weights: dict[Callable[[], str | None], float] = {
            **dict.fromkeys((self.claim, self.finish), 10),
            **dict.fromkeys((self.copy,), 5),
            **dict.fromkeys((self.save, self.snapshot, self.retry), 2),
            **dict.fromkeys((self.restore, self.clone, self.create, self.save_snapshot), 1),
            **dict.fromkeys((self.fill, self.fill_by_reading, self.fail, self.stop), 1),
            **dict.fromkeys((self.delete_volume, self.delete_snapshot, self.delete_backup), 1),
            **dict.fromkeys((self.cancel, self.lose_leases), 1),
            **dict.fromkeys((self.restart, self.lose_snapshots, self.orphan), 0.5),
            self.lose_node: 0.2,
        }
        [move] = self._chance.choices(list(weights), list(weights.values()))
        detail = move()
        self.steps.append(f"{move.__name__} {detail or ''}".strip())
        self.compare()

    def compare(self) -> None:
        records = self.records()
        needed = records.needed()
        for backup in records.backups:
            if backup.internal:
                released = records.is_released(backup)
                if backup.id in needed:
                    assert not released or backup.job_id in self._cancelled, f"{backup} is needed"
                else:
                    assert released, f"{backup} is kept for nothing"
            elif backup.id in needed:
                assert backup.status == "AVAILABLE", f"{backup} is needed"

        def check(session: Any) -> None:
            for backup in records.backups:
                dependents = find_dependents(session, backup.id)
                assert any(dependents) == (backup.id in needed), (backup, dependents)

        self.services.context.db.write(check)

    # --- what callers do ------------------------------------------------------------

    def _pick(self, rows: list[Any]) -> Any:
        return self._chance.choice(rows) if rows else None

    def _volume(self) -> Any:
        """Any, but half of the time one that lacks something."""
        there = [row for row in self.records().volumes if row.status != "DELETED"]
        if not there:
            self.services.volumes.create("acme", {"size": 1})
            return self._volume()
        lacking = [row for row in there if row.status == "RESTORING" and row.usable]
        return self._pick(lacking if lacking and self._chance.random() < 0.5 else there)

    def _snapshot(self) -> Any:
        return self._pick([row for row in self.records().snapshots if row.status != "DELETED"])

    def _make(self, request: dict[str, Any]) -> str:
        made = outcome(self.services.volumes.create, "acme", request)
        return f"{request}: {made.error or made.value[0]['id']}"

    def create(self) -> str:
        return self._make({"size": 1})

    def restore(self) -> str:
        backups = [row for row in self.records().backups if not row.internal]
        fill = self._chance.choice(("eager", "never"))
        return self._make({"backup": self._pick(backups).id, "fill": fill})

    def clone(self) -> str:
        source, _ = self._source()
        return self._make(source)

    def copy(self) -> str:
        source, node = self._source()
        return self._make({**source, "force_node": "n1" if node == "n2" else "n2"})

    def _source(self) -> tuple[dict[str, Any], str]:
        snapshot = self._snapshot() if self._chance.random() < 0.4 else None
        if snapshot is not None:
            return {"snapshot": snapshot.id}, snapshot.node_id
        volume = self._volume()
        return {"source_volume": volume.id}, volume.node_id

    def snapshot(self) -> str:
        id = self._volume().id
        return f"{id}: {outcome(self.services.snapshots.create, 'acme', id).error}"

    def save(self) -> str:
        id, request = self._volume().id, {"full": self._chance.random() < 0.3}
        return f"{id}: {outcome(self.services.backups.create, 'acme', id, request).error}"

    def save_snapshot(self) -> str:
        snapshot = self._snapshot()
        if snapshot is None:
            return ""
        request = {"snapshot": snapshot.id}
        made = outcome(self.services.backups.create, "acme", snapshot.volume_id, request)
        return f"{snapshot.id}: {made.error}"

    def fill(self) -> str:
        id, mode = self._volume().id, self._chance.choice(("eager", "eager", "never"))
        change = {"fill": mode}
        return f"{id} {mode}: {outcome(self.services.volumes.update, 'acme', id, change).error}"

    def delete_volume(self) -> str:
        id = self._volume().id
        return f"{id}: {outcome(self.services.volumes.delete, 'acme', id).error}"

    def delete_snapshot(self) -> str:
        snapshot = self._snapshot()
        if snapshot is None:
            return ""
        return (
            f"{snapshot.id}: {outcome(self.services.snapshots.delete, 'acme', snapshot.id).error}"
        )

    def delete_backup(self) -> str:
        backup = self._pick([row for row in self.records().backups if row.id != "b0"])
        if backup is None:
            return ""
        return f"{backup.id}: {outcome(self.services.backups.delete, 'acme', backup.id).error}"

    def cancel(self) -> str:
        live = [j for j in self.records().jobs.values() if j.status in ("QUEUED", "RUNNING")]
        job = self._pick(live)
        if job is None:
            return ""
        self._cancelled.add(job.id)
        return f"{job.kind} {job.id}: {outcome(self.services.jobs.cancel, 'acme', job.id).error}"

    # --- what nodes do --------------------------------------------------------------

    def claim(self) -> str:
        node = self._chance.choice(NODES)
        job = self.world.claim(node)
        if job is None:
            return f"{node}: nothing"
        self._held.append((node, job))
        return f"{node}: {job['kind']} {job['id']} {job['payload']}"

    def _report(self, status: str, retry: bool = False) -> str:
        if not self._held:
            return ""
        node, job = self._held.pop(self._chance.randrange(len(self._held)))
        result: dict[str, Any] = {}
        if job["kind"] == "backup.save":
            result = {"parent_id": self._chance.choice((None, job["payload"]["parent_id"]))}
        elif job["kind"] == "snapshot.create" and self._chance.random() < 0.5:
            result = {"base_id": None}  # it was full by then
        error = {"code": "test", "reason": "No.", "retry": retry}
        report = self.services.claims.report
        told = outcome(report, node, job["id"], job["lease"], status, 5, result, error)
        return f"{node}: {job['kind']} {job['id']}: {told.error}"

    def finish(self) -> str:
        return self._report("DONE")

    def fail(self) -> str:
        return self._report("FAILED")

    def retry(self) -> str:
        return self._report("FAILED", retry=True)

    def stop(self) -> str:
        return self._report("CANCELLED")

    def restart(self) -> str:
        node = self._chance.choice(NODES)
        self.services.nodes.reconcile(node, [], [])
        return node

    def fill_by_reading(self) -> str:
        node, id = self._chance.choice(NODES), self._volume().id
        self.world.beat(node, filled=[id])
        return f"{node}: {id}"

    def lose_snapshots(self) -> str:
        snapshot, node = self._snapshot(), self._chance.choice(NODES)
        self.world.beat(node, lost_snapshots=[] if snapshot is None else [snapshot.id])
        return f"{node}: {snapshot and snapshot.id}"

    def lose_node(self) -> str:
        node = self._chance.choice(NODES)
        self.services.nodes.delete(node, force=True)
        self.world.add_node(node)
        return node

    def lose_leases(self) -> None:
        self.services.leases.expire(_later())

    def orphan(self) -> str:
        """Somebody deletes a job by hand, and the housekeeper mends that."""
        live = [
            job
            for job in self.records().jobs.values()
            if job.status == "QUEUED" and job.kind in ("volume.clone", "snapshot.create")
        ]
        job = self._pick(live)
        if job is None:
            return ""

        def forget(session: Any) -> None:
            session.execute(delete(JobAfter).where(JobAfter.job_id == job.id))
            session.execute(delete(Job).where(Job.id == job.id))

        self.services.context.db.write(forget)
        return f"{job.kind} of {job.subject_id}: {self.services.maintenance.repair()}"


def play(folder: Path, seed: int) -> int:
    """One history; how many hidden backups were released in it."""
    world = World(folder)
    history = History(world, seed)
    try:
        for _ in range(STEPS):
            history.step()
        records = history.records()
        return sum(map(records.is_released, filter(lambda row: row.internal, records.backups)))
    except AssertionError as error:
        told = "\n".join(history.steps)
        raise AssertionError(f"LUNR_SEED={seed} repeats this:\n{told}\n{error}") from error
    finally:
        world.close()


def test_backups_are_kept_as_long_as_they_are_needed_and_no_longer(tmp_path: Path) -> None:
    released = 0
    for number in range(examples(6, 1000)):
        folder = tmp_path / str(number)
        folder.mkdir()
        released += play(folder, SEED + number)
    assert released, "no history had any, and nothing was tested"


@pytest.mark.parametrize("status", ["DONE", "FAILED"])
def test_a_save_that_is_tried_again_needs_what_it_needs_now(world: World, status: str) -> None:
    """The hidden backup that an attempt built on is released when the next builds on another."""
    world.add_node("n2")
    world.volume("v1")
    world.services.volumes.create("acme", {"source_volume": "v1", "force_node": "n2"}, "copy")
    world.work("n1")
    world.work("n2", kinds=["volume.restore"])
    world.services.backups.create("acme", "copy", {}, "b1")
    save = world.claim("n2", kinds=["backup.save"])
    assert save["payload"]["base_id"] is not None
    assert world.work("n2", kinds=["volume.fill"]) == ["volume.fill"]
    assert world.work("n1") == [], "the save needs it"
    world.fail(save, "n2", retry=True)
    again = world.claim("n2", kinds=["backup.save"])
    assert again["payload"]["base_id"] is None
    assert world.work("n1") == ["backup.delete"]
    world.services.claims.report("n2", again["id"], again["lease"], status)


def test_a_volume_that_lost_its_job_needs_nothing(world: World) -> None:
    world.add_node("n2")
    world.volume("v1")
    world.services.volumes.create("acme", {"source_volume": "v1", "force_node": "n2"}, "copy")
    world.work("n1")
    world.services.context.db.write(
        lambda session: session.execute(delete(Job).where(Job.kind == "volume.restore"))
    )
    assert world.services.maintenance.repair() == ["copy"]
    assert world.work("n1") == ["backup.delete"]
