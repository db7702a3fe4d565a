"""Promises that hold when many ask at once; run on every database (see `url`)."""

from __future__ import annotations

import functools
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from lunr.api.services import Services
from lunr.common import errors, times
from lunr.db.models import Backup, Job, ScheduleRun, Volume
from tests.functional.api.world import ALL, Outcome, World, outcome
from tests.support.waiting import PATIENCE

THREADS = 16


def at_once(calls: list[Callable[[], Any]]) -> list[Outcome]:
    """Make all calls from threads that begin together; what each gave."""
    gate = threading.Barrier(min(THREADS, len(calls)))
    begun = threading.local()

    def run(call: Callable[[], Any]) -> Outcome:
        if not hasattr(begun, "yes"):
            begun.yes = True
            gate.wait(PATIENCE)
        return outcome(call)

    with ThreadPoolExecutor(min(THREADS, len(calls))) as pool:
        return list(pool.map(run, calls))


class Races:
    """Subclasses have a fixture `url`: an empty database."""

    @pytest.fixture
    def world(self, url: str, tmp_path: Path) -> Iterator[World]:
        world = World(tmp_path, url)
        yield world
        world.close()

    @pytest.fixture
    def processes(self, world: World) -> Iterator[list[Services]]:
        """The services of three API processes."""
        others = [world.another() for _ in range(2)]
        yield [world.services, *others]
        for other in others:
            other.close()

    def test_room_for_ten_is_given_to_ten_of_fifty(
        self, world: World, processes: list[Services]
    ) -> None:
        world.beat("n1", gib=10)
        calls = [
            lambda i=i: processes[i % 3].volumes.create("acme", {"size": 1}) for i in range(50)
        ]
        results = Counter(result.error for result in at_once(calls))
        assert results == {None: 10, errors.NoRoom: 40}
        assert world.services.nodes.get("n1")["allocated_bytes"] == 10 << 30
        with world.services.context.db.read() as connection:
            assert connection.scalar(select(func.count()).select_from(Volume)) == 10
            assert connection.scalar(select(func.count()).select_from(Job)) == 10

    def test_extends_and_creates_share_the_room(
        self, world: World, processes: list[Services]
    ) -> None:
        for id in ("v1", "v2", "v3", "v4"):
            world.volume(id)
        world.beat("n1", gib=10)
        calls: list[Callable[[], Any]] = [
            lambda id=id: processes[0].volumes.extend("acme", id, 3) for id in ("v1", "v2", "v3")
        ]
        calls += [
            lambda i=i: processes[i % 3].volumes.create("acme", {"size": 1}) for i in range(8)
        ]
        results = at_once(calls)
        assert {result.error for result in results} <= {None, errors.NoRoom}
        extends = sum(result.error is None for result in results[:3])
        creates = sum(result.error is None for result in results[3:])
        assert 2 * extends + creates in (5, 6)  # 6 GiB were left; an extend may not fit in one
        assert world.services.nodes.get("n1")["allocated_bytes"] <= 10 << 30

    def test_a_quota_for_ten_is_kept_on_two_nodes(
        self, world: World, processes: list[Services]
    ) -> None:
        world.add_node("n2")
        world.services.accounts.update("acme", {"gigabytes": 10})
        calls = [
            lambda i=i: processes[i % 3].volumes.create("acme", {"size": 1}) for i in range(30)
        ]
        results = Counter(result.error for result in at_once(calls))
        assert results == {None: 10, errors.QuotaExceeded: 20}

    def test_the_same_put_many_times_is_one_volume(
        self, world: World, processes: list[Services]
    ) -> None:
        calls = [
            lambda i=i: processes[i % 3].volumes.create("acme", {"size": 1 + i % 2}, f"v{i // 20}")
            for i in range(60)
        ]
        results = at_once(calls)
        assert {result.error for result in results} == {None, errors.IdInUse}
        for first in (0, 20, 40):
            group = results[first : first + 20]
            assert Counter(r.error for r in group) == {None: 10, errors.IdInUse: 10}
            assert sum(r.value[1] for r in group if r.value) == 1
        assert len(world.work()) == 3

    def test_two_accounts_putting_one_id_get_one_volume(
        self, world: World, processes: list[Services]
    ) -> None:
        world.services.accounts.create("rival")
        for i in range(10):
            results = at_once(
                [
                    lambda i=i: processes[1].volumes.create("acme", {"size": 1}, f"id{i}"),
                    lambda i=i: processes[2].volumes.create("rival", {"size": 1}, f"id{i}"),
                ]
            )
            assert Counter(r.error for r in results) == {None: 1, errors.IdInUse: 1}

    def test_every_job_is_claimed_once_and_lanes_stay_in_order(
        self, world: World, processes: list[Services], jobs: int
    ) -> None:
        seed = random.randrange(1 << 32)
        print(f"seed {seed}")
        choose = random.Random(seed)
        volumes = [f"v{i}" for i in range(10)]
        for id in volumes:
            world.volume(id)
        for _ in range(jobs):
            world.services.backups.create("acme", choose.choice(volumes), {})
        claimed: list[str] = []

        def work(services: Services, pause: float) -> None:
            while (job := services.claims.claim("n1", ALL, wait=0.2)) is not None:
                claimed.append(job["id"])
                time.sleep(pause)
                services.claims.report("n1", job["id"], job["lease"], "DONE", result={})

        threads = [
            threading.Thread(target=work, args=(processes[i % 3], choose.uniform(0, 0.002)))
            for i in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert len(claimed) == len(set(claimed)) == jobs, f"seed {seed}"
        with world.services.context.db.read() as connection:
            rows = connection.execute(
                select(Job.volume_id, Job.started_at, Job.ended_at)
                .where(Job.kind == "backup.save")
                .order_by(Job.volume_id, Job.seq)
            ).all()
        for before, after in itertools.pairwise(rows):
            if before.volume_id == after.volume_id:
                assert before.ended_at <= after.started_at, f"two at once; seed {seed}"

    def test_attaching_and_deleting_at_once_never_both_succeed(
        self, world: World, processes: list[Services]
    ) -> None:
        for i in range(10):
            id = f"v{i}"
            world.volume(id)
            results = at_once(
                [
                    lambda id=id: processes[1].volumes.delete("acme", id),
                    lambda id=id: processes[2].exports.create("acme", id, "iqn.2026-11.a:b", None),
                    lambda id=id: processes[0].backups.create("acme", id, {}),
                ]
            )
            deleted = results[0].error is None
            assert deleted == (results[1].error is not None and results[2].error is not None)
            world.work()

    def test_a_parent_is_not_deleted_while_a_backup_is_made_on_it(
        self, world: World, processes: list[Services]
    ) -> None:
        world.volume()
        for i in range(8):
            world.backup(f"parent{i}")
            world.services.backups.create("acme", "v1", {}, f"child{i}")
            claimed, deleted = at_once(
                [
                    lambda: processes[1].claims.claim("n1", ["backup.save"]),
                    lambda i=i: processes[2].backups.delete("acme", f"parent{i}"),
                ]
            )
            assert claimed.value is not None
            is_parent = claimed.value["payload"]["parent_id"] == f"parent{i}"
            assert is_parent == (deleted.error is errors.InUse)
            world.done(claimed.value)
            world.work()

    @pytest.mark.parametrize("status", ["DONE", "FAILED", "CANCELLED"])
    @pytest.mark.parametrize("ends", ["cancelled", "deleted", "expired"])
    def test_a_copy_that_is_given_up_while_its_save_ends_leaves_nothing(
        self, world: World, processes: list[Services], status: str, ends: str
    ) -> None:
        world.volume()
        world.add_node("n2")
        error = {"code": "test", "reason": "No.", "retry": False}
        for i in range(2):
            request = {"source_volume": "v1", "force_node": "n2"}
            copy, _ = world.services.volumes.create("acme", request, f"copy{i}")
            save = world.claim("n1")
            give_up = {
                "cancelled": lambda copy=copy: processes[1].jobs.cancel("acme", copy["job_id"]),
                "deleted": lambda copy=copy: processes[1].volumes.delete("acme", copy["id"]),
                "expired": lambda: processes[1].leases.expire(times.now() + timedelta(hours=1)),
            }
            results = at_once(
                [
                    lambda save=save: processes[0].claims.report(
                        "n1", save["id"], save["lease"], status, result={}, error=error
                    ),
                    give_up[ends],
                ]
            )
            allowed = {None, errors.StaleLease, errors.WrongState}
            assert {result.error for result in results} <= allowed
            while world.work("n1") or world.work("n2"):
                pass
            with world.services.context.db.read() as connection:
                left = connection.execute(
                    select(Backup.id, Backup.status).where(
                        Backup.internal, Backup.status != "DELETED"
                    )
                ).all()
            assert left == []
            assert world.services.volumes.get("acme", copy["id"])["job_id"] is None

    @pytest.mark.parametrize("copied", [True, False], ids=["copied", "backed up"])
    def test_a_snapshot_is_deleted_or_saved_never_both(
        self, world: World, processes: list[Services], copied: bool
    ) -> None:
        world.volume()
        world.add_node("n2")
        for _ in range(6):
            id = world.services.snapshots.create("acme", "v1")["id"]
            world.work("n1")
            request = {"snapshot": id}
            use: Callable[[], Any] = (
                (lambda r=request: processes[1].volumes.create("acme", r | {"force_node": "n2"}))
                if copied
                else (lambda r=request: processes[1].backups.create("acme", "v1", r))
            )
            saved, deleted = at_once([use, lambda id=id: processes[2].snapshots.delete("acme", id)])
            assert (saved.error is None) == (deleted.error is errors.InUse)
            assert saved.error in (None, errors.WrongState)
            while world.work("n1") or world.work("n2"):
                pass

    def test_a_save_knows_what_is_condemned_or_is_waited_for(
        self, world: World, processes: list[Services]
    ) -> None:
        world.volume()
        known: set[bool] = set()
        for i in range(10):
            collection = f"c{i}"
            world.services.collect.request("acme")
            collect = world.claim(kinds=["repository.collect"])
            world.services.backups.create("acme", "v1", {"full": True})
            calls: list[Callable[[], Any]] = [
                lambda: processes[1].claims.claim("n1", ["backup.save"]),
                functools.partial(
                    processes[2].claims.report,
                    "n1",
                    collect["id"],
                    collect["lease"],
                    "DONE",
                    result={"collection": collection},
                ),
            ]
            if i < 2:  # each of them is first once, whatever chance does
                outcomes = [outcome(call) for call in (calls if i else reversed(calls))]
                save = outcomes[0 if i else 1]
            else:
                save, _ = at_once(calls)
            knows = collection in save.value["payload"]["condemned"]
            sweep = world.claim(kinds=["repository.sweep"])
            assert knows == (sweep is not None)
            known.add(knows)
            world.done(save.value)
            sweep = sweep or world.claim(kinds=["repository.sweep"])
            world.done(sweep)
        assert known == {True, False}

    def test_housekeepers_that_run_at_once_make_one_backup_of_each_volume(
        self, world: World, processes: list[Services]
    ) -> None:
        ids = [f"v{i}" for i in range(12)]
        for id in ids:
            world.volume(id)
        world.services.schedules.create_for_type("default", {"every": "1h"})
        now = times.now()
        planned = at_once([lambda p=p: p.scheduling.plan(now) for p in processes])
        assert {result.error for result in planned} == {None}
        while world.services.scheduling.plan(now):
            pass

        def run(services: Services, later: datetime) -> list[Any]:
            return list(iter(lambda: services.scheduling.run(later), None))

        for hours in (1, 30, 60):
            later = now + timedelta(hours=hours)
            results = at_once([lambda p=p, t=later: run(p, t) for p in processes])
            assert {result.error for result in results} == {None}
            ran = [one for result in results for one in result.value]
            # One that came second must not even note that it skipped the volume.
            assert {one.reason for one in ran} == {None}
            assert sorted(one.volume_id for one in ran) == sorted(ids)
            world.work()

    def test_the_volumes_own_schedule_is_good_whoever_plans_at_that_moment(
        self, world: World, processes: list[Services]
    ) -> None:
        world.services.schedules.create_for_type("default", {"every": "1h"})
        now = times.now()
        for i in range(8):
            id = f"v{i}"
            world.volume(id)
            results = at_once(
                [
                    lambda: processes[0].scheduling.plan(now),
                    lambda id=id: processes[1].schedules.create("acme", id, {"every": "none"}),
                    lambda: processes[2].scheduling.run(now + timedelta(hours=2)),
                ]
            )
            assert {result.error for result in results} == {None}
            with world.services.context.db.read() as connection:
                good = connection.scalar(
                    select(ScheduleRun.schedule_id).where(ScheduleRun.volume_id == id)
                )
            assert good == results[1].value["id"]
        assert world.services.scheduling.run(now + timedelta(days=9)) is None

    def test_a_backup_is_protected_or_pruned_never_both(
        self, world: World, processes: list[Services]
    ) -> None:
        world.volume()
        for i in range(8):
            old, new = f"old{i}", f"new{i}"
            world.backup(old)
            world.backup(new)
            pruned, protected = at_once(
                [
                    lambda: processes[1].retention.prune(
                        "acme", "v1", {"keep_last": 1}, by_hand=True
                    ),
                    lambda old=old: processes[2].backups.update("acme", old, {"protected": True}),
                ]
            )
            assert pruned.error is None
            status = world.services.backups.get("acme", old)["status"]
            assert protected.error in (None, errors.InUse)
            assert status == ("AVAILABLE" if protected.error is None else "DELETING")
            world.services.backups.update("acme", new, {"protected": True})
            world.work()

    def test_a_prune_waits_for_who_protects_a_backup_at_that_moment(
        self, world: World, processes: list[Services]
    ) -> None:
        world.volume()
        world.backup("old")
        world.backup("new")
        changed = threading.Event()

        def protect(session: Session) -> None:
            session.execute(update(Backup).where(Backup.id == "old").values(protected=True))
            changed.set()
            time.sleep(0.5)  # the prune reads meanwhile, and must not go by what it read

        def prune() -> Any:
            changed.wait(PATIENCE)
            return processes[1].retention.prune("acme", "v1", {"keep_last": 1}, by_hand=True)

        results = at_once([lambda: processes[2].context.db.write(protect), prune])
        assert {result.error for result in results} == {None}
        old = world.services.backups.get("acme", "old")
        assert (old["protected"], old["status"]) == (True, "AVAILABLE")
