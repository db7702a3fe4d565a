"""A real OpenStack Keystone on loopback, for tests and for trying things out.

  tools/keystone start ROOT [--port N]   start it; started already, it only says where it is
  tools/keystone stop ROOT               stop it; what it knows stays
  tools/keystone wipe ROOT               stop it and remove all it made under ROOT

All it makes is under ROOT; it needs neither root nor /etc/keystone. ROOT/env tells how to log in
as its administrator: ". ROOT/env". It keeps its records in SQLite. "tools/swift start … --keystone
ROOT" starts a Swift that believes its tokens.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from tools.services.loopback import (
    BIN,
    Daemons,
    Failed,
    free_port,
    is_free,
    read_env,
    write_env,
    write_private,
)
from tools.testing.patience import patient

START_TIMEOUT = patient(60.0)
#: sys.argv stays empty, because Keystone reads options from it when it is imported.
SERVER = """
import os
from werkzeug.serving import make_server
from keystone.wsgi.api import application
port = int(os.environ["LUNR_KEYSTONE_PORT"])
make_server("127.0.0.1", port, application, threaded=True).serve_forever()
"""
#: Runs commands of keystone-manage one after another, each in a process that need not import it.
MANAGE = """
import json, os, sys
from keystone.cmd import cli
config, commands = sys.argv[1:]
for command in json.loads(commands):
    pid = os.fork()
    if not pid:
        cli.main(["keystone-manage", "--config-file", config, *command])
        sys.exit(0)
    if os.waitpid(pid, 0)[1]:
        sys.exit(f"keystone-manage {command[0]} failed")
"""


class Identity:
    """One Keystone, and what it keeps under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.config = self.root / "keystone.conf"
        self.daemons = Daemons(self.root, self.root)
        self.environment = {
            "OS_KEYSTONE_CONFIG_FILES": str(self.config),
            "PYTHONWARNINGS": "ignore",  # its own business
        }

    def start(self, port: int | None) -> None:
        """Make it if it is new, start it if it does not run, and wait until it answers."""
        if not (BIN / "keystone-manage").exists():
            raise Failed(f"Keystone is not installed in {BIN.parent}: run tools/setup")
        known = self._port()
        if self.daemons.pid("keystone"):
            if port not in (None, known):
                raise Failed(f"it runs already, on port {known}: stop it first")
            return
        # Its address is in its own records: it stays the same.
        port = port or known or free_port()
        if known not in (None, port):
            raise Failed(f"its port is {known}, and can't be changed")
        if not is_free(port):
            raise Failed(f"port {port} is taken: choose another with --port")
        if known is None:
            self._make(port)
        try:
            command = [str(BIN / "python"), "-c", SERVER]
            self.daemons.spawn(
                "keystone", command, {**self.environment, "LUNR_KEYSTONE_PORT": str(port)}
            )
            self._wait(port)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop it if it was started by this program."""
        self.daemons.stop(["keystone"])

    def wipe(self) -> None:
        """Stop it and remove everything it made, and ROOT itself if nothing else is in it."""
        self.stop()
        if not self.config.exists() and any(self.root.iterdir()):
            raise Failed(f"{self.root} was not made by this program; nothing was removed")
        for name in ("fernet", "credential"):
            shutil.rmtree(self.root / name, ignore_errors=True)
        for name in ("keystone.db", "keystone.log", "env", "port.json", "keystone.conf"):
            (self.root / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.root.rmdir()

    def _port(self) -> int | None:
        """The port of an earlier start that came to its end."""
        file = self.root / "port.json"
        return int(json.loads(file.read_text())) if file.exists() else None

    def _make(self, port: int) -> None:
        """Its keys, its tables and its administrator, whom ROOT/env tells of."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        keys = {name: self.root / name for name in ("fernet", "credential")}
        for folder in keys.values():
            folder.mkdir(mode=0o700, exist_ok=True)
        (self.root / "keystone.db").unlink(missing_ok=True)  # of a start that did not
        write_private(
            self.config,
            f"""\
[database]
connection = sqlite:///{self.root / "keystone.db"}
sqlite_synchronous = false
[token]
provider = fernet
[fernet_tokens]
key_repository = {keys["fernet"]}
[fernet_receipts]
key_repository = {keys["fernet"]}
[credential]
key_repository = {keys["credential"]}
[cache]
backend = dogpile.cache.memory
[identity]
password_hash_rounds = 4
""",
        )
        for folder in keys.values():
            for number in range(2):  # one that is in use, and the next one
                write_private(folder / str(number), _new_key())
        url = f"http://127.0.0.1:{port}/v3"
        password = secrets.token_urlsafe(24)
        urls = [f"--bootstrap-{kind}-url={url}" for kind in ("public", "internal", "admin")]
        self._manage(
            ["db_sync"],
            ["bootstrap", "--bootstrap-region-id=RegionOne", *urls],
            OS_BOOTSTRAP_PASSWORD=password,
        )
        access = {
            "OS_AUTH_URL": url,
            "OS_IDENTITY_API_VERSION": "3",
            "OS_USERNAME": "admin",
            "OS_PASSWORD": password,
            "OS_PROJECT_NAME": "admin",
            "OS_USER_DOMAIN_NAME": "Default",
            "OS_PROJECT_DOMAIN_NAME": "Default",
            "OS_REGION_NAME": "RegionOne",
        }
        write_env(self.root / "env", access)
        write_private(self.root / "port.json", f"{port}\n")

    def _manage(self, *commands: list[str], **environment: str) -> None:
        """Run these commands of keystone-manage, importing it once: that takes seconds."""
        done = subprocess.run(
            [str(BIN / "python"), "-c", MANAGE, str(self.config), json.dumps(commands)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **self.environment, **environment},
            check=False,
        )
        if done.returncode:
            raise Failed(f"keystone-manage: {done.stdout[-2000:]}")

    def _wait(self, port: int) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            self.daemons.check(["keystone"])
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/v3", timeout=10):
                    return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise Failed(f"Keystone does not answer: {error}") from error
            time.sleep(0.05)


def _new_key() -> str:
    """A Fernet key: 32 bytes in URL-safe base64."""
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["start", "stop", "wipe"])
    parser.add_argument("root", type=Path, metavar="ROOT")
    parser.add_argument("--port", type=int, help="the port of a new one (else a free one)")
    args = parser.parse_args()
    keystone = Identity(args.root)
    try:
        if args.action == "start":
            keystone.start(args.port)
            for name, value in read_env(keystone.root / "env").items():
                print(f"export {name}={value}")
        elif args.action == "stop":
            keystone.stop()
        else:
            keystone.wipe()
    except Failed as error:
        print(f"tools/keystone: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
