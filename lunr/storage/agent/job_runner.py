"""Does one claimed job: keeps its lease alive, runs its handler, tells how it ended."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from lunr.common import errors, log
from lunr.storage.agent.api_client import ApiClient
from lunr.storage.agent.backoff import Backoff
from lunr.storage.agent.job import ClaimedJob, Stop
from lunr.storage.jobs.node_context import Handler, NodeContext
from lunr.storage.metrics import Metrics

_log = logging.getLogger(__name__)

#: Seconds between two reports of a job's progress, which also bring the order to cancel it.
_REPORT_INTERVAL = 2.0
#: More of a reason is not for people, and the API does not take it.
_LONGEST_REASON = 4000


class JobRunner:
    """Does jobs on `node` and reports them to `api`; many threads use one."""

    def __init__(
        self,
        node: NodeContext,
        api: ApiClient,
        handlers: Mapping[str, Handler],
        metrics: Metrics,
        stopping: threading.Event,
    ) -> None:
        self._node = node
        self._api = api
        self._handlers = handlers
        self._metrics = metrics
        self._stopping = stopping
        self._running: dict[str, ClaimedJob] = {}
        self._changed = threading.Condition()

    def running(self) -> list[ClaimedJob]:
        """The jobs at work now."""
        with self._changed:
            return list(self._running.values())

    def do(self, job: ClaimedJob) -> None:
        """Do `job` and report it. Never raises for what a job can do wrong."""
        with log.context(job.id):
            self._enter(job)
            renewing = threading.Event()
            lease = threading.Thread(
                target=self._keep_lease, args=(job, renewing), name=f"lease-{job.id}", daemon=True
            )
            lease.start()
            started = time.monotonic()
            try:
                ending = self._run(job)
            finally:
                renewing.set()
                lease.join()
            try:
                outcome = self._report(job, ending)
            finally:
                self._leave(job)
            self._metrics.jobs.labels(job.kind, outcome).inc()
            self._metrics.seconds.labels(job.kind).observe(time.monotonic() - started)

    def wait_idle(self, timeout: float, matches: Callable[[ClaimedJob], bool]) -> bool:
        """Wait until no job that `matches` is at work; returns whether that came in time."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not any(matches(job) for job in self._running.values()), timeout
            )

    def _enter(self, job: ClaimedJob) -> None:
        """Begin `job`, after an attempt at it whose lease was lost has ended here."""
        with self._changed:
            self._changed.wait_for(lambda: job.id not in self._running)
            self._running[job.id] = job

    def _leave(self, job: ClaimedJob) -> None:
        with self._changed:
            del self._running[job.id]
            self._changed.notify_all()

    def _run(self, job: ClaimedJob) -> dict[str, Any]:
        """Run the handler; returns what to tell the API."""
        _log.info("%s of %s, attempt %d", job.kind, job.about, job.attempt)
        try:
            handler = self._handlers[job.kind]
            result = handler(self._node, job)
        except errors.Cancelled:
            _log.info("%s was stopped", job.kind)
            return {"status": "CANCELLED"}
        except errors.LunrError as error:
            _log.warning("%s failed: %s", job.kind, error)
            return _failed(error, job)
        except Exception as error:  # noqa: BLE001 - one job's defect must not end the others
            _log.exception("%s failed", job.kind)
            reason = f"{type(error).__name__}: {error}"
            return _failed(errors.LunrError(reason=reason), job)
        return {"status": "DONE", "progress": 100, "result": result or {}}

    def _keep_lease(self, job: ClaimedJob, ended: threading.Event) -> None:
        """Renew well before the lease ends, until the job does; stop it when the lease is lost."""
        renewed = time.monotonic()
        with log.context(job.id):
            while not ended.wait(min(job.lease_seconds / 3, _REPORT_INTERVAL)):
                asked = time.monotonic()
                try:
                    job.answer = self._api.update(
                        job.id,
                        job.lease,
                        status="RUNNING",
                        progress=job.progress,
                        **job.report_fields,
                    )
                except errors.StaleLease as error:
                    _log.warning("%s", error)
                    job.stop(Stop.LOST)
                    return
                except Exception as error:  # noqa: BLE001 - of a defect too: nobody else renews it
                    _log.warning("the lease could not be renewed: %r", error)
                    if time.monotonic() - renewed > job.lease_seconds:
                        # Nobody knows whether the job is another's by now.
                        job.stop(Stop.LOST)
                        return
                else:
                    renewed = asked
                    if job.answer.get("cancel"):
                        job.stop(Stop.CANCELLED)

    def _report(self, job: ClaimedJob, ending: Mapping[str, Any]) -> str:
        """Tell the API how the job ended, however long that takes; returns the outcome."""
        backoff = Backoff(self._stopping)
        while job.stop_reason is not Stop.LOST:
            try:
                self._api.update(job.id, job.lease, **ending)
            except errors.StaleLease as error:
                _log.warning("%s", error)
                break
            except errors.Unavailable as error:
                if not backoff.wait(error):
                    break
            except errors.LunrError as error:
                _log.error("the API does not take the end of the job: %s", error)
                break
            else:
                return str(ending["status"]).lower()
        return "lost"


def _failed(error: errors.LunrError, job: ClaimedJob) -> dict[str, Any]:
    told = error.as_dict()
    return {
        "status": "FAILED",
        "progress": job.progress,
        "error": {**told, "reason": told["reason"][:_LONGEST_REASON]},
    }
