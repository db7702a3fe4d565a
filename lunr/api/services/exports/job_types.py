"""The types of jobs on exports. Their subject is the volume's export, which has its id."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy.orm import Session

from lunr.api.context import Context
from lunr.api.jobs.job_type import JobType, Payload, Result
from lunr.api.services.exports.node_exports import describe_exports
from lunr.common.states import Export as State
from lunr.db.models import Export, Job


class CreateExport(JobType):
    """Offers a volume to an initiator."""

    name = "export.create"
    model = Export
    lock_key = "export/{volume_id}"
    done, failed = State.ATTACHED, State.ERROR

    def payload(self, session: Session, context: Context, job: Job) -> Payload:
        which = Export.volume_id == job.subject_id
        return describe_exports(session, context.secret_box, which)[0]


class DeleteExport(JobType):
    """Takes the offer back. A detach that was refused goes back to where it came ``from``."""

    name = "export.delete"
    model = Export
    lock_key = "export/{volume_id}"
    done = State.DELETED

    def payload(self, session: Session, context: Context, job: Job) -> Payload:
        export = session.get_one(Export, job.subject_id)
        return {"iqn": export.target_iqn, "force": job.data["force"]}

    def failed_state(self, job: Job) -> StrEnum | None:
        return State(job.data["from"])

    def on_done(self, session: Session, context: Context, job: Job, result: Result) -> None:
        export = session.get_one(Export, job.subject_id)
        export.sessions = []
        export.auth_username = export.auth_secret = None


JOB_TYPES = (CreateExport, DeleteExport)
