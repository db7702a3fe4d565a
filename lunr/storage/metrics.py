"""A node's metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from lunr.storage.agent.pool_monitor import PoolMonitor
from lunr.storage.exports import Exports
from lunr.storage.restore.registry import RestoreRegistry

#: Seconds: from a snapshot (milliseconds) to a large backup (hours).
_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000)


class Metrics:
    """The counters of one agent, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.jobs = Counter(
            "lunr_node_jobs",
            "Jobs that ended on this node, by kind and outcome (done, failed, cancelled, lost).",
            ["kind", "outcome"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "lunr_node_job_seconds",
            "How long jobs took, by kind.",
            ["kind"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.worker_bytes = Counter(
            "lunr_node_worker_bytes",
            "Bytes of volumes and backups that engine workers worked off.",
            registry=self.registry,
        )

    def watch(self, pool: PoolMonitor, exports: Exports, restores: RestoreRegistry) -> None:
        """Report pool, sessions and fills as they were when they were looked at last."""
        self.registry.register(_Gauges(pool, exports, restores))

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)


class _Gauges(Collector):
    def __init__(self, pool: PoolMonitor, exports: Exports, restores: RestoreRegistry) -> None:
        self._pool = pool
        self._exports = exports
        self._restores = restores

    def collect(self) -> Iterable[GaugeMetricFamily]:
        capacity = self._pool.capacity()
        sessions = self._exports.sessions()
        fills = [restore.status for restore in self._restores.all() if not restore.is_filled]
        for name, text, value in (
            (
                "lunr_node_pool_capacity_bytes",
                "Bytes that may be promised to volumes.",
                capacity.capacity_bytes,
            ),
            (
                "lunr_node_pool_free_bytes",
                "Bytes that are really free.",
                capacity.free_bytes,
            ),
            (
                "lunr_node_pool_full",
                "1: the pool takes no new volumes, /status says why; 0: it does.",
                int(bool(capacity.full)),
            ),
            (
                "lunr_node_snapshots_lost",
                "Users' snapshots whose bytes are gone.",
                len(self._pool.lost_snapshots()),
            ),
            (
                "lunr_node_sessions",
                "Initiators that are logged in.",
                sum(len(who) for who in sessions.values()),
            ),
            ("lunr_node_filling", "Restored volumes that are not full yet.", len(fills)),
            (
                "lunr_node_fill_bytes_per_second",
                "How fast they are filled, in all.",
                sum(fill.rate for fill in fills),
            ),
            (
                "lunr_node_fill_remaining_bytes",
                "What they are still to be filled with, in all.",
                sum(fill.total - fill.done for fill in fills),
            ),
            (
                "lunr_node_fill_damaged",
                "Parts of them (4 MiB) that can't be restored, because the backup is damaged.",
                sum(fill.damaged for fill in fills),
            ),
        ):
            yield GaugeMetricFamily(name, text, value=value)
        used = GaugeMetricFamily(
            "lunr_node_pool_used_ratio",
            "How much of what can run out is used, from 0 to 1.",
            labels=["resource"],
        )
        for resource, share in capacity.used.items():
            used.add_metric([resource], share)
        yield used
