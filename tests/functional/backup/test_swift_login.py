"""How the Swift store logs in, and logs in again, against a server that plays Swift."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lunr.backup import errors
from lunr.backup.stores import open_store
from tests.support.scripted_server import Reply, ScriptedServer, Seen
from tests.support.waiting import PATIENCE, wait_until

V1 = {"auth_url": "{url}/auth/v1.0", "user": "u", "key": "k", "retries": 1}
V2 = {**V1, "auth_url": "{url}/v2.0", "auth_version": "2", "project_name": "p"}


class Cloud:
    """Swift and both its old ways to log in; `valid` is the number of the good token."""

    def __init__(self, server: ScriptedServer) -> None:
        self.url = server.url
        self.logins = 0
        self.valid = 0
        self.closed = False
        self.lock = threading.Lock()
        server.handler = self.answer

    def answer(self, seen: Seen) -> Reply:
        sent = {name.lower(): value for name, value in seen.headers.items()}
        if seen.path == "/auth/v1.0":
            assert (sent["x-auth-user"], sent["x-auth-key"]) == ("u", "k")
            where = {"X-Storage-Url": f"{self.url}/v1/AUTH_p", "X-Auth-Token": self.log_in()}
            return Reply(200, headers=where)
        if seen.path == "/v2.0/tokens":
            assert seen.body == {
                "auth": {
                    "passwordCredentials": {"username": "u", "password": "k"},
                    "tenantName": "p",
                }
            }
            return Reply(200, self.access())
        if self.closed or sent["x-auth-token"] != f"token{self.valid}":
            return Reply(401)
        if seen.method == "PUT":
            return Reply(201, headers={"ETag": sent["etag"]})
        return Reply(200, b"content", headers={"ETag": "e", "X-Timestamp": "1700000000.00000"})

    def log_in(self) -> str:
        with self.lock:
            self.logins += 1
            return f"token{self.valid}"

    def access(self) -> dict[str, object]:
        endpoints = [{"publicURL": f"{self.url}/v1/AUTH_p", "region": "R"}]
        token = {"id": self.log_in(), "expires": "2100-01-01T00:00:00Z"}
        catalog = [{"type": "object-store", "name": "swift", "endpoints": endpoints}]
        return {"access": {"token": token, "user": {}, "serviceCatalog": catalog}}


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with ScriptedServer().running() as server:
        yield Cloud(server)


@pytest.mark.parametrize("options", [V1, V2], ids=["v1", "v2"])
def test_threads_share_a_login_also_the_next_one(cloud: Cloud, options: dict[str, str]) -> None:
    mine = {**options, "auth_url": options["auth_url"].format(url=cloud.url)}
    store = open_store("swift:p", "account", mine)
    start = threading.Barrier(4)

    def work(_: int) -> list[bytes]:
        read = []
        for turn in range(2):
            if start.wait(PATIENCE) == 0:  # one of them: the token of the last turn has run out
                cloud.valid = turn
            start.wait(PATIENCE)
            store.put("roots/b", b"1")
            read.append(bytes(store.get("roots/b")))
        return read

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [[b"content"] * 2] * 4
    assert cloud.logins == 2
    store.close()


def test_swift_that_refuses_a_fresh_token_may_yet_come_round(cloud: Cloud) -> None:
    cloud.closed = True
    options = {**V1, "auth_url": f"{cloud.url}/auth/v1.0", "retries": 0}
    store = open_store("swift:p", "account", options)
    with pytest.raises(errors.StoreUnavailable, match="401"):
        store.get("roots/b")
    cloud.closed = False
    assert bytes(store.get("roots/b")) == b"content"
    store.close()


def test_what_takes_a_slot_was_summed_before(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    md5 = hashlib.md5

    def spy(*args: Any, **options: Any) -> Any:
        done.append("summed")
        return md5(*args, **options)

    class Slot(contextlib.ExitStack):
        def __enter__(self) -> Slot:
            done.append("slot")
            return self

    store = open_store("swift:p", "account", {**V1, "auth_url": f"{cloud.url}/auth/v1.0"})
    monkeypatch.setattr("lunr.backup.stores.swift.hashlib.md5", spy)
    store.put("chunks/x", b"1", slot=Slot())
    assert done == ["summed", "slot"]
    store.close()


def test_the_store_does_not_load_what_it_does_not_ask() -> None:
    """It would double the time until a restored volume can be used."""
    pytest.importorskip("keystoneclient", reason="swiftclient loads it only where it is")
    code = "import lunr.backup.stores.swift, sys; print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "swiftclient.client" in said.stdout.split()
    assert "keystoneclient" not in said.stdout


def test_keystoneclient_can_be_loaded_afterwards() -> None:
    pytest.importorskip("keystoneclient")
    code = "import lunr.backup.stores.swift, keystoneclient, sys; print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "keystoneclient" in said.stdout.split()


def test_threads_that_have_ended_leave_no_connection(cloud: Cloud) -> None:
    """A hypervisor keeps its store open for years, and each backup has threads of its own."""
    store = open_store("swift:p", "account", {**V1, "auth_url": f"{cloud.url}/auth/v1.0"})
    store.put("roots/b", b"1")
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(store.get, ["roots/b"] * 4))
    gc.collect()  # urllib3 leaves a pool's sockets to that
    # The server is in this process: each connection that is open has two ends here.
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before + 4)
    store.close()
