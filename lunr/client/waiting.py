"""Waiting for a state of a record, by fetching it again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from lunr.client import errors
from lunr.client.records import Export, Job, JobRecord, Volume

R = TypeVar("R", bound=JobRecord | Job)
F = TypeVar("F", bound=errors.WaitEnded)

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0
#: Seconds that the API may be away during a wait: the work goes on while the API restarts.
PATIENCE = 60.0


def poll(
    fetch: Callable[[], R],
    is_ready: Callable[[R], bool],
    *,
    timeout: float | None = None,
    progress: Callable[[R], object] | None = None,
) -> R:
    """Fetch a record until `is_ready` is true of it, and return it.

    Args:
        fetch: gets the record.
        is_ready: whether the wait is over; raises JobFailed when it can't end well.
        timeout: seconds to wait at most; None: no limit.
        progress: called with every record that is fetched.

    Raises:
        WaitTimeout: `timeout` is over; its ``record`` is the last one fetched.
        Unreachable, Unavailable: the API was away for `PATIENCE` seconds, or at the deadline.
        JobFailed: as `is_ready` raises.
        ApiError: as `fetch` raises.
    """
    begun = last_answer = time.monotonic()
    deadline = None if timeout is None else begun + timeout
    pause = _FIRST_PAUSE
    record: R | None = None
    while True:
        try:
            record = fetch()
            last_answer = time.monotonic()
        except (errors.Unreachable, errors.Unavailable):
            now = time.monotonic()
            if now - last_answer > PATIENCE or (deadline is not None and now >= deadline):
                raise
        else:
            if progress is not None:
                progress(record)
            if is_ready(record):
                return record
            if deadline is not None and time.monotonic() >= deadline:
                raise _failure(errors.WaitTimeout, record, timeout=timeout, state=record.status)
        left = float("inf") if deadline is None else deadline - time.monotonic()
        time.sleep(max(0.0, min(pause, left)))
        pause = min(pause * 1.5, _LONGEST_PAUSE)


def is_ready(record: JobRecord | Job, status: str) -> bool:
    """Whether a record has reached `status`.

    Raises:
        JobFailed: it is in ERROR, or deleted, or an external volume.
    """
    if record.status in ("ERROR", "DELETED", "EXTERNAL"):
        raise _failure(
            errors.JobFailed,
            record,
            outcome=f"is {record.status}",
            reason=record.reason or "the server gives no reason",
        )
    return record.status == status


def is_settled(volume: Volume) -> bool:
    """Whether a volume is ACTIVE and no job works on it any more.

    Raises:
        JobFailed: it is in ERROR or deleted, its last job failed and left it as it was
            (an extend that the node refused), or it is restored and no job fills it.
    """
    if _is_given_up(volume):
        raise _failure(
            errors.JobFailed,
            volume,
            outcome=f"can be used, but only {volume.progress} % of its backup are on it",
            reason=volume.reason or "its fill is never; choose eager or lazy",
        )
    if not is_ready(volume, "ACTIVE") or volume.job_id is not None:
        return False
    if volume.reason is not None:
        raise _failure(
            errors.JobFailed,
            volume,
            outcome="is ACTIVE, but its last job failed",
            reason=volume.reason,
        )
    return True


def _is_given_up(volume: Volume) -> bool:
    """Whether a volume can be used, and no job fills it."""
    return volume.status == "RESTORING" and volume.usable and volume.fill_job_id is None


def is_usable(volume: Volume) -> bool:
    """Whether a volume can be used; its fill may still run.

    Raises:
        JobFailed: it is in ERROR or deleted.
    """
    return is_ready(volume, "ACTIVE") or volume.usable


def is_gone(record: JobRecord) -> bool:
    """Whether a record is deleted.

    Raises:
        JobFailed: no delete of it runs (any more).
    """
    if record.status == "DELETED":
        return True
    if record.status not in ("DELETING", "DETACHING"):
        raise _failure(
            errors.JobFailed,
            record,
            outcome=f"was not deleted, it is {record.status}",
            reason=record.reason or "no delete was requested",
        )
    return False


def is_done(job: Job) -> bool:
    """Whether a job is done.

    Raises:
        JobFailed: it failed or was cancelled; `code` is the job's.
    """
    if job.status in ("FAILED", "CANCELLED"):
        failure = _failure(
            errors.JobFailed,
            job,
            outcome="was cancelled" if job.status == "CANCELLED" else "failed",
            reason=job.reason or "the server gives no reason",
        )
        failure.code = job.code or failure.code  # type: ignore[misc]
        raise failure
    return job.status == "DONE"


def _failure(error: type[F], record: JobRecord | Job, **fields: Any) -> F:
    noun = "export of volume" if isinstance(record, Export) else type(record).__name__.lower()
    return error(kind=noun, id=record.id, record=record, **fields)
