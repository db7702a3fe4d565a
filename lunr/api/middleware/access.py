"""A request id for every request, and one line a request in the log.

The id is in the answer's ``X-Request-Id``, in every error, and beside all that
is logged while the request is worked on. The line says method, path, status,
milliseconds, and who asked: the account or node, the role, the id of the token, the
address. It never holds a token, a query or a body.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from lunr.api.services.accounts.tokens import Principal
from lunr.common import log
from lunr.common.concurrency import WSGIApp

_log = logging.getLogger("lunr.access")

#: Characters of a method and of a path that are shown: strangers choose them.
_LONGEST_METHOD, _LONGEST_PATH = 40, 500


class Access:
    """The outermost middleware."""

    def __init__(self, app: WSGIApp) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """PEP 3333."""
        request_id = environ["lunr.request_id"] = f"req-{secrets.token_hex(8)}"
        began = time.perf_counter()
        answered = "-"

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            nonlocal answered
            answered = status[:3]
            return start_response(status, [*headers, ("X-Request-Id", request_id)], exc_info)

        with log.context(request_id):
            try:
                return self._app(environ, start)
            finally:
                _log.info(
                    "%s %s %s %.1fms %s %s",
                    quote(environ["REQUEST_METHOD"], encoding="latin-1")[:_LONGEST_METHOD],
                    quote(environ.get("PATH_INFO", ""), encoding="latin-1")[:_LONGEST_PATH],
                    answered,
                    (time.perf_counter() - began) * 1000,
                    _caller(environ.get("lunr.principal")),
                    environ.get("REMOTE_ADDR", "-"),
                )


def _caller(principal: Principal | None) -> str:
    """The account or node, the role, and the id of the token; "-" before it is known."""
    if principal is None:
        return "-"
    return f"{principal.account_id or principal.node_id} {principal.role} {principal.token_id}"
