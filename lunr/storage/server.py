"""The node's own HTTP API, for its operators; it listens on loopback unless told otherwise.

``GET /status`` is the node at a glance, ``GET /volumes`` what is on it, ``GET
/volumes/{id}`` one of them, ``GET /metrics`` is for Prometheus. Nothing can be
changed here, and no secret is told.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from webob import Request, Response

from lunr import __version__
from lunr.common import errors, ids
from lunr.storage.agent.agent import Agent
from lunr.storage.agent.job import ClaimedJob
from lunr.storage.metrics import Metrics
from lunr.storage.pools.base import Purpose

_log = logging.getLogger(__name__)


class NodeApi:
    """A WSGI application that shows what `agent` has and does."""

    def __init__(self, node_id: str, agent: Agent, metrics: Metrics) -> None:
        self._node_id = node_id
        self._agent = agent
        self._metrics = metrics
        self._routes: dict[str, Callable[[], Any]] = {
            "/status": self.status,
            "/volumes": self.volumes,
            "/metrics": self.metrics,
        }

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[Any]:
        """Answer one request."""
        request = Request(environ)
        try:
            answer = self._answer(request)
        except errors.LunrError as error:
            answer = Response(
                json_body={"code": error.code, "reason": str(error)}, status=error.status
            )
        except Exception as error:  # noqa: BLE001 - the edge: the next request must be answered
            _log.exception("%s %s failed", request.method, request.path)
            answer = Response(
                json_body={"code": errors.LunrError.code, "reason": str(error)}, status=500
            )
        result: Iterable[Any] = answer(environ, start_response)
        return result

    def _answer(self, request: Request) -> Response:
        path = request.path_info
        show = self._routes.get(path)
        folder, _, volume_id = path.rpartition("/")
        if show is None and folder != "/volumes":
            raise errors.NoSuchRoute(path=path)
        if request.method not in ("GET", "HEAD"):
            raise errors.MethodNotAllowed(path=path, allowed="GET", method=request.method)
        answer = self.volume(volume_id) if show is None else show()
        return answer if isinstance(answer, Response) else Response(json_body=answer)

    def status(self) -> dict[str, Any]:
        """The node, its room, and what is at work."""
        pool = self._agent.node.pool
        capacity = self._agent.pool_monitor.capacity()
        return {
            "id": self._node_id,
            "version": __version__,
            "pool": pool.name,
            "capacity_bytes": capacity.capacity_bytes,
            "free_bytes": capacity.free_bytes,
            "full": capacity.full,
            "used": capacity.used,
            "lost_snapshots": sorted(self._agent.pool_monitor.lost_snapshots()),
            "volumes": len(pool.volumes()),
            "sessions": sum(len(who) for who in self._agent.node.exports.sessions().values()),
            "jobs": [_shown(job) for job in self._agent.supervisor.running()],
            "removing": self._agent.pending_deletes.progress(),
        }

    def volumes(self) -> dict[str, Any]:
        """The ids of the volumes on this node."""
        return {"volumes": sorted(self._agent.node.pool.volumes())}

    def volume(self, volume_id: str) -> dict[str, Any]:
        """One volume: where it is, its snapshots, who is logged in, and what is done to it."""
        ids.check(volume_id)
        agent = self._agent
        pool, removing = agent.node.pool, agent.pending_deletes.progress().get(volume_id)
        jobs = [_shown(job) for job in agent.supervisor.running() if job.about == volume_id]
        path, size = None, None
        try:
            path, size = str(pool.path(volume_id)), pool.size(volume_id)
        except errors.NotFound:
            if removing is None and not jobs:
                raise  # else it is being made, or wiped
        restore = agent.node.restores.get(volume_id)
        mine = [snap for snap in pool.snapshots() if snap.volume_id == volume_id]
        return {
            "id": volume_id,
            "path": path,
            "size_bytes": size,
            "snapshots": sorted(snap.id for snap in mine if snap.purpose is Purpose.USER),
            "references": sorted(snap.id for snap in mine if snap.purpose is Purpose.BASELINE),
            "backups_running": sorted(snap.id for snap in mine if snap.purpose is Purpose.BACKUP),
            "sessions": agent.node.exports.sessions().get(volume_id, []),
            "jobs": jobs,
            "filling": None if restore is None or restore.is_plain else restore.describe(),
            "removing": removing,
        }

    def metrics(self) -> Response:
        """Everything that is counted."""
        answer = Response(body=self._metrics.text())
        answer.headers["Content-Type"] = CONTENT_TYPE_LATEST
        return answer


def _shown(job: ClaimedJob) -> dict[str, Any]:
    return {"id": job.id, "kind": job.kind, "about": job.about, "progress": job.progress}
