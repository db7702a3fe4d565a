"""Jobs, as storage nodes see them: claimed with a lease, reported on, completed."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    exists,
    func,
    or_,
    select,
)
from sqlalchemy.orm import Session, aliased

from lunr.api.context import Context
from lunr.api.jobs import completion
from lunr.api.jobs.leases import lease_end
from lunr.api.jobs.queue import LIVE
from lunr.common import errors, ids, times
from lunr.common.states import Job as State
from lunr.common.states import Node as NodeState
from lunr.db.models import Job, JobAfter, Node
from lunr.db.transitions import move, try_move

#: The longest that a claim waits for a job, in seconds.
MAX_WAIT = 60.0
#: How often one of the claims that wait in a process looks for what others committed, in seconds.
POLL = 0.75
#: How many claims of a node, for one kind of job, are woken at once by that.
_AT_ONCE = 8

# To build a statement takes longer than to have it answered, and claims ask all the time.
#: How many jobs can begin `now`, by node and kind.
_QUEUED = (
    select(Job.node_id, Job.kind, func.count())
    .where(
        Job.status == State.QUEUED,
        or_(Job.not_before.is_(None), Job.not_before <= bindparam("now")),
    )
    .group_by(Job.node_id, Job.kind)
)
_NODE = select(Node.id, Node.status, Node.epoch).where(Node.id == bindparam("node_id"))


class Claims:
    """What the agent of a storage node can do with jobs."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._looking = threading.Lock()
        self._look_at = 0.0

    def claim(
        self,
        node_id: str,
        kinds: Sequence[str],
        wait: float = 0,
        gone: Callable[[], bool] = lambda: False,
        lease: str | None = None,
    ) -> Any | None:
        """Give the node the oldest job of `kinds` that it may do, with a lease.

        Args:
            wait: seconds to wait for one, at most MAX_WAIT.
            lease: the lease's id, chosen by the node. Asked again with the same, the
                node is given the same job: the first answer was lost on the way.
            gone: tells that nobody waits for the answer any more; no job is
                given out to them.

        Returns:
            The job as claimed (docs/api.md), or None when there is none.

        Raises:
            errors.NotFound: there is no such node.
        """
        deadline = time.monotonic() + min(wait, MAX_WAIT)
        epoch: int | None = None
        if lease is not None and self._has(node_id, lease):
            job = self._context.db.write(self._claimed, node_id, lease)
            if job is not None:
                return job
        while True:
            heard = self._context.notifier.count()
            with self._context.db.read() as connection:
                node = _node(connection, node_id)
                epoch = node.epoch if epoch is None else epoch
                if node.epoch != epoch or gone():
                    return None
                found = _find_ready(connection, node, kinds)
            if found is not None:
                job = self._context.db.write(self._claim, node_id, kinds, epoch, lease)
                if job is not None:
                    return job
            if not self._wait(node_id, kinds, heard, deadline, gone):
                return None

    def _wait(
        self,
        node_id: str,
        kinds: Sequence[str],
        heard: int,
        deadline: float,
        gone: Callable[[], bool],
    ) -> bool:
        """Wait until there may be a job for such a claim; False when it is to wait no more."""
        notifier = self._context.notifier
        while (left := deadline - time.monotonic()) > 0 and not (notifier.closed or gone()):
            if notifier.wait(node_id, kinds, heard, min(left, POLL)):
                return not notifier.closed
            self._notify_committed()
        return False

    def _notify_committed(self) -> None:
        """Notify of the jobs that other processes queued, or whose time has come.

        One waiting claim does it for all: there are some of them for each node.
        """
        with self._looking:
            now = time.monotonic()
            if now < self._look_at:
                return
            self._look_at = now + POLL
        with self._context.db.read() as connection:
            queued = connection.execute(_QUEUED, {"now": times.now()}).all()
        for node_id, kind, count in queued:
            for _ in range(min(count, _AT_ONCE)):
                self._context.notifier.notify(node_id, kind)

    def _has(self, node_id: str, lease: str) -> bool:
        with self._context.db.read() as connection:
            found = connection.scalar(select(Job.seq).where(*_holds(node_id, lease)))
        return found is not None

    def _claimed(self, session: Session, node_id: str, lease: str) -> Any | None:
        """The job that the node has under that lease already, renewed."""
        job = session.scalar(select(Job).where(*_holds(node_id, lease)).with_for_update())
        if job is None:
            return None
        self._renew(job)
        return self._view(session, job)

    def _claim(
        self,
        session: Session,
        node_id: str,
        kinds: Sequence[str],
        epoch: int,
        lease: str | None,
    ) -> Any | None:
        node = _node(session, node_id)
        if node.epoch != epoch:
            return None
        seq = _find_ready(session, node, kinds, lock=True)
        job = None if seq is None else session.get(Job, seq)
        if job is None:
            return None
        move(
            session,
            Job,
            job.id,
            State.RUNNING,
            "claim it",
            node_id=node_id,
            attempt=Job.attempt + 1,
            lease=lease or ids.new(),
            lease_until=lease_end(self._context.settings.lease_seconds),
            started_at=job.started_at or times.now(),
            not_before=None,
            reason=None,
            code=None,
            progress=0,
        )
        job_type = self._context.job_types.of(job)
        if job_type.model is not None and job_type.begins is not None:
            # Not on a further attempt: the record is there already.
            try_move(session, job_type.model, job.subject_id, job_type.begins)
        job_type.on_claim(session, self._context, job)
        return self._view(session, job)

    def _view(self, session: Session, job: Job) -> Any:
        return {
            "id": job.id,
            "kind": job.kind,
            "lease": job.lease,
            "lease_seconds": self._context.settings.lease_seconds,
            "attempt": job.attempt,
            "account_id": job.account_id,
            "volume_id": job.volume_id,
            "payload": self._context.job_types.of(job).payload(session, self._context, job),
        }

    def report(
        self,
        node_id: str,
        id: str,
        lease: str,
        status: str,
        progress: int | None = None,
        result: dict[str, Any] | None = None,
        error: dict[str, Any] | None = None,
        fill: dict[str, Any] | None = None,
    ) -> Any:
        """What the node reports of a job; renews the lease. The same end may be reported twice.

        Args:
            status: RUNNING, DONE, FAILED or CANCELLED.
            error: ``{"code", "reason", "retry"}`` of a FAILED one; with `retry` it is
                tried again until its attempts are used up.
            fill: of a fill that is RUNNING: ``{"rate", "remaining", "trouble"}``.

        Returns:
            ``{"cancel": bool, "lease_seconds": int}``, and what the job's type answers to a
            report of progress.

        Raises:
            errors.StaleLease: the lease is not the job's (any more).
            errors.InvalidField: the result is not what a job of this type results in.
        """
        return self._context.db.write(
            self._report, node_id, id, lease, State(status), progress, result, error, fill
        )

    def _report(
        self,
        session: Session,
        node_id: str,
        id: str,
        lease: str,
        status: State,
        progress: int | None,
        result: dict[str, Any] | None,
        error: dict[str, Any] | None,
        fill: dict[str, Any] | None,
    ) -> Any:
        job = session.scalar(
            select(Job)
            .where(Job.id == id, Job.node_id == node_id, Job.lease == lease)
            .with_for_update()
        )
        answer: dict[str, Any] = {
            "cancel": False,
            "lease_seconds": self._context.settings.lease_seconds,
        }
        if job is not None and job.status == status != State.RUNNING:
            return answer  # reported before, and the answer was lost
        if job is None or job.status != State.RUNNING:
            raise errors.StaleLease(id=id)
        if status is State.RUNNING:
            self._renew(job)
            if progress is not None:
                job.progress = progress
            job_type = self._context.job_types.of(job)
            answer["cancel"] = job.cancel
            return answer | job_type.on_progress(session, self._context, job, progress, fill or {})
        if progress is not None and status is not State.DONE:
            job.progress = progress
        if status is State.FAILED:
            error = {"code": "unknown", "reason": "The node gave no reason.", **(error or {})}
            if error.get("retry") or job.cancel:
                completion.retry_or_fail(session, self._context, job, error, delay=True)
                return answer
        if status is State.CANCELLED:
            error = errors.Cancelled().as_dict()
        if status is State.DONE:  # and whatever else the node says
            error = None
        completion.complete(session, self._context, job, status, error, result)
        return answer

    def _renew(self, job: Job) -> None:
        job.lease_until = lease_end(self._context.settings.lease_seconds)


