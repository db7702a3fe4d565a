"""``GET /healthcheck``, without a token: 200, or 503 with what is wrong.

It asks the database, so it also fails when that does. For load balancers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import text

from lunr.api.request import Response, answer
from lunr.api.services import Services
from lunr.common.concurrency import WSGIApp


class Healthcheck:
    """Answers /healthcheck."""

    def __init__(self, app: WSGIApp, services: Services) -> None:
        self._app = app
        self._services = services

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """PEP 3333."""
        if environ.get("PATH_INFO") != "/healthcheck" or environ["REQUEST_METHOD"] != "GET":
            return self._app(environ, start_response)
        with self._services.context.db.read() as connection:
            connection.execute(text("SELECT 1"))
        return answer(Response(200, {"status": "ok"}), environ, start_response)
