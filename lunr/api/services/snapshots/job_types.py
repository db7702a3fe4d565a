"""The types of jobs on snapshots."""

from __future__ import annotations

from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.jobs.job_type import JobType, Payload, Result
from lunr.api.services.dependencies import change_needs
from lunr.common.states import Snapshot as State
from lunr.db.models import Job, Snapshot, Volume


class CreateSnapshot(JobType):
    """Makes a snapshot of a volume."""

    name = "snapshot.create"
    model = Snapshot
    lock_key = "volume/{volume_id}"
    begins, done, failed = State.SAVING, State.AVAILABLE, State.ERROR
    reports_progress = True

    def on_claim(self, session: Session, context: Context, job: Job) -> None:
        # An extend that was queued before may have failed or succeeded by now.
        snapshot = session.get_one(Snapshot, job.subject_id)
        snapshot.size = session.get_one(Volume, snapshot.volume_id).size

    def payload(self, session: Session, context: Context, job: Job) -> Payload:
        return {"snapshot_id": job.subject_id}

    def on_done(self, session: Session, context: Context, job: Job, result: Result) -> None:
        if result.get("base_id", "") is None:  # all of the volume was there by then
            snapshot = session.get_one(Snapshot, job.subject_id)
            change_needs(session, context, snapshot, base_id=None)


class DeleteSnapshot(JobType):
    """Removes a snapshot."""

    name = "snapshot.delete"
    model = Snapshot
    lock_key = "volume/{volume_id}"
    done, failed = State.DELETED, State.ERROR

    def payload(self, session: Session, context: Context, job: Job) -> Payload:
        return {"snapshot_id": job.subject_id}


JOB_TYPES = (CreateSnapshot, DeleteSnapshot)
