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

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.jobs import queue
from lunr.api.services.volumes.job_types import EAGER, NEVER, begin_fill
from lunr.common import errors
from lunr.common.states import Job as JobState
from lunr.common.states import Volume as State
from lunr.db.models import Job, Volume
from lunr.db.transitions import wrong_state

#: While it is in one of these, a volume can be told how it is to be filled.
_MADE = (State.NEW, State.BUILDING, State.RESTORING)


class StillRestoring(errors.WrongState):
    """The volume {id} is still being restored ({progress} % are there). It can be used, but to {action} it must be ACTIVE."""  # noqa: E501


def fill_settings(request: dict[str, Any], is_restored: bool) -> dict[str, Any]:
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


def change_fill(
    session: Session, context: Context, volume: Volume, changes: dict[str, Any]
) -> None:
    """Fill the `volume`, whose row is locked, otherwise from now on.

    Raises:
        errors.WrongState: it is not being restored.
    """
    if volume.fill is None or volume.status not in _MADE:
        raise wrong_state(volume, "fill it otherwise", State.RESTORING)
    volume.fill = changes.get("fill", volume.fill)
    volume.fill_limit = changes.get("fill_limit", volume.fill_limit)
    job = _lock_job(session, volume)
    if volume.fill == NEVER:
        _stop_job(session, job)
        if job is None or job.status == JobState.CANCELLED:
            volume.fill_job_id = None
    elif job is None or job.cancel:
        begin_fill(session, context, volume)
    session.flush()


def fill_full(session: Session, context: Context, node_id: str, ids: Iterable[str]) -> None:
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
        begin_fill(session, context, volume)


def set_problems(session: Session, node_id: str, problems: Mapping[str, str]) -> None:
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
        reason = problems.get(volume.id)
        if volume.reason != reason:
            volume.reason = reason


def stop_fill(session: Session, volume: Volume) -> list[str]:
    """Fill the `volume`, whose row is locked, no more; the jobs that are just ending."""
    job = _lock_job(session, volume)
    _stop_job(session, job)
    return [job.id] if job is not None and job.cancel else []


def _lock_job(session: Session, volume: Volume) -> Job | None:
    """The job that fills the volume, locked."""
    if volume.fill_job_id is None:
        return None
    return session.scalar(
        select(Job)
        .where(Job.id == volume.fill_job_id, Job.status.in_(queue.LIVE))
        .with_for_update()
        .execution_options(populate_existing=True)
    )


def _stop_job(session: Session, job: Job | None) -> None:
    if job is None:
        return
    if job.status == JobState.QUEUED:
        queue.cancel_queued(session, job.id)
        session.refresh(job)
    else:
        job.cancel = True
