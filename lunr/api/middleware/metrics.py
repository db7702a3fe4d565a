"""``GET /metrics``, without a token, for Prometheus.

- ``lunr_api_requests_total`` by method, route and status;
- ``lunr_api_request_seconds`` by method and route (claims wait on purpose);
- ``lunr_jobs``, ``lunr_volumes``, ``lunr_backups`` by status;
- ``lunr_schedules_overdue`` (volumes whose backup is due for half an hour and not begun) and
  ``lunr_schedules_failing`` (volumes whose schedule's last run gave no backup);
- ``lunr_node_capacity_bytes``, ``lunr_node_free_bytes``, ``lunr_node_allocated_bytes``,
  ``lunr_node_full`` (1: it takes no new volumes) by node, and ``lunr_nodes`` by status.

The records are counted when Prometheus asks. Let no stranger ask: keep the API
behind a proxy that hides /metrics where nodes' names matter.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from lunr.api.services import Services
from lunr.api.services.schedules import runner
from lunr.api.services.volumes import placement
from lunr.common import times
from lunr.common.concurrency import WSGIApp
from lunr.db.models import Backup, Job, Node, Volume


class Metrics:
    """Counts and times requests, and answers /metrics."""

    def __init__(self, app: WSGIApp, services: Services) -> None:
        self._app = app
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "lunr_api_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "lunr_api_request_seconds",
            "Seconds until a request was answered.",
            ("method", "route"),
            registry=self._registry,
        )
        self._registry.register(_Records(services))

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """PEP 3333."""
        if environ.get("PATH_INFO") == "/metrics" and environ["REQUEST_METHOD"] == "GET":
            body = generate_latest(self._registry)
            headers = [("Content-Type", CONTENT_TYPE_LATEST), ("Content-Length", str(len(body)))]
            start_response("200 OK", headers)
            return [body]
        began = time.perf_counter()
        told = "500"

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            nonlocal told
            told = status[:3]
            return start_response(status, headers, exc_info)

        try:
            return self._app(environ, start)
        finally:
            route = environ.get("lunr.route", "none")
            # A method that no route has is a stranger's word, and would be a label for each.
            method = environ["REQUEST_METHOD"] if route != "none" else "other"
            self._requests.labels(method, route, told).inc()
            self._seconds.labels(method, route).observe(time.perf_counter() - began)


class _Records(Collector):
    """Counts the records when asked."""

    def __init__(self, services: Services) -> None:
        self._db = services.context.db

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        with self._db.read() as connection:
            for model in (Job, Volume, Backup, Node):
                name = model.__tablename__
                gauge = GaugeMetricFamily(f"lunr_{name}", f"{name} by status.", labels=("status",))
                for status, count in connection.execute(
                    select(model.status, func.count()).group_by(model.status)
                ):
                    gauge.add_metric((status,), count)
                yield gauge
            overdue, failing = runner.trouble(connection, times.now())
            yield GaugeMetricFamily(
                "lunr_schedules_overdue",
                "Volumes whose backup is due for half an hour and not begun.",
                overdue,
            )
            yield GaugeMetricFamily(
                "lunr_schedules_failing",
                "Volumes whose schedule's last run gave no backup.",
                failing,
            )
            promised = placement.allocated(connection)
            capacity = GaugeMetricFamily(
                "lunr_node_capacity_bytes", "May be promised to volumes.", labels=("node",)
            )
            free = GaugeMetricFamily("lunr_node_free_bytes", "Really free.", labels=("node",))
            allocated = GaugeMetricFamily(
                "lunr_node_allocated_bytes", "Promised to volumes.", labels=("node",)
            )
            full = GaugeMetricFamily(
                "lunr_node_full", "Takes no new volumes, as its pool says.", labels=("node",)
            )
            for id, capacity_bytes, free_bytes, reason in connection.execute(
                select(Node.id, Node.capacity_bytes, Node.free_bytes, Node.full)
            ):
                capacity.add_metric((id,), capacity_bytes)
                free.add_metric((id,), free_bytes)
                allocated.add_metric((id,), promised.get(id, 0))
                full.add_metric((id,), bool(reason))
            yield from (capacity, free, allocated, full)
