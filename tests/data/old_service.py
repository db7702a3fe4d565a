"""The service of another checkout, by its commands and its HTTP API alone."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import requests

from tests.data.old_content import Content
from tools.services.loopback import free_port
from tools.waiting import wait_until

NODE = "node1"
#: What `lunr up` of that commit runs as an agent, and an agent as a worker.
AGENT = "lunr.storage.main"
WORKER = "lunr.backup.worker"
INITIATOR = "iqn.2026-11.io.lunr.test:initiator"


class Api:
    """Requests with one token; an answer that is an error is raised."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self._session = requests.Session()
        self._session.headers["X-Auth-Token"] = token

    def try_get(self, path: str) -> Any | None:
        """What is at `path`, or None where the API gives none."""
        answer = self._session.get(self.url + path, timeout=60)
        return answer.json() if answer.status_code == 200 else None

    def __call__(self, method: str, path: str, body: Any = None) -> Any:
        answer = self._session.request(method, self.url + path, json=body, timeout=60)
        if not answer.ok:
            raise AssertionError(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer.json() if answer.content else None


class Service:
    """`lunr up` of `checkout` under `root`, or its API alone."""

    def __init__(self, checkout: Path, root: Path) -> None:
        self.checkout = checkout
        self.root = root
        #: Where its commands are: its modules may have other names than ours.
        self.commands = checkout / ".venv" / "bin"
        self.port = free_port()
        self.portal = f"127.0.0.1:{free_port([self.port])}"
        self.url = f"http://127.0.0.1:{self.port}"
        #: What volumes hold, by their ids.
        self.content: dict[str, Content] = {}
        #: Workers that were stopped for good; nobody's children when the node is killed.
        self.stopped: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._log = root.with_name("log")

    # --- its processes ---------------------------------------------------------------

    def _start(self, *argv: str) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self.commands / argv[0], *argv[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def up(self, *options: str) -> None:
        """Start all of it, and return when it is up."""
        self._log.unlink(missing_ok=True)
        ports = ("--api-port", str(self.port), "--portal", self.portal)
        self._start("lunr", "up", "--root", str(self.root), *ports, *options)
        wait_until(lambda: "lunr is up" in self._log.read_text(), what="lunr is up")

    def stop(self) -> None:
        """Stop it in order."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(120)
        self._process = None

    def api_alone(self) -> None:
        """Start the API, and nothing else."""
        self._start("lunr-api", "--config-file", str(self.root / "lunr.conf"))
        wait_until(self._answers, what="the API answers")

    def _answers(self) -> bool:
        with contextlib.suppress(requests.ConnectionError):
            return requests.get(f"{self.url}/healthcheck", timeout=5).ok
        return False

    def kill(self) -> None:
        """End it as a reset of the machine would: nothing of it runs, nothing is mounted."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        wait_until(lambda: not list(self.pids("lunr.conf")), what="the parts end")
        for pid in self.stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in self._fillers():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not list(self._fillers()), what="what serves filling volumes ends")
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            if (point := line.split()[4]).startswith(f"{self.root}/"):
                subprocess.run(["umount", "--lazy", point], check=True)
        wait_until(self._has_no_loop, what="the pool is unmounted")

    def _has_no_loop(self) -> bool:
        listed = ["losetup", "--associated", str(self.root / "pool" / "pool.img")]
        return not subprocess.run(listed, capture_output=True, check=False).stdout

    def pids(self, module: str) -> Iterator[int]:
        """The processes of this root that run `module`, or have it in an argument."""
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().decode()
                if module not in command:
                    continue
                environment = str(self.root) in command or self._is_child(entry)
                if environment:
                    yield int(entry.name)

    def _is_child(self, entry: Path) -> bool:
        """Whether it is an engine's worker: these have no argument that names the root."""
        parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
        with contextlib.suppress(OSError):
            return str(self.root) in Path(f"/proc/{parent}/cmdline").read_bytes().decode()
        return False

    def _fillers(self) -> Iterator[int]:
        for folder in (self.root / "run" / "fillings").glob("*"):
            for entry in Path("/proc").glob("[0-9]*/cwd"):
                with contextlib.suppress(OSError):
                    if entry.readlink() == folder:
                        yield int(entry.parent.name)

    def configure(self, section: str, option: str, value: str) -> None:
        """Change the configuration until the next `up`, and start the node with it."""
        path = self.root / "lunr.conf"
        text = path.read_text().replace(f"[{section}]\n", f"[{section}]\n{option} = {value}\n")
        path.write_text(text)
        path.chmod(0o600)
        for pid in list(self.pids(AGENT)):
            os.kill(pid, signal.SIGKILL)
        before = self.admin("GET", f"/v1.0/admin/nodes/{NODE}")["last_seen"]
        wait_until(lambda: self.admin("GET", f"/v1.0/admin/nodes/{NODE}")["last_seen"] != before)

    def run(self, *argv: str, **env: str) -> str:
        """Run a command of the checkout; what it prints."""
        done = subprocess.run(
            [self.commands / argv[0], *argv[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, **env},
            check=False,
        )
        if done.returncode:
            raise AssertionError(f"{argv}: {done.stdout}{done.stderr}")
        return done.stdout

    def manage(self, *argv: str) -> str:
        """Run lunr-manage."""
        return self.run("lunr-manage", "--config-file", str(self.root / "lunr.conf"), *argv)

    def execute(self, statement: str, *values: object) -> None:
        """Change the database by hand."""
        with contextlib.closing(sqlite3.connect(self.root / "lunr.db")) as connection, connection:
            connection.execute(statement, values)

    def tidy(self) -> None:
        """Remove what is good for this boot only, and have the database in one file."""
        with contextlib.closing(sqlite3.connect(self.root / "lunr.db")) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.execute("VACUUM")
        for name in ("run", "log"):
            shutil.rmtree(self.root / name, ignore_errors=True)
        for name in ("lock", "lunr.db-wal", "lunr.db-shm", "pool/lock"):
            (self.root / name).unlink(missing_ok=True)

    # --- what it is asked for ----------------------------------------------------------

    @property
    def openrc(self) -> dict[str, str]:
        """The variables of the openrc file."""
        lines = (self.root / "openrc").read_text().splitlines()
        return dict(line.removeprefix("export ").split("=", 1) for line in lines)

    @property
    def admin(self) -> Api:
        """Requests of an admin."""
        return Api(self.url, self.openrc["LUNR_TOKEN"])

    def agent(self, node: str = NODE, token: str | None = None) -> Api:
        """Requests of a node."""
        token = token or (self.root / "keys" / "node.token").read_text().strip()
        return Api(f"{self.url}/v1.0/nodes/{node}", token)

    def wait(self, path: str, *states: str, key: str = "status") -> Any:
        """Wait until the record at `path` is in one of `states`."""
        admin = self.admin

        def reached() -> Any:
            record = admin("GET", path)
            if record[key] == "ERROR" and "ERROR" not in states:
                raise AssertionError(f"{path}: {record}")
            return record if record[key] in states else None

        return wait_until(reached, what=f"{path} is {states}")

    def volume(self, id: str, account: str = "default", **request: Any) -> None:
        """Make a volume, and wait until it is ACTIVE."""
        body = {**(request or {"size": 1}), "force_node": NODE}
        self.admin("PUT", f"/v1.0/{account}/volumes/{id}", body)
        self.wait(f"/v1.0/{account}/volumes/{id}", "ACTIVE")
        self.content[id] = Content()

    def wait_usable(self, id: str) -> None:
        """Wait until a volume that is being restored can be used."""
        wait_until(lambda: self.admin("GET", f"/v1.0/default/volumes/{id}")["usable"])

    def backup(self, id: str, volume: str, account: str = "default", **request: Any) -> None:
        """Make a backup, and wait until it is AVAILABLE."""
        self.admin("PUT", f"/v1.0/{account}/volumes/{volume}/backups/{id}", request)
        self.wait(f"/v1.0/{account}/backups/{id}", "AVAILABLE")
        self.content[id] = self.content[volume].copy()

    def snapshot(self, volume: str, account: str = "default") -> str:
        """Make a snapshot of a volume, and wait until it is AVAILABLE."""
        id: str = self.admin("POST", f"/v1.0/{account}/volumes/{volume}/snapshots", {})["id"]
        self.wait(f"/v1.0/{account}/snapshots/{id}", "AVAILABLE")
        self.content[id] = self.content[volume].copy()
        return id

    def delete(self, path: str) -> None:
        """Delete what is at `path`, and wait until it is gone."""
        self.admin("DELETE", path)
        self.wait(path, "DELETED")

    def export(self, id: str, account: str = "default") -> Any:
        """Export a volume to this machine."""
        path = f"/v1.0/{account}/volumes/{id}/export"
        self.admin("PUT", path, {"initiator": INITIATOR, "ip": "127.0.0.1"})
        return self.wait(path, "ATTACHED")

    def unexport(self, id: str, account: str = "default") -> None:
        """Take the export of a volume away."""
        path = f"/v1.0/{account}/volumes/{id}/export"
        self.admin("DELETE", path)
        wait_until(lambda: self.admin.try_get(path) is None or self._is_gone(path))

    def _is_gone(self, path: str) -> bool:
        export = self.admin.try_get(path)
        return export is None or export["status"] == "DELETED"

    def write(
        self, id: str, *places: int, account: str = "default", reads: tuple[int, ...] = ()
    ) -> None:
        """As an initiator: read a block at each of `reads`, write new blocks at `places`."""
        export = self.export(id, account)
        secret = self.root.with_name("chap")
        secret.write_text(export["auth_password"])
        image = {
            "driver": "raw",
            "file.driver": "iscsi",
            "file.transport": "tcp",
            "file.portal": export["target_portal"],
            "file.target": export["target_iqn"],
            "file.lun": export["target_lun"],
            "file.user": export["auth_username"],
            "file.password-secret": "chap",
            "file.initiator-name": export["initiator"],
        }
        commands = [f"read {place} 4096" for place in reads]
        for place in places:
            data = self.content[id].change(id, place)
            file = self.root.with_name(f"block-{place}")
            file.write_bytes(data)
            commands.append(f"write -s {file} {place} {len(data)}")
        argv = ["qemu-io", "--object", f"secret,id=chap,file={secret}", "--image-opts"]
        argv += [",".join(f"{name}={value}" for name, value in image.items())]
        for command in [*commands, "flush"]:
            argv += ["-c", command]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        assert "failed" not in done.stdout + done.stderr, done.stdout + done.stderr
        self.unexport(id, account)


def soon(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Ask `condition` as often as possible; None if it is not true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
    return None
