"""A scripted server, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lunr.client import Client
from tests.support.scripted_server import ScriptedServer

TOKEN = "s3cret-token"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer().running() as server:
        yield server


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[Client]:
    with Client(server.url, "acme", TOKEN, timeout=5, retries=2) as client:
        yield client
