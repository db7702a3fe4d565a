"""lunr-api as its operator runs it, with ``[api] auth = keystone``."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.functional.api.world import World
from tests.support.keystone import Keystone
from tests.support.waiting import PATIENCE, wait_until


@dataclass
class Answer:
    """What the API said."""

    status: int
    body: Any

    @property
    def code(self) -> str | None:
        return self.body.get("code")


class Api:
    """A lunr-api process over the database of a World."""

    def __init__(self, folder: Path, world: World, authtoken: dict[str, str]) -> None:
        self.world = world
        config = folder / "lunr.conf"
        config.write_text(
            f"[DEFAULT]\nlog_level = DEBUG\n[database]\nconnection = {world.url}\n"
            f"[api]\nbind_port = 0\nsecret_key_file = {world.key}\n"
            "auth = keystone\nadmin_roles = admin, boss\n[keystone_authtoken]\n"
            + "".join(f"{name} = {value}\n" for name, value in authtoken.items())
        )
        self.log = folder / "api.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lunr.api.main", "--config-file", str(config)],
                stdin=subprocess.DEVNULL,
                stderr=log,
            )

    def url(self) -> str:
        def found() -> str | None:
            match = re.search(r"listens on (http://\S+)", self.log.read_text())
            assert match or self.process.poll() is None, self.log.read_text()
            return match[1] if match else None

        return str(wait_until(found, what="lunr-api listens"))

    def call(
        self, method: str, path: str, token: str | None, body: Any = None, **headers: str
    ) -> Answer:
        """Send a request; ``_`` in the names of `headers` stands for ``-``."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            sent["X-Auth-Token"] = token
        request = urllib.request.Request(
            self.url() + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", **sent},
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return Answer(answer.status, json.loads(answer.read() or b"null"))
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, json.loads(error.read()))

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE) == 0


@pytest.fixture(scope="module")
def authtoken(keystone: Keystone) -> dict[str, str]:
    """The section [keystone_authtoken]; a token is believed for a second only."""
    keystone.user("lunr", "service", "service")  # the role that may ask, and no more
    return {
        "www_authenticate_uri": keystone.admin.url,
        "auth_url": keystone.admin.url,
        "auth_type": "password",
        "username": "lunr",
        "password": "lunr",
        "user_domain_name": "Default",
        "project_name": "service",
        "project_domain_name": "Default",
        "token_cache_time": "1",
        # As some other service has it; it must not make lunr take 503 for 401.
        "delay_auth_decision": "true",
    }


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, authtoken: dict[str, str]) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("keystone-api")
    world = World(folder)
    api = Api(folder, world, authtoken)
    yield api
    api.close()
    world.close()
