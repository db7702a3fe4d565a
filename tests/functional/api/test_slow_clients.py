"""Clients that are slow, silent or many keep nobody else waiting for the API."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.functional.api.test_server import Server
from tests.functional.api.world import World
from tests.support.waiting import wait_until

#: How many there are of each kind.
CROWD = 30


@pytest.fixture
def server(tmp_path: Path, world: World) -> Iterator[Server]:
    server = Server(tmp_path, world)
    yield server
    server.stop()


def half_a_header(token: str) -> bytes:
    """A request that creates a volume, up to where its headers should end."""
    return f"POST /v1.0/acme/volumes HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {token}\r\n".encode()


def half_a_body(token: str) -> bytes:
    """The same, up to the middle of its body."""
    about = "Content-Type: application/json\r\nContent-Length: 100\r\n"
    return half_a_header(token) + f'{about}\r\n{{"size": '.encode()


def claim(node_token: str) -> bytes:
    """A request of a node that waits for a job as long as it may."""
    body = '{"kinds": ["volume.create"]}'
    return (
        "POST /v1.0/nodes/n1/jobs/claim?wait=60 HTTP/1.1\r\nHost: x\r\n"
        f"Content-Type: application/json\r\nX-Auth-Token: {node_token}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def test_a_crowd_that_does_not_go_on_keeps_nobody_waiting(server: Server, world: World) -> None:
    node = world.services.tokens.create_for_node("n1")["token"]
    host, port = server.url().removeprefix("http://").split(":")
    requests = (b"", half_a_header(world.token), half_a_body(world.token), claim(node))
    with contextlib.ExitStack() as stack:
        crowd: dict[bytes, list[socket.socket]] = {request: [] for request in requests}
        for request in requests * CROWD:
            client = stack.enter_context(socket.create_connection((host, int(port))))
            client.sendall(request)
            crowd[request].append(client)
        status, volume = server.call("POST", "/v1.0/acme/volumes", world.token, {"size": 1})
        assert (status, volume["status"]) == (202, "NEW")
        assert server.call("GET", "/v1.0/acme/volumes", world.token)[0] == 200
        # Everyone else still waits, but for the one that has got the job.
        claims = crowd.pop(claim(node))
        wait_until(lambda: select.select(claims, [], [], 0)[0], what="the job is given out")
        assert len(select.select(claims, [], [], 0)[0]) == 1
        for request, clients in crowd.items():
            assert select.select(clients, [], [], 0)[0] == [], request
