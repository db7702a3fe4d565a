"""A Keystone that hangs, refuses lunr itself, or is configured wrongly."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from lunr.api.app import build
from lunr.api.middleware.keystone import Keystone as Middleware
from lunr.common import config, errors
from tests.functional.api.world import World
from tests.support.keystone import Keystone
from tests.support.services import need_command
from tests.support.waiting import PATIENCE, free_port, wait_until
from tests.system.keystone.conftest import Answer, Api
from tools.services.loopback import is_free


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def _middleware(folder: Path, world: World, authtoken: dict[str, str]) -> Middleware:
    file = folder / "lunr.conf"
    lines = [f"{name} = {value}" for name, value in authtoken.items()]
    file.write_text("\n".join(["[keystone_authtoken]", *lines]))
    return Middleware(config.load(["--config-file", str(file)]), world.services.accounts)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"auth_type": ""}, "auth_type is not set"),
        ({"auth_type": "nonsense"}, "nonsense"),
        ({"auth_url": ""}, "auth_url"),
        ({"token_cache_time": "soon"}, "token_cache_time"),
    ],
)
def test_a_wrong_section_is_told_at_the_start(
    tmp_path: Path, world: World, authtoken: dict[str, str], change: dict[str, str], told: str
) -> None:
    section = {name: value for name, value in (authtoken | change).items() if value}
    with pytest.raises(errors.ConfigError, match=told):
        _middleware(tmp_path, world, section)
    world.close()


def test_without_the_option_no_token_of_keystone_is_good(
    tmp_path: Path, world: World, keystone: Keystone
) -> None:
    keystone.user("alice", "demo")
    file = tmp_path / "lunr.conf"
    file.write_text(f"[database]\nconnection = {world.url}\n[api]\nsecret_key_file = {world.key}\n")
    world.app, services = build(config.load(["--config-file", str(file)]))
    answer = world.call("GET", "/v1.0/acme/volumes", token=keystone.token("alice", "demo"))
    assert answer.status_code == 401
    services.close()
    world.close()


@pytest.mark.parametrize(
    "change",
    [
        {"password": "wrong"},
        # A user that may not ask who holds a token.
        {"username": "powerless", "password": "powerless", "project_name": "demo"},
        {"region_name": "nowhere"},
    ],
)
def test_a_keystone_that_refuses_lunr_is_503(
    tmp_path: Path,
    world: World,
    keystone: Keystone,
    authtoken: dict[str, str],
    change: dict[str, str],
) -> None:
    keystone.user("alice", "demo")
    keystone.user("powerless", "demo")
    middleware = _middleware(tmp_path, world, authtoken | change)
    request = {"HTTP_X_AUTH_TOKEN": keystone.token("alice", "demo"), "REQUEST_METHOD": "GET"}
    with pytest.raises(errors.Unavailable, match="Keystone"):
        middleware.identify(request)
    world.close()


def test_a_keystone_that_hangs_holds_up_nobody_else(
    tmp_path: Path, world: World, authtoken: dict[str, str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # it accepts, and never answers
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/v3"
        api = Api(tmp_path, world, authtoken | {"auth_url": url, "http_connect_timeout": "1"})
        api.url()
        answers: list[Answer] = []

        def ask() -> None:
            answers.append(api.call("GET", "/v1.0/acme/volumes", "gAAAAA"))

        waiting = [threading.Thread(target=ask) for _ in range(5)]
        for thread in waiting:
            thread.start()
        time.sleep(0.5)
        began = time.monotonic()
        for _ in range(20):
            assert api.call("GET", "/v1.0/acme/volumes", world.token).status == 200
        assert time.monotonic() - began < 1.5
        assert not answers
        for thread in waiting:
            thread.join(PATIENCE)
        assert [answer.status for answer in answers] == [503] * 5
        api.close()
    world.close()


def test_processes_share_what_they_know_in_memcached(
    tmp_path: Path, world: World, keystone: Keystone, authtoken: dict[str, str]
) -> None:
    port = free_port()
    user = ["-u", "root"] if os.geteuid() == 0 else []
    command = [need_command("memcached", "memcached"), "-l", "127.0.0.1", "-p", str(port), *user]
    project = keystone.user("alice", "demo")
    token, path = keystone.token("alice", "demo"), f"/v1.0/{project}/volumes"
    shared = {
        "memcached_servers": f"127.0.0.1:{port}",
        "memcache_security_strategy": "ENCRYPT",
        "memcache_secret_key": "of all processes",
        "token_cache_time": "300",
    }
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as memcached:
        wait_until(lambda: not is_free(port), what="memcached listens")
        one, two = (Api(folder, world, authtoken | shared) for folder in folders)
        assert one.call("GET", path, token).status == 200
        keystone.revoke(token)
        assert two.call("GET", path, token).status == 200
        memcached.kill()
    assert two.call("GET", path, token).status == 401
    one.close()
    two.close()
    world.close()


def test_a_revoked_token_is_nobodys_in_any_process(
    tmp_path: Path, world: World, keystone: Keystone, authtoken: dict[str, str], api: Api
) -> None:
    project = keystone.user("alice", "demo")
    (tmp_path / "second").mkdir()
    second = Api(tmp_path / "second", api.world, authtoken)
    token, path = keystone.token("alice", "demo"), f"/v1.0/{project}/volumes"
    both = (api, second)
    assert [one.call("GET", path, token).status for one in both] == [200, 200]
    keystone.revoke(token)
    wait_until(lambda: [one.call("GET", path, token).status for one in both] == [401, 401])
    second.close()
    world.close()
