"""What the agent hears when the API refuses, stumbles or is away."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lunr.common import errors
from lunr.storage.agent.api_client import ApiClient
from tests.support.waiting import free_port


class Answering(ThreadingHTTPServer):
    """Gives every request the same answer."""

    daemon_threads = True
    answer = (200, b"{}")


class Handler(BaseHTTPRequestHandler):
    def do_PUT(self) -> None:
        assert isinstance(self.server, Answering)
        status, body = self.server.answer
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Answering]:
    with Answering(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def client(server: Answering) -> ApiClient:
    return ApiClient(f"http://127.0.0.1:{server.server_port}", "node1", "token")


@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    [
        (409, b'{"code": "stale_lease", "reason": "gone"}', errors.StaleLease, "j1"),
        (409, b'{"code": "wrong_state", "reason": "no way"}', errors.RemoteError, "no way"),
        (401, b'{"code": "unauthorized", "reason": "who"}', errors.RemoteError, "who"),
        (500, b'{"code": "internal_error", "reason": "oops"}', errors.Unavailable, "oops"),
        (503, b"", errors.Unavailable, "503"),
        (502, b"<html>Bad Gateway</html>", errors.Unavailable, "API"),
        (200, b"not json", errors.Unavailable, "API"),
        (404, b"[]", errors.RemoteError, "Not Found"),
    ],
)
def test_refusals(
    server: Answering,
    client: ApiClient,
    status: int,
    body: bytes,
    kind: type[errors.LunrError],
    said: str,
) -> None:
    server.answer = (status, body)
    with pytest.raises(kind, match=said):
        client.update("j1", "lease", status="RUNNING")


def test_nobody_there(client: ApiClient) -> None:
    away = ApiClient(f"http://127.0.0.1:{free_port()}", "node1", "token")
    with pytest.raises(errors.Unavailable):
        away.heartbeat({})


def test_no_job_is_none(server: Answering, client: ApiClient) -> None:
    server.answer = (204, b"")
    assert client.claim(["volume.create"], 0, "lease-1") is None


def test_ids_do_not_reach_a_path_unchecked(client: ApiClient) -> None:
    with pytest.raises(errors.InvalidField):
        client.update("../other", "lease", status="DONE")
    with pytest.raises(errors.InvalidField):
        ApiClient("http://127.0.0.1", "../node", "token")
