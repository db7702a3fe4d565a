"""A server that plays Swift over real sockets: one user, the objects in memory, or where told.

It hangs, or answers that it is unavailable, as a test asks.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from lunr.backup.errors import ObjectMissing
from lunr.backup.format.names import Buffer
from lunr.backup.stores.memory import MemoryStore

#: What a load balancer says instead.
PAGE = b"<html>We'll be back soon.</html>"


class Objects(Protocol):
    """Where the objects are: as much of a store as is used."""

    def put(self, name: str, *buffers: Buffer) -> None: ...
    def get(self, name: str) -> Buffer: ...
    def delete(self, name: str) -> None: ...
    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]: ...


class SwiftServer:
    """Plays Swift, with ONE container, whatever it is called.

    Attributes:
        objects: what it holds.
        hangs, fails: whether a request (its method, the object's name or a listing's prefix)
            gets no answer, or the status `failure`.
        failure: the status, and the headers with it.
        cuts: whether an object loses its last byte on its way.
        poses: the status with which something else answers for Swift, by a page of its own.
        seen: the requests that hung or failed.
        options: for lunr.backup.stores.open_store.
    """

    def __init__(self, objects: Objects | None = None) -> None:
        self.objects: Objects = objects or MemoryStore()
        self.hangs: Callable[[str, str], bool] = lambda _method, _name: False
        self.fails: Callable[[str, str], bool] = lambda _method, _name: False
        self.failure: tuple[int, dict[str, str]] = (503, {})
        self.cuts: Callable[[str, str], bool] = lambda _method, _name: False
        self.poses: Callable[[str, str], int | None] = lambda _method, _name: None
        self.seen: list[tuple[str, str]] = []
        self.released = threading.Event()
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self._http.swift = self
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self.options: dict[str, Any] = {
            "auth_url": f"{self.url}/auth/v1.0",
            "user": "u",
            "key": "k",
        }

    @contextmanager
    def running(self) -> Iterator[SwiftServer]:
        thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.released.set()
            self._http.shutdown()
            self._http.server_close()
            thread.join()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    swift: SwiftServer


class _Handler(BaseHTTPRequestHandler):
    server: _Http
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    def do_GET(self) -> None:
        if self.path == "/auth/v1.0":
            if status := self.server.swift.poses("AUTH", ""):
                self.reply(status, PAGE, {"Content-Type": "text/html"})
                return
            where = {"X-Storage-Url": f"{self.server.swift.url}/v1/a", "X-Auth-Token": "t"}
            self.reply(200, headers=where)
            return
        name, query = self.about()
        if name:
            self.answer("GET", name, lambda: self.get(name))
        else:
            prefix = query.get("prefix", [""])[0]
            marker = query.get("marker", [""])[0]
            self.answer("LIST", prefix, lambda: self.list(prefix, marker))

    def do_PUT(self) -> None:
        name, _ = self.about()
        body = self.body()
        if name and self.server.swift.cuts("PUT", name):
            body = body[:-1]
        self.answer("PUT", name, lambda: self.put(name, body))

    def do_DELETE(self) -> None:
        name, _ = self.about()
        self.answer("DELETE", name, lambda: self.delete(name))

    def get(self, name: str) -> None:
        data = bytes(self.server.swift.objects.get(name))
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
        about = {"ETag": etag, "X-Timestamp": "1700000000.00000"}
        if wanted is None:
            self.reply(200, data, about)
            return
        start, last = int(wanted[1]), int(wanted[2] or len(data))
        if start >= len(data):
            self.reply(416)
        else:
            self.reply(206, data[start : last + 1], about)

    def list(self, prefix: str, marker: str) -> None:
        found = sorted(one for one in self.server.swift.objects.list(prefix) if one[0] > marker)
        page = [{"name": name, "bytes": size} for name, size in found[:10000]]
        self.reply(200, json.dumps(page).encode())

    def put(self, name: str, body: bytes) -> None:
        if name:
            self.server.swift.objects.put(name, body)
        etag = hashlib.md5(body, usedforsecurity=False).hexdigest()
        self.reply(201, headers={"ETag": etag} if name else None)

    def delete(self, name: str) -> None:
        self.server.swift.objects.delete(name)
        self.reply(204)

    # --- HTTP -------------------------------------------------------------

    def about(self) -> tuple[str, dict[str, list[str]]]:
        """The object that is asked for ("": the container), and the query."""
        parts = urlsplit(self.path)
        name = unquote(parts.path).removeprefix("/v1/a/").partition("/")[2]
        return name, parse_qs(parts.query)

    def body(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, method: str, name: str, work: Callable[[], None]) -> None:
        if self.server.swift.hangs(method, name):
            self.server.swift.seen.append((method, name))
            self.server.swift.released.wait()
            self.close_connection = True
        elif status := self.server.swift.poses(method, name):
            self.reply(status, PAGE, {"Content-Type": "text/html"})
        elif self.server.swift.fails(method, name):
            self.server.swift.seen.append((method, name))
            status, headers = self.server.swift.failure
            self.reply(status, headers=headers)
        else:
            try:
                work()
            except ObjectMissing:
                self.reply(404)

    def reply(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body and self.server.swift.cuts(self.command, self.about()[0]):
            body = body[:-1]
            self.close_connection = True
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
