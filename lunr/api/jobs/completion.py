"""Applying a job's outcome: to the job, to its subject, and to the jobs that wait for it."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.common import errors, times
from lunr.common.states import Job as State
from lunr.db.models import Job, JobAfter
from lunr.db.session import on_commit
from lunr.db.transitions import move

#: The longest that a job waits before it is tried again, in seconds.
MAX_DELAY = 300

Error = dict[str, Any]


def complete(
    session: Session,
    context: Context,
    job: Job,
    status: State,
    error: Error | None = None,
    result: dict[str, Any] | None = None,
) -> None:
    """End `job` (its row is locked) and move its subject on.

    Args:
        status: DONE, FAILED or CANCELLED.
        error: why it failed, ``{"code", "reason"}``; None when DONE.
        result: what the node reported (docs/api.md).

    Raises:
        errors.WrongState: the job is over already.
        errors.InvalidField: the result is not what a job of this type results in.
    """
    job_type = context.job_types.of(job)
    checked = (result or {}) if status is State.DONE else {}
    if status is State.DONE:
        failure = job_type.check_result(job, checked)
        if failure is not None:
            status, error = State.FAILED, failure.as_dict()
    move(
        session,
        Job,
        job.id,
        status,
        f"make it {status}",
        ended_at=times.now(),
        lease_until=None,
        reason=None if error is None else error["reason"],
        code=None if error is None else error["code"],
        result=result,
        progress=100 if status is State.DONE else job.progress,
    )
    job_type.move_subject(session, job)
    if status is State.DONE:
        job_type.on_done(session, context, job, checked)
    else:
        job_type.on_failed(session, context, job, checked)
        _fail_followers(session, context, job)
    _wake_followers(session, context, job)


def _fail_followers(session: Session, context: Context, job: Job) -> None:
    """Fail the jobs that wait for `job`, which has failed, and can do nothing without it."""
    waiting = (
        select(Job)
        .join(JobAfter, JobAfter.job_id == Job.id)
        .where(JobAfter.after_id == job.id, Job.status == State.QUEUED)
        .order_by(Job.seq)
    )
    for follower in session.scalars(waiting.with_for_update(of=Job)).all():
        error = context.job_types.of(follower).error_if_predecessor_failed(job.reason)
        if error is not None:
            complete(session, context, follower, State.FAILED, error.as_dict())


def _wake_followers(session: Session, context: Context, job: Job) -> None:
    """Have those jobs claimed that could not begin before `job` had ended."""
    queued = select(Job.node_id, Job.kind).where(Job.status == State.QUEUED)
    waited = select(JobAfter.job_id).where(JobAfter.after_id == job.id)
    for followers in (
        queued.where(Job.lock_key == job.lock_key).order_by(Job.seq).limit(1),
        queued.where(Job.id.in_(waited)),
    ):
        for node_id, kind in session.execute(followers):
            on_commit(session, partial(context.notifier.notify, node_id, kind))


def retry_or_fail(session: Session, context: Context, job: Job, error: Error, delay: bool) -> None:
    """Take the RUNNING `job` (its row is locked) from its node.

    It goes back into the queue while it has attempts left. Else it is FAILED, or CANCELLED where
    that was asked for.

    Args:
        error: why it is taken, ``{"code", "reason"}``.
        delay: wait before the next attempt, twice as long each time.
    """
    if job.cancel:
        complete(session, context, job, State.CANCELLED, errors.Cancelled().as_dict())
        return
    job_type = context.job_types.of(job)
    used_up = job.attempt >= context.settings.job_attempts and not job_type.unlimited_attempts
    if job_type.external_lease_seconds or used_up:
        complete(session, context, job, State.FAILED, error)
        return
    wait = (
        min(MAX_DELAY, context.settings.retry_delay * 2 ** min(job.attempt - 1, 20)) if delay else 0
    )
    node_id = None if job_type.any_node else job.node_id
    move(
        session,
        Job,
        job.id,
        State.QUEUED,
        "try it again",
        lease=None,
        lease_until=None,
        not_before=times.now() + timedelta(seconds=wait),
        reason=error["reason"],
        code=error["code"],
        node_id=node_id,
    )
    on_commit(session, lambda: context.notifier.notify(node_id, job.kind))
