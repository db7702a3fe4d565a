"""Restored volumes while they are filled.

A volume from a backup can be used as soon as its node serves it (the job
``volume.restore``; ``volume.clone`` of what was itself being filled). It stays
RESTORING until all of the backup is on it. The job ``volume.fill`` follows that; its
node does a few of them at once. A volume that nobody fills (``never``), or that waits
for its turn, fetches what is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import and_, or_, select, update
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.jobs import queue
from lunr.api.services.volumes import cross_node_copy
from lunr.common import errors, times
from lunr.common.states import Job as JobState
from lunr.common.states import Volume as State
from lunr.common.units import MIB
from lunr.db.models import Job, Volume
from lunr.db.transitions import try_move

#: While it is in one of these, a volume can be told how it is to be filled.
_MADE = (State.NEW, State.BUILDING, State.RESTORING)

EAGER, LAZY, NEVER = MODES = ("eager", "lazy", "never")


class StillFilling(errors.WrongState):
    """The volume {id} is still being restored ({progress} % are there). It can be used, but to {action} it must be ACTIVE."""  # noqa: E501


def wanted(request: dict[str, Any], is_restored: bool) -> dict[str, Any]:
    """How a new volume is to be filled: values of its columns.

    Raises:
        errors.InvalidField: it is not restored, and the request says how.
    """
    for name in ("fill", "fill_limit"):
        if name in request and not request.get("backup"):
            raise errors.InvalidField(field=name, reason="only a volume from a backup is filled")
    if not is_restored:
        return {}
    return {"fill": request.get("fill", EAGER), "fill_limit": request.get("fill_limit", 0)}


def change(session: Session, context: Context, volume: Volume, changes: dict[str, Any]) -> None:
    """Fill the `volume`, whose row is locked, otherwise from now on.

    Raises:
        errors.WrongState: it is not being restored.
    """
    if volume.fill is None or volume.status not in _MADE:
        raise errors.WrongState(
            kind="volume",
            id=volume.id,
            state=volume.status,
            action="fill it otherwise",
            needed=State.RESTORING,
        )
    volume.fill = changes.get("fill", volume.fill)
    volume.fill_limit = changes.get("fill_limit", volume.fill_limit)
    job = _job(session, volume)
    if volume.fill == NEVER:
        _stop(session, job)
        if job is None or job.status == JobState.CANCELLED:
            volume.fill_job_id = None
    elif job is None or job.cancel:
        begin(session, context, volume)
    session.flush()


def begin(session: Session, context: Context, volume: Volume) -> None:
    """Have a `volume` filled that can be used, unless it is not to be."""
    if not volume.usable or volume.fill in (None, NEVER):
        return
    job = queue.add(
        session,
        context,
        "volume.fill",
        account_id=volume.account_id,
        subject_id=volume.id,
        volume_id=volume.id,
        node_id=volume.node_id,
    )
    volume.fill_job_id = job.id
    volume.reason = None
    session.flush()


def usable(session: Session, context: Context, id: str) -> None:
    """The node serves the volume, if it is to be filled."""
    volume = session.get_one(Volume, id, populate_existing=True)
    if volume.status == State.RESTORING:
        volume.usable = True
        begin(session, context, volume)


def full(session: Session, context: Context, node_id: str, ids: Iterable[str]) -> None:
    """A node says that nothing is missing any more of these, which nobody fills: ask it by a job.

    So it is when the last of it was read, or written.
    """
    waiting = select(Volume).where(
        Volume.id.in_(list(ids)),
        Volume.node_id == node_id,
        Volume.status == State.RESTORING,
        Volume.usable,
        Volume.fill_job_id.is_(None),
    )
    for volume in session.scalars(waiting.with_for_update()).all():
        volume.fill = EAGER
        begin(session, context, volume)


def orders(session: Session, job: Job) -> dict[str, Any]:
    """How the node is to fill now, and whether other volumes wait for their turn."""
    volume = session.get_one(Volume, job.subject_id)
    others = select(Job.seq).where(
        Job.kind == job.kind,
        Job.node_id == job.node_id,
        Job.status == JobState.QUEUED,
        or_(Job.not_before.is_(None), Job.not_before <= times.now()),
    )
    return {
        "fill": volume.fill or NEVER,
        "fill_limit_bytes": volume.fill_limit * MIB,
        "others_wait": session.scalar(others.limit(1)) is not None,
    }


def troubled(session: Session, node_id: str, told: Mapping[str, str]) -> None:
    """A node says what is wrong with its volumes: of those that no job tells of, that is told here.

    Where a job has failed, its reason stays.
    """
    silent = (
        select(Volume)
        .outerjoin(Job, Job.id == Volume.fill_job_id)
        .where(
            Volume.node_id == node_id,
            Volume.status == State.RESTORING,
            Volume.usable,
            or_(
                and_(Volume.fill_job_id.is_(None), Volume.fill == NEVER),
                Job.status == JobState.QUEUED,
            ),
        )
    )
    for volume in session.scalars(silent):
        reason = told.get(volume.id)
        if volume.reason != reason:
            volume.reason = reason


def note(session: Session, job: Job, told: dict[str, Any]) -> None:
    """What the node tells of a fill under way."""
    session.execute(
        update(Volume)
        .where(Volume.id == job.subject_id, Volume.fill_job_id == job.id)
        .values(
            progress=job.progress,
            fill_rate=told.get("rate", 0),
            fill_remaining=told.get("remaining"),
            reason=told.get("trouble"),
        )
    )


def stop(session: Session, volume: Volume) -> list[str]:
    """Fill the `volume`, whose row is locked, no more; the jobs that are just ending."""
    job = _job(session, volume)
    _stop(session, job)
    return [job.id] if job is not None and job.cancel else []


def ended(
    session: Session, context: Context, job: Job, status: JobState, reason: str | None
) -> None:
    """The job that fills a volume is over: the volume is ACTIVE, or stays as it is."""
    nobody: dict[str, Any] = {"fill_job_id": None, "fill_rate": 0, "fill_remaining": None}
    if status is JobState.DONE:
        values = {"progress": 100, "reason": None, "fill": None, "fill_limit": 0, **nobody}
        only = (State.RESTORING,)
        if try_move(session, Volume, job.subject_id, State.ACTIVE, only, **values):
            let_go(session, context, session.get_one(Volume, job.subject_id).base_id)
        return
    stopped = status is JobState.CANCELLED
    session.execute(
        update(Volume)
        .where(Volume.id == job.subject_id, Volume.fill_job_id == job.id)
        .values(
            progress=job.progress, **nobody, **({"fill": NEVER} if stopped else {"reason": reason})
        ),
        execution_options={"synchronize_session": "fetch"},
    )


def let_go(session: Session, context: Context, base_id: str | None) -> None:
    """Something needs no more what it was restored from, or what it lacks, if it does."""
    if base_id is not None:
        cross_node_copy.let_go(session, context, base_id)


def _job(session: Session, volume: Volume) -> Job | None:
    """The job that fills the volume, locked."""
    if volume.fill_job_id is None:
        return None
    return session.scalar(
        select(Job)
        .where(Job.id == volume.fill_job_id, Job.status.in_(queue.LIVE))
        .with_for_update()
        .execution_options(populate_existing=True)
    )


def _stop(session: Session, job: Job | None) -> None:
    if job is None:
        return
    if job.status == JobState.QUEUED:
        queue.drop(session, job.id)
        session.refresh(job)
    else:
        job.cancel = True
