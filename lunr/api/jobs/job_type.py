"""What a job type is, and the registry of all.

A job type is one class in the package of its noun (``lunr/api/services/<noun>/job_types.py``).
It says all that is peculiar to its jobs; the machinery beside this module asks it, and knows no
type and no noun itself.

Lock keys: jobs with the same key run one at a time, oldest first. All that touches a volume's
bytes or its snapshots shares the volume's key. Exports have their own, so that a backup of an
hour keeps nobody from attaching; so has the fill of a restored volume, which is used and backed
up meanwhile. Work on a stored backup has the backup's key, and an account's garbage the
account's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import update
from sqlalchemy.orm import Session

from lunr.common import errors
from lunr.common.states import Job as State
from lunr.db.models import Job
from lunr.db.transitions import KEYS, Model, try_move

if TYPE_CHECKING:
    from lunr.api.context import Context

log = logging.getLogger(__name__)

Payload = dict[str, Any]
Result = dict[str, Any]


class JobType:
    """What all jobs of one type share.

    The methods run in the transaction that claims, reports or completes the job, whose row is
    locked.

    Attributes:
        name: of the type: the jobs' ``kind`` in the database and on the wire.
        model: the subject's; None: the job is about an account's whole repository.
        lock_key: a template of what the jobs lock; see above.
        begins: the state that the subject moves to when a node claims the job.
        done: the state that it moves to when the job is DONE; None: it stays where it is.
        failed: the same for FAILED and CANCELLED.
        any_node: any ACTIVE node can do it; otherwise only the volume's.
        unlimited_attempts: it is tried again as often as it must be.
        reports_progress: the subject shows how far the job is.
        external_lease_seconds: how long the lease of a client lasts that is no node and does
            the job. No node is given such a job, and it is over when its lease is. 0: nodes do it.
    """

    name: ClassVar[str]
    model: ClassVar[Model | None] = None
    lock_key: ClassVar[str]
    begins: ClassVar[StrEnum | None] = None
    done: ClassVar[StrEnum | None] = None
    failed: ClassVar[StrEnum | None] = None
    any_node: ClassVar[bool] = False
    unlimited_attempts: ClassVar[bool] = False
    reports_progress: ClassVar[bool] = False
    external_lease_seconds: ClassVar[int] = 0

    def on_claim(self, session: Session, context: Context, job: Job) -> None:
        """Decide, and write down, what holds for this attempt; the subject is in `begins`."""

    def payload(self, session: Session, context: Context, job: Job) -> Payload:
        """What the node is told with the job (docs/api.md). Reads, and writes nothing.

        It is made when the job is claimed, not when it is queued: by then a parent may have been
        deleted, or a volume extended. It is made again where the answer to the claim was lost.
        """
        return {}

    def on_progress(
        self,
        session: Session,
        context: Context,
        job: Job,
        progress: int | None,
        fill: dict[str, Any],
    ) -> Payload:
        """Show how far the job is.

        Args:
            progress: what the node said, 0 to 100; None: nothing.
            fill: what it says besides of the fill of a lazy restore.

        Returns:
            What the node is told back.
        """
        if progress is not None and self.reports_progress and self.model is not None:
            session.execute(
                update(self.model)
                .where(
                    KEYS[self.model] == job.subject_id,
                    self.model.__table__.c.progress != progress,
                )
                .values(progress=progress)
            )
        return {}

    def check_result(self, job: Job, result: Result) -> errors.LunrError | None:
        """Make sure that `result` is what such a job results in.

        Returns:
            Why the job has FAILED although its node has done it; None: it is DONE.

        Raises:
            errors.InvalidField: it is something else.
        """
        return None

    def done_state(self, session: Session, job: Job) -> StrEnum | None:
        """Where a DONE `job` moves its subject to; None: it stays where it is."""
        return self.done

    def failed_state(self, job: Job) -> StrEnum | None:
        """The same for a FAILED or CANCELLED one."""
        return self.failed

    def find_model(self, job: Job) -> Model | None:
        """The model of the subject of `job`."""
        return self.model

    def move_subject(self, session: Session, job: Job) -> None:
        """Move the subject on: the `job` is over."""
        model = self.find_model(job)
        if model is None:
            return
        is_done = job.status == State.DONE
        target = self.done_state(session, job) if is_done else self.failed_state(job)
        values: dict[str, Any] = {"job_id": None, "reason": job.reason}
        if is_done and target is not None and "progress" in model.__table__.columns:
            values["progress"] = 100
        if target is not None:
            if try_move(session, model, job.subject_id, target, **values):
                return
            log.error("%s of %s ended, its record can't be %s", job.kind, job.subject_id, target)
        session.execute(
            update(model).where(KEYS[model] == job.subject_id).values(**values),
            execution_options={"synchronize_session": "fetch"},
        )

    def on_done(self, session: Session, context: Context, job: Job, result: Result) -> None:
        """Apply the checked `result`; the subject has moved."""

    def on_failed(self, session: Session, context: Context, job: Job, result: Result) -> None:
        """Undo what was begun for the FAILED or CANCELLED job; the subject has moved.

        Args:
            result: of a job that its node had done (:meth:`check_result`); else empty.
        """

    def error_if_predecessor_failed(self, reason: str | None) -> errors.LunrError | None:
        """What such a job fails with when one that it waits for has failed, because of `reason`.

        None: it goes ahead all the same.
        """
        return None


class JobTypes:
    """The registry of all job types."""

    def __init__(self, *classes: type[JobType]) -> None:
        self._types = {one.name: one() for one in classes}
        if len(self._types) < len(classes):
            raise ValueError("two job types have the same name")
        #: All names, and those of the types that any node can do.
        self.names = tuple(self._types)
        self.any_node = tuple(one.name for one in self if one.any_node)

    def __iter__(self) -> Iterator[JobType]:
        return iter(self._types.values())

    def of(self, job: Job) -> JobType:
        """The type of `job`."""
        return self._types[job.kind]

    def that_deletes(self, model: Model) -> type[JobType]:
        """The type whose jobs remove what a record of `model` is about."""
        return next(type(one) for one in self if one.model is model and one.done == "DELETED")
