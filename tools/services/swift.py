"""A real OpenStack Swift of one node on loopback, for tests, the demo and benchmarks.

  tools/swift start ROOT [--port N] [--keystone KEYSTONE_ROOT]
                            start it; started already, it only says where it is
  tools/swift status ROOT   one line a server; exit code 1 unless all run
  tools/swift stop ROOT     stop its servers; the data stays
  tools/swift wipe ROOT     stop it and remove all it made under ROOT

All it makes is under ROOT; it needs neither root nor /etc/swift. ROOT/env tells how to
log in: ". ROOT/env; swift stat". It is one replica without any of the daemons that repair or
reclaim: what is stored in it is for trying things out.

With --keystone it believes the tokens of a running Keystone that tools/keystone made, instead of
giving out its own; it becomes that Keystone's object-store, and has a user of its own there.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TypedDict

from tools.services import identity
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

USER = "test:tester"
#: In Keystone: the user and project that ROOT/env tells of, and those of the servers themselves.
KEYSTONE_USER, KEYSTONE_PROJECT = "tester", "backups"
SERVICE_USER, SERVICE_PROJECT = "swift", "service"
STORAGE = ("account", "container", "object")
SERVERS = (*STORAGE, "proxy")
#: Swift's own default of 64 KiB costs about half of the throughput with 4 MiB objects.
CHUNK = 1 << 20
#: Seconds that servers wait for each other. By default half a second to connect; then the other is
#: left out for a minute, and with one replica all requests fail. A busy machine is no reason.
PATIENCE = 30
START_TIMEOUT = patient(60.0)

#: Runs commands of swift-ring-builder one after another; to start it costs more than its work.
BUILD_RINGS = """
import json, sys
from swift.cli import ringbuilder
for step in json.loads(sys.argv[1]):
    try:
        ringbuilder.main(["swift-ring-builder", *step])
    except SystemExit as end:
        if end.code:
            raise
"""


class State(TypedDict):
    """What is kept from one start to the next."""

    ports: dict[str, int]
    #: The user's password.
    key: str
    #: What tokens are signed with: they are valid without memcached, and after a restart.
    token_key: str
    #: The root of the Keystone whose tokens it believes; None: its own.
    keystone: str | None


class Cluster:
    """The servers of one Swift, and what they keep under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.etc = self.root / "etc"
        self.run = self.root / "run"
        self.log = self.root / "log"
        self.devices = self.root / "srv"
        self.state = self.root / "cluster.json"
        self.daemons = Daemons(self.run, self.log)

    # --- what a person asks for ---

    def start(self, port: int | None, keystone: Path | None) -> None:
        """Start what does not run yet and wait until a login succeeds."""
        if not (BIN / "swift-proxy-server").exists():
            raise Failed(f"Swift is not installed in {BIN.parent}: run tools/setup")
        if all(self.daemons.pid(name) for name in SERVERS):
            known = self._known()["ports"]["proxy"]
            if port not in (None, known):
                raise Failed(f"it runs already, on port {known}: stop it first")
            return
        self.stop()
        for folder in (self.etc, self.run, self.log, self.root / "cache", self.devices / "sda1"):
            folder.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o711)
        state = self._choose(port, keystone)
        if state["keystone"]:
            self._register(state)
        self._configure(state)
        self._make_rings(state["ports"])
        try:
            self._launch(state["ports"])
            self._wait(state)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the servers that this program started, and no others."""
        self.daemons.stop((*SERVERS, "memcached"))

    def status(self) -> bool:
        """Print one line a server; whether all of them run."""
        ports = self._known()["ports"]
        for name in SERVERS:
            pid = self.daemons.pid(name)
            print(f"{name:<10} {f'pid {pid}, port {ports[name]}' if pid else 'not running'}")
        return all(self.daemons.pid(name) for name in SERVERS)

    def wipe(self) -> None:
        """Stop it and remove everything it made, and ROOT itself if nothing else is in it."""
        self.stop()
        if not self.state.exists() and any(self.root.iterdir()):
            raise Failed(f"{self.root} was not made by this program; nothing was removed")
        for folder in (self.etc, self.run, self.log, self.devices, self.root / "cache"):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.root / "env", self.state):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.root.rmdir()

    # --- how ---

    def _known(self) -> State:
        if not self.state.exists():
            raise Failed(f"there is no Swift under {self.root}")
        state: State = json.loads(self.state.read_text())
        return state

    def _choose(self, port: int | None, keystone: Path | None) -> State:
        """The ports and secrets of last time, with new ports for those that are taken now."""
        state = self._known() if self.state.exists() else _new_state()
        if keystone is not None:
            state["keystone"] = str(keystone.absolute())
        ports = state["ports"]
        if port is not None:
            if not is_free(port):
                raise Failed(f"port {port} is taken: choose another with --port")
            ports["proxy"] = port
        for name in (*SERVERS, "memcached"):
            others = {number for other, number in ports.items() if other != name}
            if name not in ports or not is_free(ports[name]) or ports[name] in others:
                ports[name] = free_port(others)
        write_private(self.state, json.dumps(state, indent=1) + "\n")
        if state["keystone"]:
            access = _administrator(state) | {
                "OS_USERNAME": KEYSTONE_USER,
                "OS_PASSWORD": state["key"],
                "OS_PROJECT_NAME": KEYSTONE_PROJECT,
            }
        else:
            access = {
                "ST_AUTH": f"http://127.0.0.1:{ports['proxy']}/auth/v1.0",
                "ST_USER": USER,
                "ST_KEY": state["key"],
            }
        write_env(self.root / "env", access)
        return state

    def _register(self, state: State) -> None:
        """Make it known to Keystone: its users, its address."""
        keystone = identity.Administrator(_administrator(state))
        for user, project, role in (
            (KEYSTONE_USER, KEYSTONE_PROJECT, "member"),
            (SERVICE_USER, SERVICE_PROJECT, "admin"),
        ):
            id = keystone.ensure("user", user)
            keystone.call("PATCH", f"/users/{id}", {"user": {"password": state["key"]}})
            keystone.grant(role, id, keystone.ensure("project", project))
        service = keystone.ensure("service", "swift", type="object-store")
        port = state["ports"]["proxy"]
        keystone.publish(service, f"http://127.0.0.1:{port}/v1/AUTH_%(project_id)s")

    def _configure(self, state: State) -> None:
        ports = state["ports"]
        common = f"""\
