"""``lunr up``: the whole service on one machine, in the foreground, all state in one folder.

Each part runs as its own process, as it would under systemd, with one configuration file in the
folder. This process starts a part again that has died. When this process dies, the kernel ends
the parts (``setpriv --pdeathsig``); the next start continues with the state in the folder.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from configparser import RawConfigParser
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import click
import requests
from rich.console import Console

from lunr.common import errors, files, openstack, signals
from lunr.common.help import HELP

#: A unix socket's path has at most 107 bytes (unix(7)); tgtd appends ".0.lock" or the like.
_SOCKET_PATH_LIMIT = 100
#: Seconds that a part may take to start: on a busy machine a second becomes a minute. A part that
#: can't start ends, which is noticed at once.
_START_TIMEOUT = 600.0
#: Seconds that the API may take for one answer during the start.
_ANSWER_TIMEOUT = 30.0
#: For requests: the API is on this machine, and no proxy is asked for it.
_NO_PROXY = {"http": "", "https": ""}
#: Seconds that a part may take to end before it is killed.
_STOP_TIMEOUT = 60.0
#: Seconds of uninterrupted running after which a part counts as healthy again.
_HEALTHY_AFTER = 5.0
_MAX_BACKOFF = 5.0

ACCOUNT = "default"
NODE = "node1"


class StartError(errors.LunrError):
    """lunr can't start: {reason}"""

    code = "start_failed"


@dataclass(frozen=True)
class Settings:
    """The settings of a service, kept in its folder from one start to the next."""

    api_port: int = 8080
    portal: str = "127.0.0.1:3260"
    store: str = ""
    db: str = ""
    pool: str = "files"
    pool_gib: int = 100
    group: str = "lunr"
    thin_pool: str = "pool"
    target: str = "tgt"

    @classmethod
    def load_previous(cls, root: Path, given: Mapping[str, Any]) -> Settings:
        """The settings of the last start under `root`, replaced by those that are `given`."""
        path = root / "up.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        known.update({key: value for key, value in given.items() if value is not None})
        known.setdefault("store", f"files:{root}/store")
        known.setdefault("db", f"sqlite:///{root}/lunr.db")
        settings = cls(**known)
        files.write(path, json.dumps(known, indent=1) + "\n")
        return settings

    @property
    def portal_address(self) -> tuple[str, int]:
        """(host, port) of the iSCSI portal."""
        host, _, port = self.portal.rpartition(":")
        if not host or not port.isdigit():
            raise click.BadParameter(
                f"{self.portal} is not HOST:PORT, such as 127.0.0.1:3260", param_hint="--portal"
            )
        return host.strip("[]"), int(port)


@dataclass
class ChildProcess:
    """One process of the service, and how often it had to be started again."""

    name: str
    argv: list[str]
    env: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    #: The last start: on the monotonic clock, and in seconds since the epoch.
    started: float = 0.0
    started_at: float = 0.0
    backoff: float = 1.0

    def start(self, logs: Path) -> None:
        """Start the process; it dies with this one."""
        log: IO[bytes]
        with (logs / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self.argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.env},
                # A Ctrl-C on the terminal is for `lunr up` alone: it stops its parts in order.
                process_group=0,
            )
        self.started, self.started_at = time.monotonic(), time.time()

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> None:
        """Send `sig`, wait until the process has ended, and kill it if it does not."""
        if self.process is None:
            return
        self.process.send_signal(sig)
        try:
            self.process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


