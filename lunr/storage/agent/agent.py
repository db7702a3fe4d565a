"""The agent: makes a node what the API says it should be, and does the API's jobs.

Threads: one beats (tells the API that the node lives), one looks after the pool,
one tidies it, one watches the exports, and a few claim jobs: `quick_workers` those that are
done in moments, `data_workers` those that move data, so that a long backup
keeps nobody waiting for an export, and `concurrent_fills` those that follow a
restored volume while it is filled.
"""

from __future__ import annotations

import functools
import logging
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from lunr import __version__
from lunr.common import errors, ids
from lunr.storage.agent.api_client import ApiClient
from lunr.storage.agent.backoff import Backoff
from lunr.storage.agent.job import ClaimedJob, Stop
from lunr.storage.agent.job_runner import JobRunner
from lunr.storage.agent.pending_deletes import PendingDeletes
from lunr.storage.agent.pool_monitor import PoolMonitor
from lunr.storage.jobs import HANDLERS, worker_slots
from lunr.storage.jobs.consistent_snapshot import drop
from lunr.storage.jobs.node_context import NodeContext
from lunr.storage.metrics import Metrics
from lunr.storage.pools.base import Purpose, Snapshot
from lunr.storage.targets.base import Target, TargetUnavailable

_log = logging.getLogger(__name__)
T = TypeVar("T")

#: Seconds that a claim waits at the API for a job.
CLAIM_WAIT = 30
#: Seconds between two looks at the target, and at the pool.
WATCH_INTERVAL = 1.0
#: Seconds that jobs are given to end when the agent is told to stop.
STOP_TIMEOUT = 10.0


