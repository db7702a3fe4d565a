"""Putting jobs into the queue, in the transaction that they belong to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.jobs.job_type import JobType
from lunr.common import errors, ids, times
from lunr.common.states import Job as State
from lunr.common.states import Node as NodeState
from lunr.db.models import Job, JobAfter, Node
from lunr.db.session import on_commit
from lunr.db.transitions import move

#: A job that is not over.
LIVE = (State.QUEUED.value, State.RUNNING.value)


def enqueue(
    session: Session,
    context: Context,
    job_type: type[JobType],
    *,
    account_id: str,
    subject_id: str,
    volume_id: str | None = None,
    node_id: str | None = None,
    data: dict[str, Any] | None = None,
    after: Iterable[str] = (),
) -> Job:
    """Add a job in the transaction of `session`; the caller notes it in the subject's record.

    Args:
        node_id: the node that must do it; for a type that any node can do the one that is
            preferred, and any other when that one is not ACTIVE.
        data: what its payload needs and no record holds.
        after: ids of jobs that must have ended before it may begin.
    """
    if job_type.any_node and node_id is not None:
        status = session.scalar(select(Node.status).where(Node.id == node_id))
        node_id = node_id if status == NodeState.ACTIVE else None
    job = Job(
        id=ids.new(),
        kind=job_type.name,
        lock_key=job_type.lock_key.format(
            account_id=account_id, volume_id=volume_id, subject_id=subject_id
        ),
        account_id=account_id,
        subject_id=subject_id,
        volume_id=volume_id,
        node_id=node_id,
        data=data or {},
    )
    session.add(job)
    session.add_all(JobAfter(job_id=job.id, after_id=id) for id in after)
    on_commit(session, lambda: context.notifier.notify(node_id, job_type.name))
    return job


def cancel_queued(session: Session, id: str) -> None:
    """Cancel a job that has not begun and whose subject is about to be deleted.

    Raises:
        errors.WrongState: it has begun.
    """
    cancelled = errors.Cancelled().as_dict()
    move(
        session,
        Job,
        id,
        State.CANCELLED,
        "drop it",
        only=(State.QUEUED,),
        ended_at=times.now(),
        reason=cancelled["reason"],
        code=cancelled["code"],
    )


def enqueue_unique(
    session: Session,
    context: Context,
    job_type: type[JobType],
    account_id: str,
    data: dict[str, Any] | None = None,
) -> tuple[Job, bool]:
    """The job of that type about all of the account, and whether it is new.

    One that is not over is not added again.
    """
    job = session.scalar(
        select(Job)
        .where(Job.account_id == account_id, Job.kind == job_type.name, Job.status.in_(LIVE))
        .order_by(Job.seq.desc())
        .limit(1)
    )
    if job is not None:
        return job, False
    job = enqueue(
        session,
        context,
        job_type,
        account_id=account_id,
        subject_id=account_id,
        data=data,
    )
    return job, True


def unassign(session: Session, context: Context) -> None:
    """Give to any node the jobs that any can do, and that wait for one that is not ACTIVE."""
    active = select(Node.id).where(Node.status == NodeState.ACTIVE)
    session.execute(
        update(Job)
        .where(
            Job.kind.in_(context.job_types.any_node),
            Job.status == State.QUEUED,
            Job.node_id.is_not(None),
            Job.node_id.not_in(active),
        )
        .values(node_id=None)
    )
    on_commit(session, lambda: context.notifier.notify(None))
