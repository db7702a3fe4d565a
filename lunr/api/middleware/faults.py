"""Errors as answers: ``{"code", "reason", "request_id"}`` under the error's status.

What the caller can mend is told to the caller. What is a defect is logged once,
with its traceback, and answered 500 with nothing but the request id to ask for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from lunr.api.request import Response, answer
from lunr.common import errors
from lunr.common.concurrency import WSGIApp

log = logging.getLogger(__name__)


class ErrorResponses:
    """Turns exceptions into answers."""

    def __init__(self, app: WSGIApp) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """PEP 3333."""
        try:
            return self._app(environ, start_response)
        except errors.LunrError as error:
            if error.status < 500 or error.retry:
                return _answer(error, environ, start_response)
            log.exception("The request failed")
        except Exception:  # whatever it is, the caller gets an answer and the log the details
            log.exception("The request failed")
        return _answer(errors.LunrError(reason="the log has it"), environ, start_response)


def _answer(
    error: errors.LunrError, environ: dict[str, Any], start_response: Any
) -> Iterable[bytes]:
    body = {
        "code": error.code,
        "reason": str(error),
        "request_id": environ.get("lunr.request_id"),
    }
    headers: tuple[tuple[str, str], ...] = ()
    if isinstance(error, errors.MethodNotAllowed):
        headers = (("Allow", error.fields["allowed"]),)
    return answer(Response(error.status, body, headers), environ, start_response)
