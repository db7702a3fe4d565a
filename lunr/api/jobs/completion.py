"""What becomes of a record when its job is over: the one place, for every kind."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from enum import StrEnum
from functools import partial
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.jobs.job_types import KINDS, ROVING
from lunr.api.services.backups import gc, verification
from lunr.api.services.volumes import cross_node_copy, lazy_restore
from lunr.common import errors, ids, times
from lunr.common.states import Backup as BackupState
from lunr.common.states import Export as ExportState
from lunr.common.states import Job as State
from lunr.common.states import Volume as VolumeState
from lunr.db.models import Backup, Export, Job, JobAfter, Snapshot, Volume
from lunr.db.session import on_commit
from lunr.db.transitions import KEYS, move, try_move

log = logging.getLogger(__name__)


class SourceNotSaved(errors.LunrError):
    """Its source could not be saved, to be copied to another node: {reason}"""

    code = "source_not_saved"


#: The longest that a job waits before it is tried again, in seconds.
MAX_DELAY = 300

Error = dict[str, Any]
Values = dict[str, Any]


def end(
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
        result: what the node told (docs/api.md).

    Raises:
        errors.WrongState: the job is over already.
        errors.InvalidField: the result is not what a job of this kind results in.
    """
    if status is State.DONE and job.kind in ("backup.verify", "repository.verify"):
        damage = verification.verified(session, job, result or {})
        if damage is not None:  # who waits for the verify must not take it for good news
            status, error = State.FAILED, damage.as_dict()
    values = _result_values(job, result or {}) if status is State.DONE else {}
    base = _base(session, job)
    reason = None if error is None else error["reason"]
    move(
        session,
        Job,
        job.id,
        status,
        f"make it {status}",
        ended_at=times.now(),
        lease_until=None,
        reason=reason,
        code=None if error is None else error["code"],
        result=result,
        progress=100 if status is State.DONE else job.progress,
    )
    if job.kind == "volume.fill":
        lazy_restore.ended(session, context, job, status, reason)
    else:
        _move_subject(session, job, status, reason, values)
    if status is State.DONE and job.kind in _AFTER:
        _AFTER[job.kind](session, context, job, result or {})
    if job.kind == "backup.save":
        if status is not State.DONE:
            _fail_restores(session, context, job, reason)
        cross_node_copy.let_go(session, context, job.subject_id)
        used = select(Backup.parent_id, Backup.base_id).where(Backup.id == job.subject_id)
        for needed in set(session.execute(used).one()):
            lazy_restore.let_go(session, context, needed)
    elif job.kind == "group.save" and status is not State.DONE:
        _fail_members(session, job, reason)
    elif job.kind in ("volume.restore", "volume.clone"):
        if status is State.DONE:
            lazy_restore.usable(session, context, job.subject_id)
        lazy_restore.let_go(session, context, base)
    elif job.kind == "snapshot.create":
        lazy_restore.let_go(session, context, base)
    _wake_followers(session, context, job)


def _fail_restores(session: Session, context: Context, save: Job, reason: str | None) -> None:
    """End the jobs that were to restore what `save` did not save."""
    waiting = (
        select(Job)
        .join(JobAfter, JobAfter.job_id == Job.id)
        .where(
            JobAfter.after_id == save.id,
            Job.kind == "volume.restore",
            Job.status == State.QUEUED,
        )
    )
    for restore in session.scalars(waiting.with_for_update(of=Job)).all():
        end(session, context, restore, State.FAILED, SourceNotSaved(reason=reason).as_dict())


def _fail_members(session: Session, job: Job, reason: str | None) -> None:
    """What ties a group is in ERROR: so are the backups of its disks."""
    members = select(Backup.id).where(Backup.group_id == job.subject_id, Backup.job_id == job.id)
    for id in session.scalars(members).all():
        try_move(session, Backup, id, BackupState.ERROR, job_id=None, reason=reason)


