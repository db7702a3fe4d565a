"""The API as docs/api.md promises it to storage nodes, in memory, on a real port."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.services import need_fuse
from tests.support.waiting import PATIENCE

NODE = "node1"
TOKEN = "node-token"

Answer = tuple[int, dict[str, Any] | None]


class ContractApi:
    """Give it jobs and records; it gives them to the node named NODE."""

    def __init__(self, lease_seconds: float = 3.0) -> None:
        self.lease_seconds = lease_seconds
        self.jobs: dict[str, dict[str, Any]] = {}
        self.heartbeats: list[dict[str, Any]] = []
        self.reconciled: list[dict[str, Any]] = []
        self.exports: list[dict[str, Any]] = []
        self.volumes: list[dict[str, Any]] = []
        #: Those that are being restored, as far as this API knows.
        self.filling: set[str] = set()
        self.delete: dict[str, list[str]] = {"volumes": [], "snapshots": []}
        self.refused: list[str] = []
        self._changed = threading.Condition()
        self._ids = itertools.count(1)
        self._epoch = 0
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.start()

    # --- for tests ---------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                size = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(size) or b"{}")
                if self.headers.get("X-Auth-Token") == TOKEN:
                    status, answer = api._answer(self.command, self.path, body)
                else:
                    status, answer = 401, {"code": "unauthorized", "reason": "no"}
                data = b"" if answer is None else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def handle(self) -> None:
                try:
                    super().handle()
                except OSError:
                    self.close_connection = True  # the node was killed

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def add(self, kind: str, volume_id: str | None, subject_id: str, **payload: Any) -> str:
        if kind == "volume.restore":
            need_fuse()
        job_id = f"job{next(self._ids)}"
        with self._changed:
            if kind == "volume.restore" or (kind == "volume.clone" and payload.get("base_id")):
                self.filling.add(subject_id)
            self.jobs[job_id] = {
                "id": job_id,
                "kind": kind,
                "volume_id": volume_id,
                "subject_id": subject_id,
                "payload": payload,
                "status": "QUEUED",
                "attempt": 0,
                "progress": 0,
                "cancel": False,
                "lease": None,
                "until": 0.0,
                "updates": [],
            }
            self._changed.notify_all()
        return job_id

    def wait(self, job_id: str, *statuses: str, timeout: float = PATIENCE) -> dict[str, Any]:
        statuses = statuses or ("DONE", "FAILED", "CANCELLED")
        with self._changed:
            job = self.jobs[job_id]
            came = self._changed.wait_for(lambda: job["status"] in statuses, timeout)
            assert came, f"{job['kind']} is {job['status']} and not one of {statuses}"
            return dict(job)

    def do(self, kind: str, volume_id: str | None, subject_id: str, **payload: Any) -> Any:
        """Have a job done; returns its result."""
        job = self.wait(self.add(kind, volume_id, subject_id, **payload))
        assert job["status"] == "DONE", job
        return job["result"]

    def restore(self, volume_id: str, **payload: Any) -> None:
        """Have a volume restored and filled."""
        self.do("volume.restore", volume_id, volume_id, **payload)
        self.do("volume.fill", volume_id, volume_id, fill="eager", fill_limit_bytes=0)

    def cancel(self, job_id: str) -> None:
        with self._changed:
            self.jobs[job_id]["cancel"] = True

    def take_away(self, job_id: str) -> None:
        """As when the lease ran out: it is queued again."""
        with self._changed:
            self.jobs[job_id].update(status="QUEUED", lease=None)
            self._changed.notify_all()

    # --- for the node ------------------------------------------------------------

    def _answer(self, method: str, path: str, body: dict[str, Any]) -> Answer:
        parts = urlsplit(path)
        prefix = f"/v1.0/nodes/{NODE}"
        if not parts.path.startswith(prefix):
            return 404, {"code": "not_found", "reason": "no such node"}
        match method, parts.path.removeprefix(prefix).split("/"):
            case "PUT", [""]:
                self.heartbeats.append(body)
                return 200, {}
            case "GET", ["", "exports"]:
                return 200, {"exports": self.exports}
            case "POST", ["", "reconcile"]:
                return 200, self._reconcile(body)
            case "POST", ["", "jobs", "claim"]:
                wait = float(parse_qs(parts.query)["wait"][0])
                return self._claim(body["kinds"], wait, body["lease"])
            case "PUT", ["", "jobs", job_id]:
                return self._update(self.jobs[job_id], body)
        return 404, {"code": "no_such_route", "reason": path}

    def _reconcile(self, found: dict[str, Any]) -> dict[str, Any]:
        with self._changed:
            self.reconciled.append(found)
            self._epoch += 1  # claims that a killed agent left waiting get nothing
            for job in self.jobs.values():
                if job["status"] == "RUNNING":
                    job.update(status="QUEUED", lease=None)
            self._changed.notify_all()
            known = {volume["id"] for volume in self.volumes} | set(self.delete["volumes"])
            return {
                "volumes": self.volumes,
                "snapshots": [],
                "exports": self.exports,
                "filling": sorted(self.filling),
                "delete": self.delete,
                "unknown": {
                    "volumes": [id for id in found["volumes"] if id not in known],
                    "snapshots": [],
                },
                "jobs": [
                    {name: job[name] for name in ("id", "kind", "subject_id")}
                    for job in self.jobs.values()
                    if job["status"] == "QUEUED"
                ],
            }

    def _claim(self, kinds: list[str], wait: float, lease: str) -> Answer:
        deadline = time.monotonic() + wait
        with self._changed:
            epoch = self._epoch
            while epoch == self._epoch:
                for job in self.jobs.values():
                    again = job["status"] == "RUNNING" and job["lease"] == lease
                    if again or (job["status"] == "QUEUED" and job["kind"] in kinds):
                        job["attempt"] += not again
                        job.update(status="RUNNING", lease=lease)
                        job["until"] = time.monotonic() + self.lease_seconds
                        self._changed.notify_all()
                        names = ("id", "kind", "lease", "attempt", "volume_id", "payload")
                        claimed = {name: job[name] for name in names}
                        return 200, {
                            **claimed,
                            "lease_seconds": self.lease_seconds,
                            "account_id": "account1",
                        }
                left = deadline - time.monotonic()
                if left <= 0 or self._server is None:
                    break
                self._changed.wait(min(left, 0.1))
            return 204, None

    def _update(self, job: dict[str, Any], told: Mapping[str, Any]) -> Answer:
        with self._changed:
            if job["status"] != "RUNNING" or job["lease"] != told["lease"]:
                self.refused.append(job["id"])
                return 409, {"code": "stale_lease", "reason": "not yours"}
            job["updates"].append(told["status"])
            job["progress"] = told.get("progress", job["progress"])
            job["until"] = time.monotonic() + self.lease_seconds
            error = told.get("error")
            if told["status"] == "FAILED" and error["retry"] and job["attempt"] < 5:
                job.update(status="QUEUED", lease=None, error=error)
                self.jobs[job["id"]] = self.jobs.pop(job["id"])  # it waits: others go first
            elif told["status"] != "RUNNING":
                if job["kind"] in ("volume.fill", "volume.delete") and told["status"] == "DONE":
                    self.filling.discard(job["subject_id"])
                job.update(status=told["status"], result=told.get("result"), error=error)
            self._changed.notify_all()
            orders = job["payload"] if job["kind"] == "volume.fill" else {}
            return 200, {"cancel": job["cancel"], "lease_seconds": self.lease_seconds, **orders}
