"""The one tree of errors.

An error's docstring is its message, formatted with the error's keyword arguments. Every class
has a stable ``code`` for programs, and the HTTP ``status`` of the API's answer. Errors of one
tool or layer are subclasses beside that tool.

>>> raise NotFound(kind="volume", id="v1")
Traceback (most recent call last):
lunr.common.errors.NotFound: There is no volume v1.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, Self


class LunrError(Exception):
    """An internal error: {reason}"""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    #: Whether the same request can succeed later, unchanged.
    retry: ClassVar[bool] = False

    def __init__(self, **fields: Any) -> None:
        self.fields = fields
        super().__init__(inspect.cleandoc(type(self).__doc__ or "").format(**fields))

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickle message and attributes as they are: an instance may have its own.
        return _rebuild, (type(self), str(self)), self.__dict__

    def as_dict(self) -> dict[str, Any]:
        """``{"code", "reason", "retry"}``: the form of an error between lunr's processes."""
        return {"code": self.code, "reason": str(self), "retry": self.retry}


def _rebuild(kind: type[LunrError], message: str) -> LunrError:
    return kind.__new__(kind, message)


class RemoteError(LunrError):
    """{reason}"""

    # An error that another lunr process reported: its code and retry are the
    # instance's, not the class's.

    def __init__(self, code: str, reason: str, retry: bool = False) -> None:
        super().__init__(reason=reason)
        self.code = code  # type: ignore[misc]
        self.retry = retry  # type: ignore[misc]


class ApiError(LunrError):
    """{reason}"""

    # The base of the API's error answers. A client raises the class of the answer's code, with
    # the service's sentence as the message.

    #: The request's id in the service's log; None if the error is no answer of the service.
    request_id: str | None = None

    @classmethod
    def from_answer(cls, code: str, reason: str, status: int, request_id: str | None) -> Self:
        """The error of this class in an answer; its code may be that of a subclass."""
        error = cls.__new__(cls, reason)
        error.fields = {"reason": reason}
        error.code = code  # type: ignore[misc]
        error.status = status  # type: ignore[misc]
        error.retry = status in (503, 507)  # type: ignore[misc]
        error.request_id = request_id
        return error

    @property
    def reason(self) -> str:
        """The message."""
        return str(self)


# --- errors of the caller ------------------------------------------------------


class BadRequest(ApiError):
    """The request can't be understood: {reason}"""

    code = "bad_request"
    status = 400


class InvalidField(BadRequest):
    """{field}: {reason}"""

    code = "invalid_field"


class UnknownField(BadRequest):
    """{field} is not a field of this request; it takes: {known}."""

    code = "unknown_field"


class BodyTooLarge(BadRequest):
    """The request's body is larger than {limit} bytes."""

    code = "body_too_large"
    status = 413


class Unauthorized(ApiError):
    """A valid X-Auth-Token is needed."""

    code = "unauthorized"
    status = 401


class Forbidden(ApiError):
    """This needs the role {role}."""

    code = "forbidden"
    status = 403


class NotFound(ApiError):
    """There is no {kind} {id}."""

    code = "not_found"
    status = 404


class NoSuchRoute(NotFound):
    """There is nothing at {path}."""

    code = "no_such_route"
    status = 404


class MethodNotAllowed(BadRequest):
    """{path} takes {allowed}, not {method}."""

    code = "method_not_allowed"
    status = 405


# --- requests that can't be served now -----------------------------------------


class Conflict(ApiError):
    """{reason}"""

    code = "conflict"
    status = 409


class WrongState(Conflict):
    """The {kind} {id} is {state}; to {action} it must be {needed}."""

    code = "wrong_state"


class InUse(Conflict):
    """The {kind} {id} is in use: {reason}"""

    code = "in_use"


class IdInUse(Conflict):
    """There is another {kind} {id}, with other parameters ({differs})."""

    code = "id_in_use"


class StaleLease(Conflict):
    """The lease on job {id} is no longer yours: drop the work, the job was given to another."""

    code = "stale_lease"


class QuotaExceeded(ApiError):
    """The account's quota of {quota} is {limit}; {used} are used and {asked} more were asked for."""

    code = "quota_exceeded"
    status = 413


class NoRoom(ApiError):
    """No storage node has room: {reason}"""

    code = "no_room"
    status = 507
    retry = True


class Unavailable(ApiError):
    """{what} can't be reached: {reason}"""

    code = "unavailable"
    status = 503
    retry = True


class DatabaseFull(Unavailable):
    """The disk of the service's database is full: make room there. Nothing was changed."""

    code = "database_full"


class Cancelled(LunrError):
    """Cancelled on request."""

    code = "cancelled"
    status = 409


# --- errors of the operator ----------------------------------------------------


class ConfigError(LunrError):
    """The configuration can't be used: {reason}"""

    code = "config_error"
