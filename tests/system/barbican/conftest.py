"""A real Barbican on loopback, which believes the tests' Keystone."""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.keystone import Keystone
from tests.support.waiting import PATIENCE, free_port, wait_until

#: Barbican's own pipeline, with the standard library's server in front of it.
SERVER = """
import os, sys
from paste import deploy
from werkzeug.serving import make_server
app = deploy.loadapp(f"config:{sys.prefix}/etc/barbican/barbican-api-paste.ini", name="main")
make_server("127.0.0.1", int(os.environ["PORT"]), app, threaded=True).serve_forever()
"""

CONFIG = """
[DEFAULT]
host_href = http://127.0.0.1:{port}
db_auto_create = true
[database]
connection = sqlite:///{root}/barbican.db
[keystone_authtoken]
www_authenticate_uri = {url}
auth_url = {url}
auth_type = password
username = barbican
password = barbican
user_domain_name = Default
project_name = service
project_domain_name = Default
[secretstore]
enabled_secretstore_plugins = store_crypto
[crypto]
enabled_crypto_plugins = simple_crypto
[simple_crypto_plugin]
kek = {kek}
"""


class Barbican:
    """One Barbican; what it knows stays when it is stopped and started."""

    def __init__(self, root: Path, keystone: Keystone) -> None:
        self.keystone = keystone
        self.root = root
        self.port = free_port()
        keystone.user("barbican", "service", "service")
        url = f"http://127.0.0.1:{self.port}"
        keystone.admin.publish(
            keystone.admin.ensure("service", "barbican", type="key-manager"), url
        )
        (root / ".barbican").mkdir()
        kek = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
        (root / ".barbican/barbican.conf").write_text(
            CONFIG.format(port=self.port, root=root, url=keystone.admin.url, kek=kek)
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with (self.root / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", SERVER],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # It looks for its configuration in the home directory.
                env={**os.environ, "HOME": str(self.root), "PORT": str(self.port)},
            )
        wait_until(self._answers, what="Barbican answers")

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.root / "log").read_text()[-3000:]
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}/healthcheck", timeout=PATIENCE
            ):
                return True
        except OSError:
            return False

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait()

    def store(self, user: str, payload: bytes, **about: Any) -> str:
        """The id of a secret that a user (of the project of the same name) stores."""
        token = self.keystone.token(user, user)
        body = {
            "payload": base64.b64encode(payload).decode(),
            "payload_content_type": "application/octet-stream",
            "payload_content_encoding": "base64",
            **about,
        }
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/secrets",
            method="POST",
            headers={"X-Auth-Token": token, "Content-Type": "application/json"},
            data=json.dumps(body).encode(),
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            ref: str = json.load(answer)["secret_ref"]
        return ref.rpartition("/")[2]


@pytest.fixture(scope="session")
def barbican(keystone: Keystone, run_folder: Path) -> Iterator[Barbican]:
    for name in ("barbican", "castellan"):
        pytest.importorskip(name, reason=f"needs {name} from PyPI (lunr's extras)")
    root = Path(tempfile.mkdtemp(prefix="barbican-", dir=run_folder))
    server = Barbican(root, keystone)
    try:
        keystone.user("lunr", "lunr")
        keystone.user("stranger", "stranger")
        yield server
    finally:
        server.stop()


@pytest.fixture
def config_file(barbican: Barbican, tmp_path: Path) -> Path:
    """lunr's configuration, but for [store] key."""
    url = barbican.keystone.admin.url
    file = tmp_path / "lunr.conf"
    file.write_text(
        f"[key_manager]\nauth_type = keystone_password\nauth_url = {url}\n"
        "username = lunr\npassword = lunr\nuser_domain_name = Default\n"
        "project_name = lunr\nproject_domain_name = Default\n"
        f"[barbican]\nauth_endpoint = {url}\n"
    )
    return file
