"""The real API as a process of its own on SQLite, and a storage node that only says it works."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from lunr.client import Client
from lunr.client.cli.context import read_openrc
from lunr.common.units import GIB
from tests.support.waiting import PATIENCE, free_port, wait_until

NODE = "node1"
KINDS = [
    *(f"volume.{what}" for what in ("create", "clone", "restore", "fill", "extend", "delete")),
    *("snapshot.create", "snapshot.delete", "export.create", "export.delete"),
    *("backup.save", "backup.delete", "backup.verify"),
    *("repository.collect", "repository.sweep"),
]
RESULTS: dict[str, dict[str, Any]] = {
    "backup.save": {"bytes_read": 10, "bytes_stored": 5, "objects_stored": 2, "parent_id": None},
    "backup.verify": {"bytes_read": 10, "seconds": 0.1},
    "repository.sweep": {"deleted": 2, "bytes_deleted": 5},
}


class FakeNode:
    """Claims jobs over HTTP as an agent does, and reports each as done, or as `refuse` says.

    Jobs of a kind in `held` stay RUNNING, with half of the work done, until they are cancelled.
    """

    def __init__(self, url: str, token: str, id: str = NODE) -> None:
        self._url = f"{url}/v1.0/nodes/{id}"
        self._session = requests.Session()
        self._session.headers["X-Auth-Token"] = token
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.refuse: dict[str, str] = {}
        self.held: set[str] = set()
        self.claimed: list[dict[str, Any]] = []

    def start(self) -> None:
        self._beat()
        self._thread.start()

    def _beat(self) -> None:
        beat = {"hostname": "h", "portal": "127.0.0.1:3260", "pool": "files", "target": "tgt"}
        room = {"capacity_bytes": 1000 * GIB, "free_bytes": 1000 * GIB, "version": "0"}
        self._send("PUT", "", {**beat, **room, "sessions": {}})

    def stop(self) -> None:
        self._ending.set()
        self._thread.join()
        self._session.close()

    def _send(self, method: str, path: str, body: dict[str, Any]) -> Any:
        answer = self._session.request(method, self._url + path, json=body, timeout=PATIENCE)
        answer.raise_for_status()
        return answer.json() if answer.status_code == 200 else None

    def _work(self) -> None:
        while not self._ending.is_set():
            self._beat()
            job = self._send("POST", "/jobs/claim?wait=1", {"kinds": KINDS})
            if job is not None:
                self.claimed.append(job)
                self._do(job)

    def _do(self, job: dict[str, Any]) -> None:
        kind = job["kind"]
        report = {"lease": job["lease"], "status": "RUNNING", "progress": 50}
        path = f"/jobs/{job['id']}"
        while not self._send("PUT", path, report)["cancel"] and kind in self.held:
            if self._ending.wait(0.02):
                return
        if kind in self.held:
            report["status"] = "CANCELLED"
        elif kind in self.refuse:
            error = {"code": "refused", "reason": self.refuse[kind], "retry": False}
            report |= {"status": "FAILED", "error": error}
        else:
            result = RESULTS.get(kind, {})
            if kind == "repository.collect":
                result = {"collection": job["id"], "condemned": 2}
            report |= {"status": "DONE", "progress": 100, "result": result}
        self._send("PUT", path, report)


@pytest.fixture(scope="session")
def openrc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A running API; the file says where it is, and holds the token of an admin."""
    folder = tmp_path_factory.mktemp("api")
    port = free_port()
    conf = folder / "lunr.conf"
    conf.write_text(
        f"[database]\nconnection = sqlite:///{folder}/lunr.db\n"
        # Small pages, so that every list has several.
        f"[api]\nbind_port = {port}\npage_limit = 2\nsecret_key_file = {folder}/secret.key\n"
        f"[node]\nid = {NODE}\ntoken_file = {folder}/node.token\n"
        f"[store]\nkey = file:{folder}/master.key\n"
    )
    manage: list[str | Path] = [
        sys.executable,
        "-m",
        "lunr.manage.main",
        "--config-file",
        conf,
        "bootstrap",
    ]
    url = f"http://127.0.0.1:{port}"
    openrc = folder / "openrc"
    names: list[str | Path] = [
        "--account",
        "acme",
        "--node",
        NODE,
        "--url",
        url,
        "--openrc",
        openrc,
    ]
    subprocess.run([*manage, *names], check=True, capture_output=True, timeout=PATIENCE)
    with (folder / "log").open("wb") as log:
        api = subprocess.Popen(
            [sys.executable, "-m", "lunr.api.main", "--config-file", conf],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(lambda: _answers(url, api, folder / "log"), what="the API answers")
        yield openrc
    finally:
        api.terminate()
        api.wait(PATIENCE)


def _answers(url: str, api: subprocess.Popen[bytes], log: Path) -> bool:
    if api.poll() is not None:
        raise RuntimeError(f"the API did not start: {log.read_text()}")
    try:
        return requests.get(f"{url}/healthcheck", timeout=5).ok
    except requests.ConnectionError:
        return False


@pytest.fixture(scope="session")
def busy_node(openrc: Path) -> Iterator[FakeNode]:
    token = (openrc.parent / "node.token").read_text().strip()
    node = FakeNode(read_openrc(openrc)["LUNR_URL"], token)
    node.start()
    yield node
    node.stop()


@pytest.fixture
def node(busy_node: FakeNode) -> Iterator[FakeNode]:
    """The node, which does as it is told until the test says otherwise."""
    yield busy_node
    busy_node.refuse.clear()
    busy_node.held.clear()


@pytest.fixture(scope="session")
def env(openrc: Path) -> dict[str, str]:
    """The environment of a person who sourced the openrc file."""
    return {**os.environ, **read_openrc(openrc)}


@pytest.fixture
def client(env: dict[str, str], node: FakeNode) -> Iterator[Client]:
    """An admin's client of the account acme."""
    with Client.from_env(env) as client:
        yield client


@pytest.fixture
def account(client: Client) -> str:
    """A fresh account's id."""
    return client.admin.accounts.create(f"a{os.urandom(4).hex()}").id


@pytest.fixture
def member(client: Client, account: str) -> Iterator[Client]:
    """A client with a member's token of the fresh account."""
    token = client.admin.tokens.create(account).token
    assert token is not None
    with Client(client.url, account, token) as member:
        yield member
