"""`lunr up` while its parts are slow."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from lunr import up
from tests.support.scripted_server import Reply, ScriptedServer


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Where somebody listens, and answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_the_api_is_asked_without_a_proxy(
    tmp_path: Path, silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{silent_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    with ScriptedServer().running() as api:
        api.handler = lambda _seen: Reply(200, {})
        port = int(api.url.rpartition(":")[2])
        assert up.Service(tmp_path, up.Settings(api_port=port), Console())._api_is_healthy()


def test_an_api_that_is_slow_to_answer_is_waited_for(
    tmp_path: Path, silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up, "_ANSWER_TIMEOUT", 0.1)
    service = up.Service(tmp_path, up.Settings(api_port=silent_port), Console())
    (tmp_path / "openrc").write_text("export LUNR_TOKEN=secret\n")
    assert not service._api_is_healthy()
    assert not service._node_is_active()