class Service:
    """The parts of one lunr under `root`, started, watched and stopped together."""

    def __init__(self, root: Path, settings: Settings, console: Console) -> None:
        self.root = root
        self.settings = settings
        self.console = console
        self.config = root / "lunr.conf"
        self.logs = root / "log"
        self.stopping = threading.Event()
        run = [sys.executable, "-P", "-m"]
        configured = ["--config-file", str(self.config)]
        #: None where the kernel itself is the target.
        self.tgtd: ChildProcess | None = None
        if settings.target == "tgt":
            self.tgtd = ChildProcess(
                "tgtd",
                ["tgtd", "-f", "-C", "0", "--iscsi", f"portal={settings.portal}"],
                {"TGT_IPC_SOCKET": str(root / "run" / "tgtd")},
            )
        self.api = ChildProcess("api", [*run, "lunr.api.main", *configured])
        self.storage = ChildProcess("storage", [*run, "lunr.storage.main", *configured])
        self.orbit = ChildProcess("orbit", [*run, "lunr.api.orbit", *configured])

    @property
    def url(self) -> str:
        """Where the API answers."""
        return f"http://127.0.0.1:{self.settings.api_port}"

    def prepare(self) -> None:
        """Check the machine, write the configuration, make keys, database, account and node.

        Raises:
            StartError: a program or right is missing, or a port is in use; nothing was started.
        """
        needed = {"setpriv": "util-linux"} | ({"tgtd": "tgt"} if self.tgtd else {})
        for command, package in needed.items():
            if shutil.which(command) is None:
                raise StartError(
                    reason=f"{command} is not installed: apt-get install {package} (needs root)"
                )
        if os.geteuid() != 0:
            raise StartError(
                reason="it mounts a pool and runs an iSCSI target: start it as root (or with sudo)"
            )
        if len(str(self.root / "run" / "tgtd")) > _SOCKET_PATH_LIMIT:
            raise StartError(reason=f"the path {self.root} is too long for a socket in it")
        _check_free("127.0.0.1", self.settings.api_port, "--api-port")
        host, port = self.settings.portal_address
        if self.tgtd is not None:
            # If its portal is in use, tgtd listens elsewhere without an error.
            _check_free(host, port, "--portal")
        for folder in ("log", "run", "pool", "keys"):
            (self.root / folder).mkdir(mode=0o700, exist_ok=True)
        files.write(self.config, self._configuration())
        self._manage(
            "bootstrap",
            *("--account", ACCOUNT),
            *("--node", NODE),
            *("--openrc", str(self.root / "openrc")),
            *("--url", self.url),
        )

    def start(self) -> None:
        """Start the parts in order and return when the service can be used.

        Raises:
            StartError: a part died or was not ready in time; its log says why.
        """
        if self.tgtd is not None:
            self.tgtd.start(self.logs)
        self.api.start(self.logs)
        self._wait("the API", self.api, self._api_is_healthy)
        self.storage.start(self.logs)
        self.orbit.start(self.logs)
        self._wait("the storage node", self.storage, self._node_is_active)

    def watch(self) -> None:
        """Start parts again that died, each time after a longer pause, until the stop."""
        while not self.stopping.wait(0.2):
            now = time.monotonic()
            for part in (self.tgtd, self.api, self.storage, self.orbit):
                if part is None:
                    continue
                if part.process is None or part.process.poll() is None:
                    if now - part.started > _HEALTHY_AFTER:
                        part.backoff = 1.0
                    continue
                if now - part.started < part.backoff:
                    continue
                self.console.print(
                    f"{part.name} ended with {part.process.returncode}; starting it again "
                    f"(its log: {self.logs / part.name}.log)"
                )
                part.backoff = min(part.backoff * 2, _MAX_BACKOFF)
                part.start(self.logs)

    def stop(self) -> None:
        """Stop every part, and unmount the pool."""
        self.orbit.stop()
        self.storage.stop()
        self.api.stop()
        if self.tgtd is not None:
            # tgtd ignores SIGTERM. The kernel already has the initiators' writes.
            self.tgtd.stop(signal.SIGKILL)
        for mount in _mounts_below(self.root):
            self._run(["umount", mount], f"unmount {mount}")

    def _configuration(self) -> str:
        root, settings = self.root, self.settings
        values: dict[str, dict[str, object]] = {
            "DEFAULT": {},
            "database": {"connection": settings.db},
            "api": {"bind_port": settings.api_port, "secret_key_file": root / "keys/secret.key"},
            "node": {
                "id": NODE,
                "api_url": self.url,
                "token_file": root / "keys/node.token",
                "bind_port": 0,
                "pool": settings.pool,
                "target": settings.target,
                "detach_at_stop": True,
                "state_dir": root / "state",
                "run_dir": root / "run",
            },
            "files": {"path": root / "pool", "image_gib": settings.pool_gib},
            "lvm": {"group": settings.group, "thin_pool": settings.thin_pool},
            "tgt": {"socket": root / "run/tgtd.0", "portal": settings.portal},
            "lio": {"portal": settings.portal},
            "store": {"url": settings.store, "key": f"file:{root}/keys/master.key"},
        }
        if settings.store.startswith("swift:"):
            values["swift"] = _swift_options(root)
        parser = RawConfigParser(default_section="")
        parser.read_dict({k: {n: str(v) for n, v in s.items()} for k, s in values.items()})
        text = io.StringIO("")
        text.write("# Written by `lunr up`; changes are lost at its next start.\n")
        parser.write(text)
        return text.getvalue()

    def _manage(self, *args: str) -> None:
        command = [
            sys.executable,
            "-P",
            "-m",
            "lunr.manage.main",
            "--config-file",
            str(self.config),
        ]
        self._run([*command, *args], "prepare the database")

    def _run(self, command: list[str], purpose: str) -> None:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_START_TIMEOUT,
            check=False,
        )
        if done.returncode:
            raise StartError(reason=f"could not {purpose}: {done.stderr.strip()[-2000:]}")

    def _wait(self, what: str, part: ChildProcess, ready: Any) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while not ready():
            ended = part.process is not None and part.process.poll() is not None
            if ended or time.monotonic() > deadline or self.stopping.is_set():
                log = self.logs / f"{part.name}.log"
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
                raise StartError(reason=f"{what} did not come up; the end of {log}:\n{tail}")
            time.sleep(0.05)

    def _api_is_healthy(self) -> bool:
        answer = _answer(self.url + "/healthcheck")
        return answer is not None and answer.ok

    def _node_is_active(self) -> bool:
        token = _openrc(self.root / "openrc")["LUNR_TOKEN"]
        answer = _answer(f"{self.url}/v1.0/admin/nodes/{NODE}", {"X-Auth-Token": token})
        if answer is None or not answer.ok:
            return False
        node = answer.json()
        # The database may still have ACTIVE from the last run.
        return node["status"] in ("ACTIVE", "MAINTENANCE") and (
            datetime.fromisoformat(node["last_seen"]).timestamp() > self.storage.started_at
        )