def _holds(node_id: str, lease: str) -> tuple[ColumnElement[bool], ...]:
    """The job that the node has under that lease."""
    return Job.status == State.RUNNING, Job.node_id == node_id, Job.lease == lease


def _node(reader: Session | Connection, node_id: str) -> Any:
    node = reader.execute(_NODE, {"node_id": node_id}).one_or_none()
    if node is None:
        raise errors.NotFound(kind="node", id=node_id)
    return node


def _find_ready(
    reader: Session | Connection, node: Any, kinds: Sequence[str], lock: bool = False
) -> int | None:
    """The oldest job that the node may begin now; its own before those of any node."""
    parameters = {"node_id": node.id, "kinds": list(kinds), "now": times.now()}
    for unassigned in (False, True) if node.status == NodeState.ACTIVE else (False,):
        seq: int | None = reader.scalar(_select_ready(unassigned, lock), parameters)
        if seq is not None:
            return seq
    return None


@functools.cache
def _select_ready(unassigned: bool, lock: bool) -> Select[int]:
    """The oldest job of `kinds` that can begin `now`: that of `node_id`, or that of no node."""
    before, other = aliased(Job), aliased(Job)
    statement = (
        select(Job.seq)
        .where(
            Job.node_id.is_(None) if unassigned else Job.node_id == bindparam("node_id"),
            Job.status == State.QUEUED,
            Job.kind.in_(bindparam("kinds", expanding=True)),
            or_(Job.not_before.is_(None), Job.not_before <= bindparam("now")),
            ~exists().where(
                before.lock_key == Job.lock_key,
                or_(
                    before.status == State.RUNNING,
                    and_(before.status == State.QUEUED, before.seq < Job.seq),
                ),
            ),
            ~exists().where(
                JobAfter.job_id == Job.id, JobAfter.after_id == other.id, other.status.in_(LIVE)
            ),
        )
        .order_by(Job.seq)
        .limit(1)
    )
    return statement.with_for_update(skip_locked=True, of=Job) if lock else statement