def _wake_followers(session: Session, context: Context, job: Job) -> None:
    """Have those jobs claimed that could not begin before `job` had ended."""
    queued = select(Job.node_id, Job.kind).where(Job.status == State.QUEUED)
    waited = select(JobAfter.job_id).where(JobAfter.after_id == job.id)
    for followers in (
        queued.where(Job.lane == job.lane).order_by(Job.seq).limit(1),
        queued.where(Job.id.in_(waited)),
    ):
        for node_id, kind in session.execute(followers):
            on_commit(session, partial(context.notifier.notify, node_id, kind))


def release(session: Session, context: Context, job: Job, error: Error, delay: bool) -> None:
    """Take the RUNNING `job` (its row is locked) from its node: it is tried again or over.

    Args:
        error: why it is taken, ``{"code", "reason"}``.
        delay: wait before the next attempt, twice as long each time.
    """
    if job.cancel:
        end(session, context, job, State.CANCELLED, errors.Cancelled().as_dict())
        return
    kind = KINDS[job.kind]
    if kind.foreign or (job.attempt >= context.settings.job_attempts and not kind.unending):
        end(session, context, job, State.FAILED, error)
        return
    wait = (
        min(MAX_DELAY, context.settings.retry_delay * 2 ** min(job.attempt - 1, 20)) if delay else 0
    )
    node_id = None if job.kind in ROVING else job.node_id
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


def _move_subject(
    session: Session, job: Job, status: State, reason: str | None, values: Values
) -> None:
    kind = KINDS[job.kind]
    if kind.model is None:
        return
    done = status is State.DONE
    target: StrEnum | None = kind.done if done else kind.failed
    if job.kind == "volume.clone" and done and _base(session, job) is not None:
        target = VolumeState.RESTORING  # as what it was made from
    if job.kind == "export.delete" and not done:
        target = ExportState(job.data["from"])
    if job.kind == "volume.extend" and not done:
        values["reserved"] = Volume.size  # what was promised for the extend is given back
    values |= {"job_id": None, "reason": reason}
    if done and target is not None and kind.model is not Export:
        values["progress"] = 0 if target == VolumeState.RESTORING else 100
    if target is not None and try_move(session, kind.model, job.subject_id, target, **values):
        return
    if target is not None:
        log.error("%s of %s ended, but its record can't be %s", job.kind, job.subject_id, target)
    session.execute(
        update(kind.model).where(KEYS[kind.model] == job.subject_id).values(**values),
        execution_options={"synchronize_session": "fetch"},
    )


def _base(session: Session, job: Job) -> str | None:
    """The backup that has what the subject, a volume or snapshot, lacks."""
    model = KINDS[job.kind].model
    if model is not Volume and model is not Snapshot:
        return None
    return session.scalar(select(model.base_id).where(model.id == job.subject_id))


def _result_values(job: Job, result: dict[str, Any]) -> Values:
    """What of a DONE job's result, or of its data, goes into the subject's record."""
    if job.kind == "volume.extend":
        return {"size": job.data["size"], "reserved": job.data["size"]}
    if job.kind == "snapshot.create" and result.get("base_id", "") is None:
        return {"base_id": None}  # all of the volume was there by then
    if job.kind == "backup.verify":
        return {"verified_at": times.now()}
    if job.kind == "export.delete":
        return {"sessions": [], "auth_username": None, "auth_secret": None}
    if job.kind == "backup.save":
        parent_id = result.get("parent_id")
        return {
            **{
                name: _count(result, name)
                for name in ("bytes_read", "bytes_stored", "objects_stored")
            },
            "parent_id": None if parent_id is None else ids.check(parent_id, "result.parent_id"),
        }
    return {}


def _count(result: dict[str, Any], name: str) -> int:
    value = result.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise errors.InvalidField(field=f"result.{name}", reason="it is a count of bytes or things")
    return value


_AFTER: dict[str, Callable[[Session, Context, Job, dict[str, Any]], None]] = {
    "repository.collect": gc.collected,
    "repository.sweep": gc.swept,
}