swift_dir = {self.etc}
user = {pwd.getpwuid(os.geteuid()).pw_name}
bind_ip = 127.0.0.1
workers = 0
log_level = WARNING
conn_timeout = {PATIENCE}
node_timeout = {PATIENCE}
"""
        write_private(
            self.etc / "swift.conf",
            """\
[swift-hash]
swift_hash_path_prefix = lunr
swift_hash_path_suffix = lunr
[storage-policy:0]
name = default
default = yes
""",
        )
        for name in STORAGE:
            write_private(
                self.etc / f"{name}-server.conf",
                f"""\
[DEFAULT]
{common}bind_port = {ports[name]}
devices = {self.devices}
mount_check = false
fallocate_reserve = 0
recon_cache_path = {self.root / "cache"}
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
container_update_timeout = {PATIENCE}
network_chunk_size = {CHUNK}
disk_chunk_size = {CHUNK}
keep_cache_size = 5242880
""",
            )
        # Without memcached the proxy asks the account and container servers at every request.
        cache = "cache " if shutil.which("memcached") else ""
        auth = "authtoken keystoneauth" if state["keystone"] else "tempauth"
        filters = self._keystone_filters(state) if state["keystone"] else self._own_filter(state)
        write_private(
            self.etc / "proxy-server.conf",
            f"""\
[DEFAULT]
{common}bind_port = {ports["proxy"]}
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck {cache}{auth} slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
recoverable_node_timeout = {PATIENCE}
error_suppression_limit = 1000000
client_chunk_size = {CHUNK}
object_chunk_size = {CHUNK}
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{ports["memcached"]}
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
{filters}""",
        )

    def _own_filter(self, state: State) -> str:
        account, user = USER.split(":")
        return f"""\
[filter:tempauth]
use = egg:swift#tempauth
storage_url_scheme = http
token_life = 604800
fernet_key_lunr = {state["token_key"]}
active_fernet_key_id = lunr
user_{account}_{user} = {state["key"]} .admin
"""

    def _keystone_filters(self, state: State) -> str:
        url = _administrator(state)["OS_AUTH_URL"]
        return f"""\
