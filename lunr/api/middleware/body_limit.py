"""Bounds the body of a request: ``[api] max_body_bytes``.

A larger one is refused with 413 before it is read, or as soon as so much of a
chunked one has come. What has come whole is handed on from memory. Storage nodes
may send more, since they tell of all their volumes at once.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

from lunr.common import errors
from lunr.common.concurrency import WSGIApp

#: What a storage node may send at least: some 40 bytes tell of a volume when the node
#: starts, and some 150 of an initiator that is logged in.
NODE_LIMIT = 64 << 20


class BodyLimit:
    """Reads at most `limit` bytes."""

    def __init__(self, app: WSGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """PEP 3333."""
        length = environ.get("CONTENT_LENGTH", "")
        if length or environ.get("HTTP_TRANSFER_ENCODING"):
            who = environ["lunr.principal"]
            limit = max(self._limit, NODE_LIMIT) if who.role == "node" else self._limit
            self._bound(environ, length, limit)
        return self._app(environ, start_response)

    def _bound(self, environ: dict[str, Any], length: str, limit: int) -> None:
        if length and not (length.isascii() and length.isdigit()):
            raise errors.BadRequest(reason="Content-Length is not a number")
        if length and int(length[:20]) > limit:
            raise errors.BodyTooLarge(limit=limit)
        try:
            body = environ["wsgi.input"].read(int(length) if length else limit + 1)
        except (OSError, ValueError) as error:
            raise errors.BadRequest(reason="the body ended before its time") from error
        if length and len(body) < int(length):
            raise errors.BadRequest(reason="the body ended before its time")
        if len(body) > limit:
            raise errors.BodyTooLarge(limit=limit)
        environ["wsgi.input"] = io.BytesIO(body)
        environ["CONTENT_LENGTH"] = str(len(body))