class Agent:
    """One storage node at work. `start` returns when it claims jobs; `stop` ends it."""

    def __init__(
        self,
        node: NodeContext,
        target: Target,
        api: ApiClient,
        portal: str,
        *,
        heartbeat: float,
        quick_workers: int,
        data_workers: int,
        concurrent_fills: int,
        metrics: Metrics,
    ) -> None:
        self.node = node
        self._target = target
        self._api = api
        self._portal = portal
        self._heartbeat = heartbeat
        self._slots = worker_slots(node.pool)
        self._workers = {
            "quick": (quick_workers, self._slots.quick),
            "data": (data_workers, self._slots.data),
            "fill": (concurrent_fills, self._slots.fill),
        }
        self._stopping = threading.Event()
        self._beat_now = threading.Event()
        self._removing: threading.Thread | None = None
        #: Volumes that are exported though nobody asked for it, and in use.
        self._unknown_volumes: set[str] = set()
        #: Whether the target was restarted: then the API is asked what ought to be there,
        #: for a detach that was refused after the agent's own start left an export unknown here.
        self._target_restarted = False
        self.supervisor = JobRunner(node, api, HANDLERS, metrics, self._stopping)
        self.pool_monitor = PoolMonitor(node.pool, node.baselines)
        self.pending_deletes = PendingDeletes(node, (), self._stopping)
        metrics.watch(self.pool_monitor, node.exports, node.restores)
        node.restores.on_replaced = node.exports.reopen

    def start(self) -> None:
        """Make the node ready, agree with the API on what there is, then begin to work.

        Raises:
            PoolUnusable, CommandFailed: the pool can't be made ready.
            errors.RemoteError: the API does not know this node or its token.
        """
        pool = self.node.pool
        pool.check()
        pool.clean()
        self._persist(self._target.check)
        self._reconcile()
        self.pool_monitor.look()
        self._beat()
        self._start("pool", self._watch, self._look_at_pool)
        self._start("tidying", self._watch, self.pool_monitor.tidy)
        self._start("exports", self._watch, self._look_at_exports)
        self._start("heartbeat", self._beats)
        self._removing = self._start("removals", self.pending_deletes.run)
        for name, (count, kinds) in self._workers.items():
            for number in range(count):
                self._start(f"{name}-{number}", self._claims, kinds)
        _log.info("the node is ready")

    def stop(self, detach: bool = False) -> None:
        """Claim nothing more, let short jobs end, and stop the others where they are.

        Their jobs are queued again when the agent is started next. Targets, mounts and
        the processes that serve lazy restores stay: initiators go on. Where only the agent
        enforces the address of who logs in, nobody can log in anew until it is started.

        Args:
            detach: cut initiators off, take the targets down and end those processes; the
                next start puts them back.
        """
        self._stopping.set()
        self._beat_now.set()
        self.supervisor.wait_idle(STOP_TIMEOUT, lambda job: job.kind in self._slots.quick)
        for job in self.supervisor.running():
            job.stop(Stop.LOST)
        self.supervisor.wait_idle(STOP_TIMEOUT, lambda job: job.kind not in self._slots.quick)
        if self._removing is not None:
            self._removing.join(STOP_TIMEOUT)
        if detach:
            self.node.exports.detach_all()
            self.node.restores.close()
        try:
            self._target.close()
        except errors.LunrError as error:  # it is as it is when the agent is killed
            _log.error("%s", error)
        self.node.pool.close()

    # --- agreeing with the API ---------------------------------------------------

    def _reconcile(self) -> None:
        pool, exports = self.node.pool, self.node.exports
        volumes = pool.volumes()
        snapshots = pool.snapshots()
        present = exports.present()
        users = sorted({snap.id for snap in snapshots if snap.purpose is Purpose.USER})
        found = {"volumes": sorted(volumes), "snapshots": users, "exports": sorted(present)}
        truth = self._persist(lambda: self._api.reconcile(found))

        queued = {(str(job["kind"]), str(job["subject_id"])) for job in truth["jobs"]}
        # What a snapshot of a volume that was being filled lacks is not known any more.
        restoring = self.node.restores.known()
        is_doomed = {
            Purpose.USER: lambda snap: snap.id in truth["delete"]["snapshots"],
            Purpose.BACKUP: lambda snap: (
                ("backup.save", snap.id) not in queued or snap.volume_id in restoring
            ),
            Purpose.BASELINE: lambda snap: not self.node.baselines.is_valid(snap, volumes),
        }
        doomed = {snap for snap in snapshots if is_doomed[snap.purpose](snap)}
        deleted = {ids.check(volume_id) for volume_id in truth["delete"]["volumes"]}
        self.pending_deletes = PendingDeletes(
            self.node, [*self._remove_snapshots(doomed), *sorted(deleted)], self._stopping
        )
        for kind, unknown in truth["unknown"].items():
            for subject in unknown:
                _log.warning("no record knows %s %s; it is left alone", kind, subject)
        for volume in truth["volumes"]:
            if volume["id"] not in volumes:
                _log.error("volume %s ought to be here and is not", volume["id"])
        beginning = [
            subject for kind, subject in queued if kind in ("volume.restore", "volume.clone")
        ]
        self.node.restores.load(volumes - deleted, truth["filling"], beginning)
        exports.restore(lambda: truth["exports"])
        wanted = {export["volume_id"] for export in truth["exports"]}
        coming = {subject for kind, subject in queued if kind in ("export.create", "export.delete")}
        self._unknown_volumes = present.keys() - wanted - deleted - coming
        self._remove_unknown_exports()

    def _remove_snapshots(self, doomed: Iterable[Snapshot]) -> list[Snapshot]:
        """Remove snapshots, before a job meets them; returns those that are still in use."""
        left = []
        for snap in doomed:
            _log.info("removing snapshot %s of volume %s", snap.id, snap.volume_id)
            try:
                drop(self.node, snap)
            except errors.LunrError as error:
                _log.warning("%s", error)
                left.append(snap)
        return left

    def _remove_unknown_exports(self) -> None:
        """Remove the exports that nobody asked for, but those that somebody is known to use."""
        for volume_id in self._unknown_volumes - self.node.exports.sessions().keys():
            _log.warning("removing the export of volume %s: nobody asked for it", volume_id)
            try:
                self.node.exports.remove_unknown(volume_id)
            except errors.LunrError as error:
                _log.error("%s", error)
            else:
                self._unknown_volumes.discard(volume_id)

    def _report(self) -> dict[str, Any]:
        capacity = self.pool_monitor.capacity()
        return {
            "hostname": socket.gethostname(),
            "portal": self._portal,
            "pool": self.node.pool.name,
            "target": self._target.name,
            "capacity_bytes": capacity.capacity_bytes,
            "free_bytes": capacity.free_bytes,
            "full": capacity.full,
            "limits_io": self._target.limits_io(),
            "lost_snapshots": sorted(self.pool_monitor.lost_snapshots()),
            "filled": self.node.restores.full(),
            "troubles": self.node.restores.troubles(),
            "version": __version__,
            "sessions": self.node.exports.sessions(),
        }

    # --- threads -----------------------------------------------------------------

    def _start(self, name: str, work: Callable[..., None], *args: Any) -> threading.Thread:
        thread = threading.Thread(target=work, args=args, name=name, daemon=True)
        thread.start()
        return thread

    def _persist(self, call: Callable[[], T]) -> T:
        """Call until the API or the target answers."""
        backoff = Backoff(self._stopping)
        while True:
            try:
                result = call()
            except (errors.Unavailable, TargetUnavailable) as error:
                if not backoff.wait(error):
                    raise
            else:
                backoff.over()
                return result

    def _beat(self) -> None:
        self._beat_now.clear()
        self._persist(lambda: self._api.heartbeat(self._report()))

    def _beats(self) -> None:
        backoff = Backoff(self._stopping)
        while not self._stopping.is_set():
            self._beat_now.wait(self._heartbeat)
            backoff.attempt(self._beat)

    def _watch(self, look: Callable[[], None]) -> None:
        backoff = Backoff(self._stopping)
        while not self._stopping.wait(WATCH_INTERVAL):
            backoff.attempt(look)

    def _look_at_pool(self) -> None:
        if self.pool_monitor.look():
            self._beat_now.set()

    def _look_at_exports(self) -> None:
        try:
            look = self.node.exports.watch()
        except TargetUnavailable:
            self._target_restarted = True
            raise
        if look.sessions_changed:
            self._beat_now.set()
        if self._target_restarted or look.was_missing:
            self._target_restarted = True
            self.node.exports.restore(self._api.exports)
            self._target_restarted = False
        self._remove_unknown_exports()

    def _claims(self, kinds: Iterable[str]) -> None:
        backoff = Backoff(self._stopping)
        lease = ids.new()
        while not self._stopping.is_set():
            try:
                # Under the same lease until an answer has come: one that was lost is given again.
                claimed = self._api.claim(kinds, CLAIM_WAIT, lease)
                lease = ids.new()
                job = None if claimed is None else ClaimedJob(claimed)
                backoff.over()
            except (errors.LunrError, KeyError, TypeError, ValueError) as error:
                backoff.wait(error)  # the API is away, or what it said is no job
                continue
            # A job that comes after the stop is queued again by the next start's reconcile.
            if job is not None and not self._stopping.is_set():
                backoff.attempt(functools.partial(self.supervisor.do, job))