[filter:authtoken]
paste.filter_factory = keystonemiddleware.auth_token:filter_factory
www_authenticate_uri = {url}
auth_url = {url}
auth_type = password
username = {SERVICE_USER}
password = {state["key"]}
user_domain_name = Default
project_name = {SERVICE_PROJECT}
project_domain_name = Default
delay_auth_decision = true
cache = swift.cache
[filter:keystoneauth]
use = egg:swift#keystoneauth
operator_roles = admin, member
"""

    def _make_rings(self, ports: dict[str, int]) -> None:
        """One device, one replica, 64 partitions; made anew when a server's port is another."""
        steps = []
        for name in STORAGE:
            ring, builder = self.etc / f"{name}.ring.gz", self.etc / f"{name}.builder"
            made_for = self.etc / f"{name}.ring.port"
            if ring.exists() and made_for.exists() and made_for.read_text() == str(ports[name]):
                continue
            builder.unlink(missing_ok=True)
            where = ["--region", "1", "--zone", "1", "--ip", "127.0.0.1", "--device", "sda1"]
            for step in (
                ["create", "6", "1", "1"],
                ["add", *where, "--port", str(ports[name]), "--weight", "1"],
                ["rebalance"],
            ):
                steps.append([str(builder), *step])
        if steps:
            command = [str(BIN / "python"), "-c", BUILD_RINGS, json.dumps(steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise Failed(f"swift-ring-builder: {done.stdout}{done.stderr}")
        for name in STORAGE:
            (self.etc / f"{name}.ring.port").write_text(str(ports[name]))

    def _launch(self, ports: dict[str, int]) -> None:
        memcached = shutil.which("memcached")
        if memcached:
            listen = ["-l", "127.0.0.1", "-p", str(ports["memcached"]), "-m", "64"]
            user = ["-u", pwd.getpwuid(os.geteuid()).pw_name] if os.geteuid() == 0 else []
            self.daemons.spawn("memcached", [memcached, *listen, *user])
        for name in SERVERS:
            config = self.etc / f"{name}-server.conf"
            self.daemons.spawn(name, [str(BIN / f"swift-{name}-server"), str(config), "-v"])

    def _wait(self, state: State) -> None:
        """Until a login and a listing succeed."""
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            self.daemons.check(SERVERS)
            try:
                for name in STORAGE:  # the proxy answers a login without them
                    socket.create_connection(("127.0.0.1", state["ports"][name]), 10).close()
                with urllib.request.urlopen(_log_in(state), timeout=10):
                    return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise Failed(f"Swift does not answer: {error}; logs: {self.log}") from error
            time.sleep(0.05)


def _log_in(state: State) -> urllib.request.Request:
    """A request for the list of containers, with a fresh token."""
    proxy = f"http://127.0.0.1:{state['ports']['proxy']}"
    if state["keystone"]:
        keystone = identity.Administrator(_administrator(state))
        who = identity.by_password(KEYSTONE_USER, state["key"])
        token = identity.log_in(keystone.url, who, identity.project(KEYSTONE_PROJECT))
        url = f"{proxy}/v1/AUTH_{keystone.ensure('project', KEYSTONE_PROJECT)}"
    else:
        access = {"X-Auth-User": USER, "X-Auth-Key": state["key"]}
        login = urllib.request.Request(f"{proxy}/auth/v1.0", headers=access)
        with urllib.request.urlopen(login, timeout=10) as answer:
            url, token = answer.headers["X-Storage-Url"], answer.headers["X-Auth-Token"]
    return urllib.request.Request(url, headers={"X-Auth-Token": token})


def _administrator(state: State) -> dict[str, str]:
    """How to log in as the administrator of its Keystone."""
    env = Path(str(state["keystone"]), "env")
    if not env.exists():
        raise Failed(f"there is no Keystone under {env.parent}: tools/keystone start {env.parent}")
    return read_env(env)


def _new_state() -> State:
    # A Fernet key is 32 bytes in URL-safe base64.
    token_key = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    return {"ports": {}, "key": secrets.token_urlsafe(24), "token_key": token_key, "keystone": None}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["start", "status", "stop", "wipe"])
    parser.add_argument("root", type=Path, metavar="ROOT")
    parser.add_argument("--port", type=int, help="the proxy's port (start only; else a free one)")
    parser.add_argument(
        "--keystone",
        type=Path,
        metavar="KEYSTONE_ROOT",
        help="whose tokens to believe (start only)",
    )
    args = parser.parse_args()
    cluster = Cluster(args.root)
    try:
        if args.action == "start":
            cluster.start(args.port, args.keystone)
            print((cluster.root / "env").read_text(), end="")
        elif args.action == "status":
            return 0 if cluster.status() else 1
        elif args.action == "stop":
            cluster.stop()
        else:
            cluster.wipe()
    except Failed as error:
        print(f"tools/swift: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
