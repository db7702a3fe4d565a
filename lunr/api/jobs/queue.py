"""Putting jobs into the queue, in the transaction that they belong to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.jobs.job_types import ROVING, lane
from lunr.common import errors, ids, times
from lunr.common.states import Job as State
from lunr.common.states import Node as NodeState
from lunr.db.models import Job, JobAfter, Node
from lunr.db.session import on_commit
from lunr.db.transitions import move

#: A job that is not over.
LIVE = (State.QUEUED.value, State.RUNNING.value)


def add(
    session: Session,
    context: Context,
    kind: str,
    *,
    account_id: str,
    subject_id: str,
    volume_id: str | None,
    node_id: str | None,
    data: dict[str, Any] | None = None,
    after: Iterable[str] = (),
) -> Job:
    """Add a job in the transaction of `session`, and tell the subject's record of it.

    Args:
        node_id: the node that must do it; for a roving kind the one that is
            preferred, and any other when that one is not ACTIVE.
        data: what its payload needs and no record holds.
        after: ids of jobs that must have ended before it may begin.
    """
    if kind in ROVING and node_id is not None:
        status = session.scalar(select(Node.status).where(Node.id == node_id))
        node_id = node_id if status == NodeState.ACTIVE else None
    job = Job(
        id=ids.new(),
        kind=kind,
        lane=lane(kind, account_id, volume_id, subject_id),
        account_id=account_id,
        subject_id=subject_id,
        volume_id=volume_id,
        node_id=node_id,
        data=data or {},
    )
    session.add(job)
    session.add_all(JobAfter(job_id=job.id, after_id=id) for id in after)
    on_commit(session, lambda: context.notifier.notify(node_id, kind))
    return job


def drop(session: Session, id: str) -> None:
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


def live(session: Session, kind: str, account_id: str) -> Job | None:
    """The newest job of that kind of the account that is not over."""
    return session.scalar(
        select(Job)
        .where(Job.account_id == account_id, Job.kind == kind, Job.status.in_(LIVE))
        .order_by(Job.seq.desc())
        .limit(1)
    )


def once(
    session: Session,
    context: Context,
    kind: str,
    account_id: str,
    data: dict[str, Any] | None = None,
) -> tuple[Job, bool]:
    """The job of that kind about all of the account, and whether it is new.

    One that is not over is not added again.
    """
    job = live(session, kind, account_id)
    if job is not None:
        return job, False
    job = add(
        session,
        context,
        kind,
        account_id=account_id,
        subject_id=account_id,
        volume_id=None,
        node_id=None,
        data=data,
    )
    return job, True


def free_roving(session: Session, context: Context) -> None:
    """Let any node have the roving jobs that wait for one that is not ACTIVE."""
    active = select(Node.id).where(Node.status == NodeState.ACTIVE)
    session.execute(
        update(Job)
        .where(
            Job.kind.in_(ROVING),
            Job.status == State.QUEUED,
            Job.node_id.is_not(None),
            Job.node_id.not_in(active),
        )
        .values(node_id=None)
    )
    on_commit(session, lambda: context.notifier.notify(None))
