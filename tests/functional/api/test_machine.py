"""Whatever happens in whatever order, all ends in a stable state, and the room is counted right."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import exists, or_, select
from sqlalchemy.orm import aliased

from lunr.common import errors, times
from lunr.db.models import Backup, Collection, Export, Job, JobAfter, Snapshot, Volume
from tests.functional.api.world import ALL, World, outcome
from tests.support.thorough import examples

#: GiB of each node.
ROOM = {"n1": 100, "n2": 20}
STABLE = {
    Volume: {"ACTIVE", "ERROR", "DELETED"},
    Snapshot: {"AVAILABLE", "ERROR", "DELETED"},
    Backup: {"AVAILABLE", "ERROR", "DELETED"},
    Export: {"ATTACHED", "ERROR", "DELETED"},
    Job: {"DONE", "FAILED", "CANCELLED"},
}
NODES = st.sampled_from(["n1", "n2"])
ANYWHERE = st.sampled_from([None, "n1", "n2"])
#: Picks one of what there is then; drawn before anybody knows how many there are.
PICK = st.integers(0, 3)
_SAVED = aliased(Backup)


class Service(RuleBasedStateMachine):
    """Callers, two nodes, the housekeeper and bad luck, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.held: list[tuple[str, Any]] = []

    @initialize()
    def begin(self) -> None:
        self.world = World(Path(self._folder.name), job_attempts=3)
        self.world.add_node("n2", gib=ROOM["n2"])
        self.services = self.world.services
        self.world.volume("v0")
        self.world.backup("b0", "v0")
        self.volumes, self.backups = ["v0"], ["b0"]

    def ask(self, function: Any, *args: Any, **kwargs: Any) -> None:
        """A caller asks; being refused is fine, every other exception is a defect."""
        outcome(function, *args, **kwargs)

    @rule(size=st.integers(1, 9), built=st.booleans())
    def create(self, size: int, built: bool) -> None:
        self.make({"size": size})
        if built:
            self.work("n1")
            self.work("n2")

    @rule(pick=PICK, node=ANYWHERE)
    def clone(self, pick: int, node: str | None) -> None:
        """On another node than its source's, it goes through the store."""
        self.make({"source_volume": self.volume(pick), "force_node": node})

    @rule(pick=PICK, usable=st.booleans())
    def restore(self, pick: int, usable: bool) -> None:
        self.make({"backup": self.backup(pick), "fill": "never"})
        if usable:
            for node in ("n1", "n2"):
                self.world.work(node, kinds=["volume.restore"])

    def make(self, request: dict[str, Any]) -> None:
        self.volumes.append(f"v{len(self.volumes)}")
        self.ask(self.services.volumes.create, "acme", request, self.volumes[-1])

    def volume(self, pick: int) -> str:
        return self.volumes[-1 - pick % len(self.volumes)]

    def backup(self, pick: int) -> str:
        return self.backups[-1 - pick % len(self.backups)]

    @rule(pick=PICK)
    def put_again(self, pick: int) -> None:
        self.ask(self.services.volumes.create, "acme", {"size": 1}, self.volume(pick))

    @rule(pick=PICK)
    def delete(self, pick: int) -> None:
        self.ask(self.services.volumes.delete, "acme", self.volume(pick))

    @rule(pick=PICK, size=st.integers(8, 20))
    def extend(self, pick: int, size: int) -> None:
        self.ask(self.services.volumes.extend, "acme", self.volume(pick), size)

    @rule(pick=PICK, mode=st.sampled_from(["eager", "lazy", "never"]))
    def fill(self, pick: int, mode: str) -> None:
        self.ask(self.services.volumes.update, "acme", self.volume(pick), {"fill": mode})

    @rule(pick=PICK, node=NODES)
    def it_was_filled_by_being_read(self, pick: int, node: str) -> None:
        if self.services.nodes.get(node)["status"] == "ACTIVE":
            self.world.beat(node, gib=ROOM[node], filled=[self.volume(pick)])

    @rule(pick=PICK)
    def attach(self, pick: int) -> None:
        volume = self.volume(pick)
        self.ask(self.services.exports.create, "acme", volume, "iqn.2026-11.a:b", None)

    @rule(pick=PICK, force=st.booleans())
    def detach(self, pick: int, force: bool) -> None:
        self.ask(self.services.exports.delete, "acme", self.volume(pick), force)

    @rule(pick=PICK, full=st.booleans())
    def save(self, pick: int, full: bool) -> None:
        self.backups.append(f"b{len(self.backups)}")
        request = {"full": full}
        self.ask(self.services.backups.create, "acme", self.volume(pick), request, self.backups[-1])

    @rule(pick=PICK, what=st.sampled_from(["delete", "verify"]))
    def do_to_backup(self, pick: int, what: str) -> None:
        self.ask(getattr(self.services.backups, what), "acme", self.backup(pick))

    @rule(pick=PICK, protected=st.booleans())
    def protect(self, pick: int, protected: bool) -> None:
        change = {"protected": protected}
        self.ask(self.services.backups.update, "acme", self.backup(pick), change)

    @rule(pick=PICK, count=st.integers(1, 2))
    def prune(self, pick: int, count: int) -> None:
        rules = {"keep_last": count}
        self.ask(self.services.retention.prune, "acme", self.volume(pick), rules, by_hand=True)

    @rule(pick=PICK, every=st.sampled_from(["15m", "1d", "none"]))
    def schedule(self, pick: int, every: str) -> None:
        self.ask(self.services.schedules.create, "acme", self.volume(pick), {"every": every})

    @rule(hours=st.integers(0, 30))
    def schedules_run(self, hours: int) -> None:
        """As if it were some hours later."""
        now = times.now() + timedelta(hours=hours)
        self.services.scheduling.forget()
        self.services.scheduling.plan(now)
        while (ran := self.services.scheduling.run(now)) is not None:
            if ran.backup_id is not None:
                self.backups.append(ran.backup_id)

    @rule(pick=PICK)
    def snapshot(self, pick: int) -> None:
        self.ask(self.services.snapshots.create, "acme", self.volume(pick))

    @rule(pick=PICK, use=st.sampled_from(["clone", "save", "delete"]), node=ANYWHERE)
    def use_snapshot(self, pick: int, use: str, node: str | None) -> None:
        ids = self._ids(Snapshot.id, Snapshot.created_at)
        if ids:
            id = ids[pick % len(ids)]
            if use == "clone":
                self.make({"snapshot": id, "force_node": node})
            elif use == "save":
                request, volume = {"snapshot": id}, self.services.snapshots.get("acme", id)
                self.ask(self.services.backups.create, "acme", volume["volume_id"], request)
            else:
                self.ask(self.services.snapshots.delete, "acme", id)

    @rule()
    def collect(self) -> None:
        self.ask(self.services.collect.request, "acme")

    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        ids = self._ids(Job.id, Job.seq.desc())
        if ids:
            self.ask(self.services.jobs.cancel, "acme", ids[pick % len(ids)])

    @rule(node=NODES)
    def work(self, node: str) -> None:
        self.world.work(node)

    @rule(node=NODES)
    def claim(self, node: str) -> None:
        """A node begins a job, and perhaps never tells of it again."""
        job = self.services.claims.claim(node, ALL)
        if job is not None:
            self.held.append((node, job))

    @rule(
        pick=PICK,
        status=st.sampled_from(["RUNNING", "DONE", "FAILED", "CANCELLED"]),
        retry=st.booleans(),
    )
    def report(self, pick: int, status: str, retry: bool) -> None:
        """A node tells of a job that it holds, or once held; newest first."""
        if self.held:
            node, job = self.held[-1 - pick % len(self.held)]
            error = {"code": "test", "reason": "No.", "retry": retry}
            result: dict[str, Any] = {}
            if "collect" in job["kind"]:
                result = {"collection": f"c-{job['id']}"}
            elif job["kind"] == "snapshot.create" and pick % 2:
                result = {"base_id": None}  # it was full by then
            self.ask(
                self.services.claims.report, node, job["id"], job["lease"], status, 5, result, error
            )

    @rule(node=NODES)
    def restart(self, node: str) -> None:
        self.services.nodes.reconcile(node, [], [])

    @rule()
    def leases_run_out(self) -> None:
        self.services.leases.expire(times.now() + timedelta(hours=1))

    @rule(node=NODES)
    def node_is_silent(self, node: str) -> None:
        self.services.nodes.mark_down(times.now() + timedelta(hours=1))
        self.world.beat(node, gib=ROOM[node])

    @rule(node=NODES, chance=st.integers(0, 9))
    def node_is_lost(self, node: str, chance: int) -> None:
        if chance == 9:
            self.services.nodes.delete(node, force=True)
            self.world.add_node(node, gib=ROOM[node])

    @rule(node=NODES, pick=PICK)
    def snapshot_is_lost(self, node: str, pick: int) -> None:
        lost = self._ids(Snapshot.id, Snapshot.created_at)[pick : pick + 1]
        self.world.beat(node, gib=ROOM[node], lost_snapshots=lost)

    @rule()
    def internal_backups_are_let_go(self) -> None:
        self.services.maintenance.release_unneeded(times.now() + timedelta(hours=1))

    @rule()
    def purge(self) -> None:
        self.services.maintenance.purge(times.now(), keep_records=0)

    def _ids(self, column: Any, order: Any) -> list[str]:
        with self.services.context.db.read() as connection:
            return list(connection.scalars(select(column).order_by(order)))

    @invariant()
    def one_running_job_a_lane_and_the_room_is_kept(self) -> None:
        if not hasattr(self, "world"):
            return
        with self.services.context.db.read() as connection:
            lock_keys = list(
                connection.scalars(select(Job.lock_key).where(Job.status == "RUNNING"))
            )
            volumes = connection.execute(
                select(Volume.node_id, Volume.size, Volume.reserved, Volume.status, Volume.job_id)
            ).all()
        assert len(lock_keys) == len(set(lock_keys))
        for node, room in ROOM.items():
            live = [v for v in volumes if v.node_id == node and v.status != "DELETED"]
            assert sum(volume.reserved for volume in live) <= room
        for volume in volumes:
            assert volume.reserved >= volume.size
            assert volume.reserved == volume.size or volume.job_id is not None

    @invariant()
    def what_is_restored_is_there_and_what_is_not_needed_goes(self) -> None:
        if not hasattr(self, "world"):
            return
        for status, needed, cancelled in self._internal():
            # ERROR: its delete failed, and the housekeeper sees to it.
            assert needed or cancelled or status == "ERROR"
        users = (
            select(Volume.base_id).where(
                Volume.status.in_(("NEW", "BUILDING", "RESTORING")),
                or_(Volume.transfer_id.is_(None), Volume.usable),
            ),
            select(Snapshot.base_id).where(Snapshot.status.in_(("NEW", "SAVING", "AVAILABLE"))),
            select(_SAVED.base_id).where(_SAVED.status == "SAVING"),
        )
        with self.services.context.db.read() as connection:
            statuses = connection.scalars(
                select(Backup.status)
                .join(Volume, Volume.base_id == Backup.id)
                .join(Job, Job.subject_id == Volume.id)
                .where(Job.kind == "volume.restore", Job.status == "RUNNING")
            )
            assert set(statuses) <= {"AVAILABLE"}
            for used in users:
                needed_ids = set(connection.scalars(used)) - {None}
                there = select(Backup.id).where(Backup.status == "AVAILABLE")
                assert needed_ids <= set(connection.scalars(there))

    @invariant()
    def what_is_protected_stays(self) -> None:
        if not hasattr(self, "world"):
            return
        with self.services.context.db.read() as connection:
            statuses = connection.scalars(select(Backup.status).where(Backup.protected))
            assert not {"DELETING", "DELETED"} & set(statuses)

    @invariant()
    def nothing_waits_for_a_job_that_is_not_there(self) -> None:
        if hasattr(self, "world"):
            assert self.services.maintenance.repair() == []

    def teardown(self) -> None:
        try:
            if hasattr(self, "world"):
                self._settle()
                self.world.close()
        finally:
            self._folder.cleanup()

    def _settle(self) -> None:
        """The nodes come back and do what there is: then everything must be stable."""
        self.services.leases.expire(times.now() + timedelta(hours=1))
        for node in ("n1", "n2"):
            self.world.beat(node, gib=ROOM[node])
        self._work_off()
        self.world.fill_up()
        self.internal_backups_are_let_go()  # those whose delete failed
        self._work_off()
        lacking = select(Snapshot.id).where(
            Snapshot.base_id.is_not(None), Snapshot.status.not_in(("DELETING", "DELETED"))
        )
        with self.services.context.db.read() as connection:
            found = list(connection.scalars(lacking))
        for snapshot in found:
            self.services.snapshots.delete("acme", snapshot)
        self._work_off()
        assert self._internal() == []
        with self.services.context.db.read() as connection:
            for model, stable in STABLE.items():
                found = set(connection.scalars(select(model.status)))
                assert found <= stable, (model.__name__, found)
                if model is not Job:
                    assert set(connection.scalars(select(model.job_id))) <= {None}
            assert not connection.execute(select(JobAfter)).all() or not self._live(connection)
            swept = connection.scalars(select(Collection.id)).all()
        if swept:  # a sweep that failed is made up for
            self.services.collect.request("acme")
            self._work_off()
            assert self._ids(Collection.id, Collection.id) == []

    def _work_off(self) -> None:
        while any(self.world.work(node) for node in ("n1", "n2")):
            pass

    def _internal(self) -> list[Any]:
        """The internal backups that are there, and whether something needs each."""
        child = aliased(Backup)
        needed = or_(
            exists().where(
                Volume.base_id == Backup.id, Volume.status.in_(("NEW", "BUILDING", "RESTORING"))
            ),
            exists().where(
                Snapshot.base_id == Backup.id,
                Snapshot.status.in_(("NEW", "SAVING", "AVAILABLE")),
            ),
            exists().where(
                or_(child.parent_id == Backup.id, child.base_id == Backup.id),
                child.status == "SAVING",
            ),
        )
        with self.services.context.db.read() as connection:
            return list(
                connection.execute(
                    select(Backup.status, needed.label("needed"), Job.cancel)
                    .outerjoin(Job, Job.id == Backup.job_id)
                    .where(Backup.internal, Backup.status.not_in(("DELETING", "DELETED")))
                )
            )

    @staticmethod
    def _live(connection: Any) -> list[str]:
        return list(connection.scalars(select(Job.id).where(Job.status.in_(("QUEUED", "RUNNING")))))


TestService = Service.TestCase
TestService.settings = settings(max_examples=examples(5, 300), stateful_step_count=50)


def test_refusals_are_errors_of_lunr(world: World) -> None:
    """What `ask` swallows is only what the service means to say."""
    assert outcome(world.services.volumes.get, "acme", "none").error is errors.NotFound
