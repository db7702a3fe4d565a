"""Bounds the body of a request: ``[api] max_body_bytes``.

A larger one is refused with 413 before it is read, or as soon as so much of a
chunked one has come. What has come whole is handed on from memory.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

from lunr.common import errors
from lunr.common.concurrency import WSGIApp


class BodyLimit:
    """Reads at most `limit` bytes."""

    def __init__(self, app: WSGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """PEP 3333."""
        length = environ.get("CONTENT_LENGTH", "")
        if length or environ.get("HTTP_TRANSFER_ENCODING"):
            self._bound(environ, length)
        return self._app(environ, start_response)

    def _bound(self, environ: dict[str, Any], length: str) -> None:
        if length and not (length.isascii() and length.isdigit()):
            raise errors.BadRequest(reason="Content-Length is not a number")
        if length and int(length[:20]) > self._limit:
            raise errors.BodyTooLarge(limit=self._limit)
        try:
            body = environ["wsgi.input"].read(int(length) if length else self._limit + 1)
        except (OSError, ValueError) as error:
            raise errors.BadRequest(reason="the body ended before its time") from error
        if length and len(body) < int(length):
            raise errors.BadRequest(reason="the body ended before its time")
        if len(body) > self._limit:
            raise errors.BodyTooLarge(limit=self._limit)
        environ["wsgi.input"] = io.BytesIO(body)
        environ["CONTENT_LENGTH"] = str(len(body))
