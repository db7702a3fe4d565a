"""The errors that calls to lunr raise: those of the service, and those on the way to it.

The service's errors are the classes that it declares itself. All are
:class:`lunr.common.errors.LunrError`; programs go by the class, or by ``code``
(docs/api.md).
"""

from __future__ import annotations

from typing import Any

from lunr.common import errors

# What the service refuses with, for programs that import it from here.
ApiError = errors.ApiError
BadRequest = errors.BadRequest
Conflict = errors.Conflict
Forbidden = errors.Forbidden
IdInUse = errors.IdInUse
InUse = errors.InUse
NoRoom = errors.NoRoom
NotFound = errors.NotFound
QuotaExceeded = errors.QuotaExceeded
Unauthorized = errors.Unauthorized
Unavailable = errors.Unavailable
WrongState = errors.WrongState

_BY_CODE: dict[str, type[ApiError]] = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, ApiError)
}
#: The classes for codes that :mod:`lunr.common.errors` does not declare.
_BY_STATUS: dict[int, type[ApiError]] = {
    405: BadRequest,
    413: BadRequest,
    **{
        kind.status: kind
        for kind in (BadRequest, Unauthorized, Forbidden, NotFound, Conflict, NoRoom, Unavailable)
    },
}


def from_answer(status: int, body: dict[str, Any], request_id: str | None) -> ApiError:
    """The error that an answer with an HTTP `status` of 400 or more stands for.

    A code that this version doesn't know gives the class of its status.
    """
    code = str(body["code"])
    kind = _BY_CODE.get(code) or _BY_STATUS.get(status, ApiError)
    reason = str(body.get("reason"))
    return kind.from_answer(code, reason, status, body.get("request_id") or request_id)


class Unreachable(errors.LunrError):
    """{url} can't be reached ({cause}). Check LUNR_URL, and that lunr-api runs there."""

    code = "unreachable"
    status = 503
    retry = True


class BadAnswer(errors.LunrError):
    """{url} did not answer as lunr does ({what}). Check that LUNR_URL names the lunr API."""

    code = "bad_answer"
    status = 502


class WaitEnded(errors.LunrError):
    """The {kind} {id} did not reach the state that was waited for."""

    @property
    def record(self) -> Any:
        """The volume, backup, job, …, as the last answer had it."""
        return self.fields["record"]


class JobFailed(WaitEnded):
    """The {kind} {id} {outcome}: {reason}"""

    code = "job_failed"


class WaitTimeout(WaitEnded):
    """After {timeout:g} seconds the {kind} {id} is still {state}; the work goes on."""

    code = "timeout"
    status = 504
    retry = True
