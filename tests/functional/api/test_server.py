"""lunr-api as its operator runs it: start, stop, a busy port, a sudden death."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.functional.api.world import World
from tests.support.waiting import PATIENCE, SOON, wait_until


class Server:
    """A lunr-api process over the database of a World."""

    def __init__(self, folder: Path, world: World, port: int = 0) -> None:
        self.config = folder / "lunr.conf"
        self.config.write_text(
            f"[database]\nconnection = {world.url}\n"
            f"[api]\nbind_port = {port}\nsecret_key_file = {world.key}\n"
        )
        self.log = folder / "log"
        self.start()

    def start(self) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lunr.api.main", "--config-file", str(self.config)],
                stdin=subprocess.DEVNULL,
                stderr=log,
            )

    def url(self) -> str:
        def found() -> str | None:
            match = re.search(r"listens on (http://\S+)", self.log.read_text())
            assert match or self.process.poll() is None, self.log.read_text()
            return match[1] if match else None

        return str(wait_until(found, what="lunr-api listens"))

    def call(self, method: str, path: str, token: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            self.url() + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"X-Auth-Token": token, "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, json.loads(answer.read() or b"null")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(PATIENCE)


@pytest.fixture
def server(tmp_path: Path, world: World) -> Iterator[Server]:
    server = Server(tmp_path, world)
    yield server
    if server.process.poll() is None:
        server.stop(signal.SIGKILL)


def test_it_ends_cleanly_and_lets_go_of_those_who_wait(server: Server, world: World) -> None:
    node = world.services.tokens.create_for_node("n1")["token"]
    told: list[int] = []
    claim = ("POST", "/v1.0/nodes/n1/jobs/claim?wait=30", node, {"kinds": ["volume.create"]})
    assert server.call("GET", "/healthcheck", "")[1] == {"status": "ok"}
    waiting = threading.Thread(target=lambda: told.append(server.call(*claim)[0]))
    waiting.start()
    time.sleep(0.5)
    began = time.monotonic()
    assert server.stop() == 0
    waiting.join(PATIENCE)
    assert told == [204]
    assert time.monotonic() - began < SOON, "it does not wait for them"
    assert "Traceback" not in server.log.read_text()


def test_a_claim_is_woken_through_http_while_others_are_served(
    server: Server, world: World
) -> None:
    node = world.services.tokens.create_for_node("n1")["token"]
    got: list[Any] = []
    claim = ("POST", "/v1.0/nodes/n1/jobs/claim?wait=30", node, {"kinds": ["volume.create"]})
    waiting = threading.Thread(target=lambda: got.append(server.call(*claim)))
    server.url()
    waiting.start()
    time.sleep(0.5)
    status, volume = server.call("POST", "/v1.0/acme/volumes", world.token, {"size": 1})
    assert (status, volume["status"]) == (202, "NEW")
    waiting.join(PATIENCE)
    assert got[0][0] == 200 and got[0][1]["volume_id"] == volume["id"]


def test_an_agent_that_died_while_it_waited_is_given_nothing(server: Server, world: World) -> None:
    node = world.services.tokens.create_for_node("n1")["token"]
    host, port = server.url().removeprefix("http://").split(":")
    body = b'{"kinds": ["volume.create"]}'
    with socket.create_connection((host, int(port))) as agent:
        agent.sendall(
            b"POST /v1.0/nodes/n1/jobs/claim?wait=30 HTTP/1.1\r\nHost: x\r\n"
            b"Content-Type: application/json\r\nX-Auth-Token: %s\r\nContent-Length: %d\r\n\r\n%s"
            % (node.encode(), len(body), body)
        )
        time.sleep(0.5)
    _, volume = server.call("POST", "/v1.0/acme/volumes", world.token, {"size": 1})
    time.sleep(1)
    claim = ("POST", "/v1.0/nodes/n1/jobs/claim?wait=5", node, {"kinds": ["volume.create"]})
    job = server.call(*claim)[1]
    assert (job["volume_id"], job["attempt"]) == (volume["id"], 1)


def test_what_was_acknowledged_survives_kill_9(server: Server, world: World) -> None:
    made: list[str] = []

    def create() -> None:
        while True:
            try:
                _, volume = server.call("POST", "/v1.0/acme/volumes", world.token, {"size": 1})
            except (urllib.error.HTTPError, OSError, AssertionError):
                return
            made.append(volume["id"])

    server.url()
    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(made) >= 20, what="20 volumes are made")
    server.stop(signal.SIGKILL)
    for thread in threads:
        thread.join(PATIENCE)
    server.start()
    for id in made:
        status, volume = server.call("GET", f"/v1.0/acme/volumes/{id}", world.token)
        assert status == 200 and volume["job_id"]
    assert len(world.work()) >= len(made)
    assert server.stop() == 0


def test_a_busy_port_is_told_plainly(tmp_path: Path, world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        server = Server(tmp_path, world, port)
        assert server.process.wait(PATIENCE) == 1
    assert f"bind_port {port}: Address already in use" in server.log.read_text()
    assert "Traceback" not in server.log.read_text()


def test_a_key_that_others_can_read_is_told_plainly(tmp_path: Path, world: World) -> None:
    world.key.chmod(0o644)
    server = Server(tmp_path, world)
    assert server.process.wait(PATIENCE) == 1
    assert "chmod 0600" in server.log.read_text()


def test_metrics_name_routes_not_paths(server: Server, world: World) -> None:
    world.volume("a-volume")
    server.call("GET", "/v1.0/acme/volumes/a-volume", world.token)
    with urllib.request.urlopen(server.url() + "/metrics", timeout=PATIENCE) as answer:
        text = answer.read().decode()
    assert 'route="/v1.0/{account}/volumes/{id}",status="200"} 1.0' in text
    assert 'lunr_volumes{status="ACTIVE"} 1.0' in text
    assert 'lunr_node_allocated_bytes{node="n1"} 1.073741824e+09' in text
    assert "a-volume" not in text
    log = server.log.read_text()
    assert world.token not in log and "GET /v1.0/acme/volumes/a-volume 200" in log
