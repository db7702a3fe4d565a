"""Logging: each record with the request or job it belongs to.

Messages contain untrusted text: methods, names, answers, output of commands. Text shows control
characters as escapes: no terminal obeys them. The further lines of a message and the lines of a
traceback are indented: no line break in untrusted text begins a record. Very long ones are cut.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import logging
import sys
import time
from collections.abc import Iterator
from typing import TextIO

#: The request or job id that the current thread works for.
_context: contextvars.ContextVar[str] = contextvars.ContextVar("lunr_log_context", default="-")


@contextlib.contextmanager
def context(name: str) -> Iterator[None]:
    """Mark the log lines of the context with `name` (a request or job id)."""
    token = _context.set(name)
    try:
        yield
    finally:
        _context.reset(token)


#: The longest message, in characters.
_LONGEST = 8192
#: Line breaks of Unicode, and marks that reverse the direction of text: "cod.exe" for "exe.doc".
_MISLEADING = {*range(0x2028, 0x202F), *range(0x2066, 0x206A)}
_CONTROLS = {*range(0x20), *range(0x7F, 0xA0)}
_ESCAPES = {
    code: chr(code).encode("unicode_escape").decode()
    for code in (_CONTROLS | _MISLEADING) - {ord("\n"), ord("\t")}
}
_INDENT = "    "


def escape(message: str) -> str:
    """A message without control characters, its further lines indented, cut if it is very long.

    >>> escape("a\\x1b[2J\\nb")
    'a\\\\x1b[2J\\n    b'
    """
    if len(message) > _LONGEST:
        message = f"{message[:_LONGEST]}… ({len(message) - _LONGEST} characters more)"
    return message.translate(_ESCAPES).replace("\n", f"\n{_INDENT}")


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = (
            f"{stamp}.{int(record.msecs):03d}Z {record.levelname:<7} {record.name} "
            f"[{_context.get()}] {escape(record.getMessage())}"
        )
        if record.exc_info:
            line += f"\n{_INDENT}{escape(self.formatException(record.exc_info))}"
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
    """Log records from `level` on to `stream` (standard error), as ``text`` or ``json``."""
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
