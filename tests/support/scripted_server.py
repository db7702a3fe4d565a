"""An HTTP server on loopback that answers as a test tells it to, over real sockets."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit


@dataclass
class Seen:
    """A request as it came in."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]


@dataclass
class Reply:
    """What to answer: `body` as JSON (bytes as they are), or nothing at all.

    Attributes:
        drop: close the connection without an answer.
        hang: wait for this before answering.
    """

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    hang: threading.Event | None = None


class ScriptedServer:
    """Answers with `replies` one after the other, then as `handler` says (404 by default)."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.requests: list[Seen] = []
        self.handler: Callable[[Seen], Reply] = lambda _: Reply(404, error("not_found", "no"))
        self.lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler_class())
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def script(self, *replies: Reply) -> None:
        """Add replies."""
        self.replies.extend(replies)

    @property
    def lines(self) -> list[str]:
        """The requests, as ``METHOD path``."""
        return [f"{seen.method} {seen.path}" for seen in self.requests]

    def answer(self, seen: Seen) -> Reply:
        with self.lock:
            self.requests.append(seen)
            if self.replies:
                return self.replies.pop(0)
        return self.handler(seen)

    def _handler_class(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                parts = urlsplit(self.path)
                raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                seen = Seen(
                    self.command,
                    parts.path,
                    dict(parse_qsl(parts.query, keep_blank_values=True)),
                    json.loads(raw) if raw else None,
                    dict(self.headers),
                )
                reply = server.answer(seen)
                if reply.hang is not None:
                    reply.hang.wait(30)
                if reply.drop or reply.hang is not None:
                    self.close_connection = True
                    return
                raw_body = reply.body
                if not isinstance(raw_body, bytes):
                    raw_body = b"" if raw_body is None else json.dumps(raw_body).encode()
                self.send_response(reply.status)
                self.send_header("Content-Length", str(len(raw_body)))
                self.send_header("Content-Type", "application/json")
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw_body)

            do_GET = do_PUT = do_POST = do_DELETE = handle_any

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        return Handler

    @contextmanager
    def running(self) -> Iterator[ScriptedServer]:
        thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()
            thread.join()


def error(code: str, reason: str) -> dict[str, str]:
    """The body of an error."""
    return {"code": code, "reason": reason, "request_id": "req-1"}