def _mounts_below(root: Path) -> list[str]:
    """Mount points under `root`, innermost first (proc_pid_mountinfo(5))."""
    below = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        # Spaces in the path are octal escapes.
        point = line.split()[4].encode().decode("unicode_escape")
        if point.startswith(f"{root}/"):
            below.append(point)
    return below[::-1]


def _answer(url: str, headers: Mapping[str, str] | None = None) -> requests.Response | None:
    """The API's answer; None if it does not answer."""
    try:
        return requests.get(url, headers=headers, timeout=_ANSWER_TIMEOUT, proxies=_NO_PROXY)
    except (requests.ConnectionError, requests.Timeout):
        return None


def _check_free(host: str, port: int, option: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartError(
                reason=f"{host}:{port} can't be used ({error.strerror}); set another by {option}"
            ) from error


def _swift_options(root: Path) -> dict[str, object]:
    """The [swift] section from the environment that the swift command reads."""
    values = openstack.swift_options(os.environ)
    if not values:
        raise StartError(
            reason="a swift: store needs ST_AUTH, ST_USER and ST_KEY, or OS_AUTH_URL and the like"
        )
    key_file = root / "keys" / "swift.key"
    files.write(key_file, values.pop("key") + "\n")
    return {**values, "key_file": key_file}


def _openrc(path: Path) -> dict[str, str]:
    lines = (line.removeprefix("export ") for line in path.read_text().splitlines())
    return dict(line.split("=", 1) for line in lines if "=" in line)


@click.command(context_settings=HELP)
@click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for all state; made if it is not there.",
)
@click.option("--api-port", type=click.IntRange(1, 65535), help="Port of the API.  [8080]")
@click.option("--portal", metavar="HOST:PORT", help="Where iSCSI listens.  [127.0.0.1:3260]")
@click.option(
    "--store",
    metavar="URL",
    help="For backups: files:/PATH, or swift:PREFIX with ST_* or OS_* set.  [files:ROOT/store]",
)
@click.option("--db", metavar="URL", help="SQLAlchemy URL.  [sqlite in ROOT]")
@click.option(
    "--pool",
    type=click.Choice(["files", "lvm", "thin"]),
    help="Where volumes live: sparse files in ROOT, or LVM (docs/operations.md).  [files]",
)
@click.option(
    "--pool-gib", type=click.IntRange(min=1), help="Room for volumes in files, sparse.  [100]"
)
@click.option("--group", metavar="NAME", help="Volume group, for lvm and thin.  [lunr]")
@click.option("--thin-pool", metavar="NAME", help="Thin pool in that group.  [pool]")
@click.option(
    "--target",
    type=click.Choice(["tgt", "lio"]),
    help="What exports volumes: tgtd, or the kernel.  [tgt]",
)
def up(root: Path, **given: Any) -> None:
    """Run the whole service on this machine: API, storage node, housekeeper and iSCSI target.

    It stays in the foreground; Ctrl-C stops everything. Started again with the same --root,
    everything is as it was, exports included; options not given keep their last value.

    \b
    Example:
      lunr up --root /srv/lunr &
      . /srv/lunr/openrc
      lunr volume create --size 1
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    root = root.absolute()
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (root / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StartError(reason=f"another `lunr up` runs on {root}") from error
            _serve(Service(root, Settings.load_previous(root, given), console))
    except errors.LunrError as error:
        raise click.ClickException(str(error)) from error


def _serve(service: Service) -> None:
    signals.on_signal(service.stopping.set, (*signals.TO_END, signal.SIGHUP))
    console = service.console
    service.prepare()
    try:
        service.start()
        console.print(f"lunr is up at {service.url}; iSCSI at {service.settings.portal}.")
        console.print(f"Next, in another shell:  . {service.root / 'openrc'}; lunr volume list")
        service.watch()
        console.print("Stopping …")
    finally:
        service.stop()
