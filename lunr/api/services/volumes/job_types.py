"""The types of jobs on volumes."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.jobs import queue
from lunr.api.jobs.job_type import JobType, Payload, Result
from lunr.common import errors, times
from lunr.common.states import Job as JobState
from lunr.common.states import Volume as State
from lunr.common.units import GIB, MIB
from lunr.db.models import Job, Snapshot, Volume
from lunr.db.transitions import try_move

#: How a volume from a backup is filled.
EAGER, LAZY, NEVER = FILL_MODES = ("eager", "lazy", "never")


class SourceNotSaved(errors.LunrError):
    """Its source could not be saved, to be copied to another node: {reason}"""

    code = "source_not_saved"


class CreateVolume(JobType):
    """Makes an empty volume."""

    name = "volume.create"
    model = Volume
    lock_key = "volume/{volume_id}"
    begins, done, failed = State.BUILDING, State.ACTIVE, State.ERROR
    reports_progress = True

    def payload(self, session: Session, context: Context, job: Job) -> Payload:
        return {"size_bytes": session.get_one(Volume, job.subject_id).size * GIB}


class CloneVolume(JobType):
    """Makes a volume from a snapshot or volume of its node.

    A clone of what is itself being restored can be used then, and is filled as that is.
    """

    name = "volume.clone"
    model = Volume
    lock_key = "volume/{volume_id}"
    begins, done, failed = State.BUILDING, State.ACTIVE, State.ERROR
    reports_progress = True

    def payload(self, session: Session, context: Context, job: Job) -> Payload:
        volume = session.get_one(Volume, job.subject_id)
        if volume.snapshot_id is not None:
            snapshot = session.get_one(Snapshot, volume.snapshot_id)
            source = {"kind": "snapshot", "id": snapshot.id, "volume_id": snapshot.volume_id}
        else:
            id = str(volume.source_volume_id)
            source = {"kind": "volume", "id": id, "volume_id": id}
        return {
            "size_bytes": volume.size * GIB,
            "source": source,
            "base_id": volume.base_id,
            "repository": job.account_id,
        }

    def done_state(self, session: Session, job: Job) -> StrEnum | None:
        volume = session.get_one(Volume, job.subject_id)
        return State.ACTIVE if volume.base_id is None else State.RESTORING

    def on_done(self, session: Session, context: Context, job: Job, result: Result) -> None:
        _mark_usable(session, context, job.subject_id)


class RestoreVolume(JobType):
    """Makes a volume from a backup: DONE when it can be used. It is ACTIVE when it is full."""

    name = "volume.restore"
    model = Volume
    lock_key = "volume/{volume_id}"
    begins, failed = State.RESTORING, State.ERROR

    def payload(self, session: Session, context: Context, job: Job) -> Payload:
        volume = session.get_one(Volume, job.subject_id)
        return {
            "size_bytes": volume.size * GIB,
            "backup_id": volume.base_id,
            "repository": job.account_id,
        }

    def on_done(self, session: Session, context: Context, job: Job, result: Result) -> None:
        _mark_usable(session, context, job.subject_id)

    def error_if_predecessor_failed(self, reason: str | None) -> errors.LunrError | None:
        return SourceNotSaved(reason=reason)


class FillVolume(JobType):
    """Copies to a restored volume what it does not hold yet, while it is used."""

    name = "volume.fill"
    model = Volume
    lock_key = "fill/{volume_id}"
    done = State.ACTIVE
    reports_progress = True
    unlimited_attempts = True

    def payload(self, session: Session, context: Context, job: Job) -> Payload:
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

    def on_progress(
        self,
        session: Session,
        context: Context,
        job: Job,
        progress: int | None,
        fill: dict[str, Any],
    ) -> Payload:
        session.execute(
            update(Volume)
            .where(Volume.id == job.subject_id, Volume.fill_job_id == job.id)
            .values(
                progress=job.progress,
                fill_rate=fill.get("rate", 0),
                fill_remaining=fill.get("remaining"),
                reason=fill.get("trouble"),
            )
        )
        return self.payload(session, context, job)

    def move_subject(self, session: Session, job: Job) -> None:
        """The volume is ACTIVE, or stays as it is: another job may fill it by now."""
        nobody: dict[str, Any] = {"fill_job_id": None, "fill_rate": 0, "fill_remaining": None}
        if job.status == JobState.DONE:
            values = {"progress": 100, "reason": None, "fill": None, "fill_limit": 0, **nobody}
            try_move(session, Volume, job.subject_id, self.done, (State.RESTORING,), **values)
            return
        values = {"fill": NEVER} if job.status == JobState.CANCELLED else {"reason": job.reason}
        session.execute(
            update(Volume)
            .where(Volume.id == job.subject_id, Volume.fill_job_id == job.id)
            .values(progress=job.progress, **nobody, **values),
            execution_options={"synchronize_session": "fetch"},
        )


class ExtendVolume(JobType):
    """Makes a volume larger; its size is the ``size`` of the job's data then."""

    name = "volume.extend"
    model = Volume
    lock_key = "volume/{volume_id}"

    def payload(self, session: Session, context: Context, job: Job) -> Payload:
        return {"size_bytes": job.data["size"] * GIB}

    def on_done(self, session: Session, context: Context, job: Job, result: Result) -> None:
        volume = session.get_one(Volume, job.subject_id)
        volume.size = volume.reserved = job.data["size"]

    def on_failed(self, session: Session, context: Context, job: Job, result: Result) -> None:
        volume = session.get_one(Volume, job.subject_id)
        volume.reserved = volume.size  # what was promised for the extend is given back


class DeleteVolume(JobType):
    """Removes a volume."""

    name = "volume.delete"
    model = Volume
    lock_key = "volume/{volume_id}"
    done, failed = State.DELETED, State.ERROR
    reports_progress = True


JOB_TYPES = (CreateVolume, CloneVolume, RestoreVolume, FillVolume, ExtendVolume, DeleteVolume)


def begin_fill(session: Session, context: Context, volume: Volume) -> None:
    """Have a `volume` filled that can be used, unless it is not to be."""
    if not volume.usable or volume.fill in (None, NEVER):
        return
    job = queue.enqueue(
        session,
        context,
        FillVolume,
        account_id=volume.account_id,
        subject_id=volume.id,
        volume_id=volume.id,
        node_id=volume.node_id,
    )
    volume.fill_job_id = job.id
    volume.reason = None
    session.flush()


def _mark_usable(session: Session, context: Context, id: str) -> None:
    """Mark a restoring volume as usable, and begin its fill; one that is whole is ACTIVE."""
    volume = session.get_one(Volume, id, populate_existing=True)
    if volume.status == State.RESTORING:
        volume.usable = True
        volume.progress = 0
        begin_fill(session, context, volume)
