"""What calls to lunr raise: the server's errors, and those on the way to it.

All are :class:`lunr.common.errors.LunrError`; programs go by the class, or by
``code`` (docs/api.md).
"""

from __future__ import annotations

from typing import Any

from lunr.common import errors


class ApiError(errors.RemoteError):
    """{reason}"""

    # The server's answer: `code`, `status` (HTTP), `reason`, and `request_id`,
    # by which the server's log tells more.

    def __init__(self, code: str, reason: str, status: int, request_id: str | None = None) -> None:
        super().__init__(code, reason, retry=status in (503, 507))
        self.reason = reason
        self.status = status  # type: ignore[misc]
        self.request_id = request_id

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.code, self.reason, self.status, self.request_id)


class BadRequest(ApiError):
    """{reason}"""


class Unauthorized(ApiError):
    """{reason}"""


class Forbidden(ApiError):
    """{reason}"""


class NotFound(ApiError):
    """{reason}"""


class Conflict(ApiError):
    """{reason}"""


class WrongState(Conflict):
    """{reason}"""


class InUse(Conflict):
    """{reason}"""


class IdInUse(Conflict):
    """{reason}"""


class QuotaExceeded(ApiError):
    """{reason}"""


class Unavailable(ApiError):
    """{reason}"""


class NoRoom(ApiError):
    """{reason}"""


_BY_CODE: dict[str, type[ApiError]] = {
    errors.WrongState.code: WrongState,
    errors.InUse.code: InUse,
    errors.IdInUse.code: IdInUse,
    errors.QuotaExceeded.code: QuotaExceeded,
    errors.NoRoom.code: NoRoom,
}
_BY_STATUS: dict[int, type[ApiError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    405: BadRequest,
    409: Conflict,
    413: BadRequest,
    503: Unavailable,
    507: NoRoom,
}


def from_answer(status: int, body: dict[str, Any], request_id: str | None) -> ApiError:
    """The error that an answer with an HTTP `status` of 400 or more stands for.

    A code that this version doesn't know gives the class of its status.
    """
    code = str(body["code"])
    kind = _BY_CODE.get(code) or _BY_STATUS.get(status, ApiError)
    return kind(code, str(body.get("reason")), status, body.get("request_id") or request_id)


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
    """The {kind} {id} did not become what was waited for."""

    @property
    def record(self) -> Any:
        """The volume, backup, job, …, as it was last seen."""
        return self.fields["record"]


class JobFailed(WaitEnded):
    """The {kind} {id} {outcome}: {reason}"""

    code = "job_failed"


class WaitTimeout(WaitEnded):
    """After {timeout:g} seconds the {kind} {id} is still {state}; the work goes on."""

    code = "timeout"
    status = 504
    retry = True
