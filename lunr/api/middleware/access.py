"""A request id for every request, and one line a request in the log.

The id is in the answer's ``X-Request-Id``, in every error, and beside all that
is logged while the request is worked on. The line says method, path, status,
milliseconds and who asked; never a token, a query or a body.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from lunr.common import log
from lunr.common.concurrency import WSGIApp

_log = logging.getLogger("lunr.access")


class Access:
    """The outermost middleware."""

    def __init__(self, app: WSGIApp) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """PEP 3333."""
        request_id = environ["lunr.request_id"] = f"req-{secrets.token_hex(8)}"
        began = time.perf_counter()
        told = "-"

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            nonlocal told
            told = status[:3]
            return start_response(status, [*headers, ("X-Request-Id", request_id)], exc_info)

        with log.context(request_id):
            try:
                return self._app(environ, start)
            finally:
                who = environ.get("lunr.principal")
                _log.info(
                    "%s %s %s %.1fms %s",
                    environ["REQUEST_METHOD"],
                    quote(environ.get("PATH_INFO", ""), encoding="latin-1")[:500],
                    told,
                    (time.perf_counter() - began) * 1000,
                    "-" if who is None else who.account_id or who.node_id,
                )
