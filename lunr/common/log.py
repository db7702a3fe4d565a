"""Logging: one line a record, with the request or job it belongs to."""

from __future__ import annotations

import contextlib
import contextvars
import json
import logging
import sys
import time
from collections.abc import Iterator
from typing import TextIO

#: What the current thread works for: a request id or a job id.
_context: contextvars.ContextVar[str] = contextvars.ContextVar("lunr_log_context", default="-")


@contextlib.contextmanager
def context(name: str) -> Iterator[None]:
    """Mark all that is logged inside as belonging to `name` (a request or job id)."""
    token = _context.set(name)
    try:
        yield
    finally:
        _context.reset(token)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = (
            f"{stamp}.{int(record.msecs):03d}Z {record.levelname:<7} {record.name} "
            f"[{_context.get()}] {record.getMessage()}"
        )
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": record.created,
            "level": record.levelname,
            "logger": record.name,
            "context": _context.get(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def setup(level: str = "INFO", style: str = "text", stream: TextIO | None = None) -> None:
    """Send everything from `level` on to `stream` (standard error), as ``text`` or ``json``."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Json() if style == "json" else _Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in (
        *("swiftclient", "urllib3", "alembic", "requests"),
        *("keystoneauth", "keystoneclient", "keystonemiddleware", "castellan", "barbicanclient"),
    ):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
